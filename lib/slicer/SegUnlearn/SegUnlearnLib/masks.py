"""Segmenting the loaded image on the server, and submitting the corrected result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from SegUnlearnLib import segmentation
from SegUnlearnLib.api import Api
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal


class Masks:
    """One inference or submission at a time.

    Signals: ``started(text)``; ``segmented(node, params)``; ``saved(answer)``; ``failed(Problem)``.

    Parameters
    ----------
    api
        Of the server.
    scene
        Gives the scene.
    """

    def __init__(self, api: Api, scene: Callable[[], Any]) -> None:
        self._api, self._scene = api, scene
        self.started, self.segmented = Signal(), Signal()
        self.saved, self.failed = Signal(), Signal()
        self.labels: Mapping[str, int] = {}
        self._call: Any = None

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._call is not None

    def segment(self, volume: Any, image: str, model: str, site: str) -> None:
        """Ask for the mask of an image, and put it into the volume's segmentation."""
        if self.is_busy:
            return
        options = {"result_extension": ".nrrd", "result_dtype": "uint8"}
        if site:
            options["site"] = site
        node_id = volume.GetID()

        def done(answer: Any) -> None:
            self._call = None
            params, name, content = answer
            names = {str(k): int(v) for k, v in params["label_names"].items()}
            scene = self._scene()
            target = scene.GetNodeByID(node_id)
            if target is None:
                self.failed.emit(_scene("The image was closed meanwhile; its mask is dropped."))
                return
            try:
                node = segmentation.show_mask(scene, target, content, name, names)
            except ValueError as error:
                self.failed.emit(
                    _scene(f"The server's mask cannot be shown: {error}. Load the image anew.")
                )
                return
            self.segmented.emit(node, params)

        self._call = self._api.infer(model, image, options, done, self._failed)
        self.started.emit("The server segments the image …")

    def submit(self, node: Any, volume: Any, image: str, client: str) -> None:
        """Send a segmentation as the finished label of an image."""
        if self.is_busy:
            return
        try:
            content, name, named = segmentation.label_map_of(self._scene(), node, volume)
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
        self.started.emit("The label is sent …")

    def cancel(self) -> None:
        """Break off what is under way."""
        if self._call is not None:
            self._call.cancel()

    def _failed(self, problem: Problem) -> None:
        self._call = None
        self.failed.emit(problem)


def _scene(text: str) -> Problem:
    return Problem("scene", text)
