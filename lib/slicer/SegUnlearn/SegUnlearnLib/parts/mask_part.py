"""Segmenting the loaded image with the served model, and submitting what was corrected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.identity import Identity
from SegUnlearnLib.idioms import button, column, data_of, label, row
from SegUnlearnLib.masks import Masks
from SegUnlearnLib.parts.confirm import Confirm
from SegUnlearnLib.parts.keeps import Keeps
from SegUnlearnLib.segmentation import segmentation_of
from SegUnlearnLib.session import Session


class MaskPart:
    """Two buttons.

    Parameters
    ----------
    masks, session
        What is used.
    volume, identity
        Give the image that is chosen and whose it is.
    scene, client
        Give the scene and the name that is sent along.
    """

    def __init__(
        self,
        masks: Masks,
        session: Session,
        volume: Callable[[], Any],
        identity: Callable[[], Any],
        scene: Callable[[], Any],
        client: Callable[[], str],
    ) -> None:
        self._masks, self._session = masks, session
        self._volume, self._identity, self._scene, self._client = volume, identity, scene, client
        self._about: Any = None  # the image and its id that submitting was asked about
        self._waits = ""  # the segmentation whose new mask waits for an answer
        self.widget = qt.QWidget()
        layout = column(self.widget)
        layout.addWidget(label("Segmentation", role="title"))
        self.site = qt.QComboBox()
        self.site.setObjectName("siteChoice")
        self.site.setToolTip("Which site's adapter is used; auto: by the header of the image")
        self.segment = button(
            "Segment", self._segment, "Segment the image on the server", "segmentButton"
        )
        self.submit = button(
            "Submit as label…", self._ask, "Send the corrected segments", "submitButton"
        )
        self.cancel = button("Cancel", masks.cancel, name="segmentCancel")
        layout.addLayout(
            row(self.segment, label("for site", wrap=False), self.site, self.submit, self.cancel)
        )
        self.state = label(role="quiet")
        self.state.setObjectName("maskState")
        layout.addWidget(self.state)
        self.keeps = Keeps()
        self.confirm, self.replace = Confirm(self.keeps.widget), Confirm()
        layout.addWidget(self.replace.widget)
        layout.addWidget(self.confirm.widget)
        masks.started.connect(self._started)
        masks.segmented.connect(self._segmented)
        masks.would_replace.connect(self._ask_to_replace)
        masks.saved.connect(lambda *_: self._ended("The label was saved on the server."))
        masks.dropped.connect(lambda text: self._ended(self._dropped() + text))
        masks.failed.connect(lambda *_: self._ended(""))
        session.changed.connect(self.update)
        self.update()

    def update(self) -> None:
        """Offer what can be done now."""
        server, one = self._session.server, self._identity()
        ready = server is not None and isinstance(one, Identity) and bool(one.image)
        busy = self._masks.is_busy
        volume = self._volume()
        if self.confirm.is_asking() and self._about != _which(volume, one):
            self.confirm.hide()
        self.segment.setEnabled(bool(ready and volume is not None and not busy))
        may = server is not None and server.may_mark
        self.submit.setEnabled(bool(ready and may and volume is not None and not busy))
        self.cancel.setVisible(bool(busy))
        sites = list(server.sites) if server is not None else []
        if [self.site.itemData(i) for i in range(int(self.site.property("count")))] != sites:
            self.site.clear()
            for site in sites:
                self.site.addItem(site, site)

    def drop(self) -> None:
        """Ask nothing any more, and say which mask goes with the question: another server."""
        self.confirm.hide()
        if text := self._dropped():
            self._ended(text)

    def _dropped(self) -> str:
        """Drop the mask that waits for an answer, and say so."""
        waited = self.replace.is_asking()
        self.replace.hide()
        return f"The new mask for {self._waits} was dropped. " if waited else ""

    def _segment(self) -> None:
        server, one, volume = self._session.server, self._identity(), self._volume()
        if server is not None and isinstance(one, Identity) and volume is not None:
            site = str(data_of(self.site) or "")
            self._masks.segment(volume, one.image, server.model, "" if site == "auto" else site)

    def _ask(self) -> None:
        one, volume = self._identity(), self._volume()
        if not isinstance(one, Identity) or volume is None:
            return
        self._about = _which(volume, one)
        node = segmentation_of(self._scene(), volume)
        segments = int(node.GetSegmentation().GetNumberOfSegments())
        question = (
            f"Submit {node.GetName()} ({texts.count(segments, 'segment', 'segments')}) as the "
            "finished label of this image? It replaces the one that the server may have, and "
            "training uses it unless the study is marked."
        )
        outside = self._masks.outside(node, volume)
        for name, voxels in outside.items():
            question += (
                f"\n{texts.count(voxels, 'voxel', 'voxels')} of {name} outside the image will not "
                "be part of the label."
            )
        overlaps = self._masks.overlaps(node, volume)
        self.keeps.show(
            overlaps, lambda: self.confirm.say(f"{question}\n{overlaps.told(self.keeps.order)}")
        )
        self.confirm.ask(
            f"{question}\n{overlaps.told(self.keeps.order)}" if overlaps.shared else question,
            "Submit",
            lambda: self._masks.submit(
                node, volume, one.image, self._client(), overlaps, self.keeps.order
            ),
            danger=bool(overlaps.shared or outside),
        )

    def _started(self, text: str) -> None:
        self.state.setText(text)
        self.update()

    def _segmented(self, node: Any, params: Any) -> None:
        self._ended(f"{self._dropped()}Segmented by {_model(params)}.")

    def _ask_to_replace(
        self, node: Any, names: list[str], params: Any, then: Callable[[], Any]
    ) -> None:
        text = f"Segmented by {_model(params)}. The mask waits for your answer."
        self._ended(self._dropped() + text)
        self._waits = str(node.GetName())
        self.replace.ask(
            f"The new mask replaces segments in {node.GetName()}: {', '.join(names)}. What was "
            "drawn or corrected in them is lost. Cancel drops the new mask.",
            "Replace them",
            then,
            otherwise=lambda: self._ended("The new mask was dropped; nothing was changed."),
        )

    def _ended(self, text: str) -> None:
        self.state.setText(text)
        self.update()


def _which(volume: Any, one: Any) -> tuple[str, str]:
    """Tell an image from others, and whose it is said to be."""
    return volume.GetID() if volume is not None else "", str(getattr(one, "image", ""))


def _model(params: Any) -> str:
    adapter = str(params.get("adapter") or "base")
    with_adapter = "" if adapter == "base" else f" and adapter {adapter}"
    return f"version {params.get('version', '?')}{with_adapter}"
