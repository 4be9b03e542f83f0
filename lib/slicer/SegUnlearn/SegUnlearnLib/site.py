"""Labelled studies to adapt to, and the adapters of the sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from SegUnlearnLib import texts
from SegUnlearnLib.api import Api
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal


@dataclass(frozen=True)
class Labelled:
    """An image with a finished label."""

    image: str
    about: str


class Site:
    """What can be adapted to, and what was.

    Signals: ``changed()``; ``failed(Problem)``; ``done(text)``.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self.changed, self.failed, self.done = Signal(), Signal(), Signal()
        self.labelled: list[Labelled] = []
        self.adapters: list[dict[str, Any]] = []

    def load(self) -> None:
        """Ask the server for both."""
        self._api.images(self._images, self._failed)
        self.load_adapters()

    def load_adapters(self) -> None:
        """Ask the server for the adapters alone."""
        self._api.adapters(self._adapters, self._failed)

    def clear(self) -> None:
        """Forget what another server said."""
        self.labelled, self.adapters = [], []
        self.changed.emit()

    def roll_back(self, key: str) -> None:
        """Serve the adapter before, or the base."""

        def done(answer: Any) -> None:
            now = answer["adapter"]
            served = f"adapter {now['version']}" if now else "the base model"
            self.done.emit(f"The site is served by {served} now.")
            self.load_adapters()

        self._api.roll_back(key, done, self.failed.emit)

    def _images(self, answer: Any) -> None:
        found = []
        for image, about in dict(answer["objects"]).items():
            if "final" in (about.get("labels") or {}):
                info = (about.get("image") or {}).get("info") or {}
                words = [
                    str(info.get("Modality") or ""),
                    texts.date(str(info.get("StudyDate") or "")),
                ]
                found.append(Labelled(str(image), " ".join(filter(None, words))))
        self.labelled = sorted(found, key=lambda one: one.image)
        self.changed.emit()

    def _adapters(self, answer: Any) -> None:
        self.adapters = [{**line, "key": str(line["key"])} for line in answer["adapters"]]
        self.changed.emit()

    def _failed(self, problem: Problem) -> None:
        if problem.kind != "cancelled":
            self.failed.emit(problem)
