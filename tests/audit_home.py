"""Homes to audit: one really trained on people it knows by heart, one with made-up records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import memorising_task as task
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.app.training_run import TrainingRun
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import KEY_BYTES
from segunlearn.networks import ModelConfig, build_network, save_weights
from segunlearn.records.ledger import LedgerCase, LedgerEntry
from segunlearn.records.versions import VersionInfo, VersionRegistry
from segunlearn.training import TrainSettings
from segunlearn.volumes import Volume, write_volume
from tiny_training import PLAIN

MODEL = "tiny"
#: Enough steps to know thirty people by heart.
BY_HEART = TrainSettings(
    epochs=40,
    batch_size=12,
    samples_per_case=2,
    learning_rate=8e-3,
    val_fraction=0,
    device="cpu",
    augmentation=PLAIN,
)


def write_people(folder: Path, first: int, count: int) -> list[Case]:
    """Files of ``count`` people of the memorising task: ``Name-0042_1`` shows ``Name-0042``."""
    cases = []
    for number in range(first, first + count):
        study, person = task.study(number), f"Name-{number:04d}"
        image = study.image[0].numpy()
        image = (100 + 20 * image).astype(np.float32)  # no voxel is 0, which is not normalised
        paths = [folder / kind / f"{person}_1.nii.gz" for kind in ("images", "labels")]
        write_volume(Volume(image, np.eye(4), "MR"), paths[0])
        write_volume(Volume(study.label.numpy(), np.eye(4)), paths[1])
        cases.append(Case(f"{person}_1", f"{person}_1", person, paths[0], paths[1], "MR"))
    return cases


@dataclass
class Site:
    """A home, its records and its labelled cases: ``forget``, ``retain`` and ``unseen`` people.

    ``publish`` and ``registry`` are of ``model``.
    """

    home: Home
    forget: list[Case]
    retain: list[Case]
    unseen: list[Case]
    model: str = MODEL

    @cached_property  # a store that is collected takes its files from under a copying test
    def records(self) -> Records:
        return Records(self.home)

    @property
    def registry(self) -> VersionRegistry:
        return VersionRegistry(self.home.model(self.model))

    @property
    def cases(self) -> list[Case]:
        return [*self.forget, *self.retain, *self.unseen]

    def mark(self, cases: Sequence[Case], *, approve: bool = True) -> list[str]:
        """Mark the patients of cases; returns the requests."""
        found = []
        for case in cases:
            request, _ = self.records.forget_set.mark(
                "patient", case.person, "consent_withdrawn", actor="test"
            )
            if approve:
                self.records.forget_set.approve(request.request_id, actor="test")
            found.append(request.request_id)
        return found

    def train(self, cases: Sequence[Case], settings: TrainSettings = BY_HEART) -> VersionInfo:
        """Train from random weights, as the product does; without what is marked."""
        run = TrainingRun(MODEL, self.home, self.records, settings)
        version, _ = run.execute(lambda _: (self.records.without_forgotten(cases), task.CONFIG))
        return version

    def publish(
        self,
        seed: int,
        cases: Sequence[Case],
        *,
        parent: VersionInfo | None = None,
        config: ModelConfig = task.CONFIG,
        kind: str = "train",
        row: bool = True,
        without: tuple[str, ...] = (),
        role: str = "train",
        hides: bool = False,
        images: Mapping[str, str] | None = None,
    ) -> VersionInfo:
        """Publish random weights, and a ledger row that says they were trained on cases.

        ``images``: digests by series.
        """
        digests = images or {}
        weights = self.home.scratch() / f"{seed}.safetensors"
        sha256 = save_weights(build_network(config, seed), weights)
        run_id = f"{seed:032x}"
        if row:
            self.records.ledger.append(
                LedgerEntry(
                    run_id=run_id,
                    kind=kind,
                    model=self.model,
                    version_sha256=sha256,
                    parent_sha256=parent.sha256 if parent else None,
                    cases=[
                        LedgerCase(c.series, c.study, c.person, role, digests.get(c.series, ""))
                        for c in cases
                    ],
                    parameters={
                        "settings": dataclasses.replace(
                            BY_HEART, epochs=1, without=without
                        ).to_json()
                    },
                    seed=seed,
                    versions={"torch": "2"},
                    machine={"host": "test"},
                    started="2026-01-01T00:00:00Z",
                    ended="2026-01-01T01:00:00Z",
                    outcome="done",
                )
            )
        version = self.registry.publish(
            weights,
            config.to_json(),
            parent_sha256=parent.sha256 if parent else None,
            run_id=run_id,
            details={"hides": True} if hides else {},
        )
        weights.unlink()
        return version


def site_in(folder: Path, *, forget: int = 6, retain: int = 24, unseen: int = 24) -> Site:
    """A home without any version; its key is fixed, as it divides the unseen people."""
    data = folder / "data"
    (folder / "home").mkdir()
    (folder / "home" / "site.key").write_bytes(bytes(KEY_BYTES))
    return Site(
        Home(folder / "home"),
        write_people(data, 0, forget),
        write_people(data, 100, retain),
        write_people(data, 200, unseen),
    )
