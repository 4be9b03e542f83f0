"""Segmenting the loaded image on the server, and submitting the corrected result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from SegUnlearnLib import segmentation
from SegUnlearnLib.api import Api
from SegUnlearnLib.outside import outside_of
from SegUnlearnLib.overlaps import Overlaps, overlaps_of
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal


class Masks:
    """One inference or submission at a time.

    Signals: ``started(text)``; ``segmented(node, params)``; ``would_replace(node, names, params,
    then)``: segments of these names hold something, ``then`` replaces them; ``saved(answer)``;
    ``dropped(text)``: broken off; ``failed(Problem)``.

    Parameters
    ----------
    api
        Of the server.
    scene
        Gives the scene.
    """

    def __init__(self, api: Api, scene: Callable[[], Any]) -> None:
        self._api, self._scene = api, scene
        self.started, self.segmented, self.would_replace = Signal(), Signal(), Signal()
        self.saved, self.dropped, self.failed = Signal(), Signal(), Signal()
        self.labels: Mapping[str, int] = {}
        self._call: Any = None
        self._broken_off = ""

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._call is not None

    def segment(self, volume: Any, image: str, model: str, site: str) -> None:
        """Ask for the mask of an image, and put it into the volume's segmentation."""
        if self.is_busy:
            return
        options = {"result_extension": ".nrrd"}
        if site:
            options["site"] = site
        node_id = volume.GetID()

        def done(answer: Any) -> None:
            self._call = None
            params, name, content = answer
            names = {str(k): int(v) for k, v in params["label_names"].items()}
            self._arrived(node_id, params, name, content, names)

        self._call = self._api.infer(model, image, options, done, self._failed)
        self._broken_off = "Segmenting was broken off by connecting anew. Press Segment again."
        self.started.emit("The server segments the image …")

    def _arrived(
        self, node_id: str, params: Any, name: str, content: bytes, names: Mapping[str, int],
        *, agreed: bool = False,
    ) -> None:  # fmt: skip
        """Show a mask; where that would lose what somebody drew, only once they agreed."""
        scene = self._scene()
        target = scene.GetNodeByID(node_id)
        if target is None:
            self.failed.emit(_scene("The image was closed meanwhile; its mask is dropped."))
            return
        try:
            at_stake = [] if agreed else segmentation.would_replace(scene, target, names)
            if not at_stake:
                node = segmentation.show_mask(scene, target, content, name, names)
                self.segmented.emit(node, params)
                return
            segmentation.check_mask(scene, target, content, name, names)
        except ValueError as error:
            self.failed.emit(
                _scene(f"The server's mask cannot be shown: {error}. Load the image anew.")
            )
            return
        self.would_replace.emit(
            segmentation.segmentation_of(scene, target), at_stake, params,
            lambda: self._arrived(node_id, params, name, content, names, agreed=True),
        )  # fmt: skip

    def overlaps(self, node: Any, volume: Any) -> Overlaps:
        """Find what segments share, and a label cannot give to all of them."""
        try:
            return overlaps_of(self._scene(), node, volume)
        except ValueError:
            return Overlaps()  # submitting says why

    def outside(self, node: Any, volume: Any) -> Mapping[str, int]:
        """Count the voxels of segments that lie outside the image, by name."""
        try:
            return outside_of(self._scene(), node, volume)
        except ValueError:
            return {}  # submitting says why

    def submit(
        self, node: Any, volume: Any, image: str, client: str, told: Overlaps,
        order: Sequence[str],
    ) -> None:  # fmt: skip
        """Send a segmentation as the finished label of an image.

        Parameters
        ----------
        node, volume, image, client
            What is sent, for which image, and by whom.
        told
            What segments share, as somebody was told; if it is more or less by now, nothing is
            sent.
        order
            Ids of the segments that share voxels; the first keeps them.
        """
        if self.is_busy:
            return
        try:
            if overlaps_of(self._scene(), node, volume) != told:
                raise ValueError(
                    "what overlaps is not what you were asked about. Press Submit as label… again"
                )
            content, name, named = segmentation.label_map_of(self._scene(), node, volume, order)
        except ValueError as error:
            self.failed.emit(_scene(f"Nothing was sent: {error}."))
            return
        unknown = [one["name"] for one in named if self.labels and one["name"] not in self.labels]
        if unknown:
            self.failed.emit(
                _scene(
                    f"Nothing was sent: the model knows no structure {', '.join(unknown)}. It "
                    f"knows {', '.join(self.labels)}; rename or remove the segment."
                )
            )
            return
        info = {"label_info": named, **({"client_id": client} if client else {})}

        def done(answer: Any) -> None:
            self._call = None
            answer["label"]
            self.saved.emit(answer)

        self._call = self._api.save_label(image, name, content, info, done, self._failed)
        self._broken_off = (
            "Connecting anew broke off the sending; whether the label was saved is not known. "
            "Submit it again."
        )
        self.started.emit("The label is sent …")

    def cancel(self) -> None:
        """Break off what is under way."""
        if self._call is not None:
            self._call.cancel()

    def clear(self) -> None:
        """Expect nothing any more: the server is connected to anew, or another one is."""
        call, self._call = self._call, None
        if call is not None:
            call.silence()
            call.cancel()
            self.dropped.emit(self._broken_off)

    def _failed(self, problem: Problem) -> None:
        self._call = None
        self.failed.emit(problem)


def _scene(text: str) -> Problem:
    return Problem("scene", text)
