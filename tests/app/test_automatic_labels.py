"""Masks that a machine made alone (SegmentAlgorithmType AUTOMATIC) are no finished labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from app_sources import LABELS, Study, make_study, write_dicom
from segunlearn.app.datastores import DicomDatastore, open_datastore
from segunlearn.app.options import AppOptions, Home
from segunlearn.dicom.segmentation import Algorithm, write_segmentation
from segunlearn.volumes import read_volume, write_volume

NAMES = {i + 1: name for i, name in enumerate(LABELS)}
VALUES = {name: value for value, name in NAMES.items()}
PARAMS = {
    "model": "segmentation", "version": "v0001", "sha256": "0" * 64, "adapter": "",
    "site_rule": "none",
}  # fmt: skip
TOOL = Algorithm("organs of a vendor", "2.1")
Opener = Callable[..., DicomDatastore]


@pytest.fixture
def study() -> Study:
    return make_study(0)


@pytest.fixture
def opened(tmp_path: Path, study: Study) -> Opener:
    write_dicom(tmp_path / "studies", [study])

    def open_it(values: dict[str, int] = VALUES, **conf: str) -> DicomDatastore:
        options = AppOptions.from_conf({"home": str(tmp_path / "home"), **conf})
        store = open_datastore(
            str(tmp_path / "studies"), options, Home(options.home),
            label_values=lambda: values, keep=list,
        )  # fmt: skip
        assert isinstance(store, DicomDatastore)
        return store

    return open_it


def put(
    store: DicomDatastore,
    study: Study,
    kind: str | list[str],
    hour: int = 10,
    *,
    value: int = 0,
    elsewhere: bool = False,
) -> str:
    """Store a SEG as another system makes it; returns its SOPInstanceUID."""
    mask = np.where(study.label.array == value, value, 0) if value else study.label.array
    made = write_segmentation(
        replace(study.label, array=mask), study.datasets, NAMES, algorithm=TOOL,
        created=datetime(2036, 11, 3, hour, tzinfo=UTC),
    )  # fmt: skip
    kinds = [kind] * len(NAMES) if isinstance(kind, str) else kind
    for segment, one in zip(made.SegmentSequence, kinds, strict=True):
        segment.SegmentAlgorithmType = one
    if elsewhere:
        made.StudyInstanceUID = generate_uid()
    store.archive.store([made])
    store.refresh()
    store.list_images()
    return str(made.SOPInstanceUID)


def final(store: DicomDatastore, study: Study) -> str:
    """SOPInstanceUID of what counts as the finished label."""
    return str(store.get_label_info(study.series, "final")["sop_instance_uid"])


@pytest.mark.parametrize("values", [VALUES, {}])
def test_what_the_model_said_is_no_finished_label(
    opened: Opener, study: Study, values: dict[str, int]
) -> None:
    """A person may keep an answer of ``/infer`` in the PACS; it must not teach the next model."""
    store = opened(values)
    store.archive.store([store.as_segmentation(study.series, study.label, NAMES, PARAMS, "ann")])
    assert store.status()["completed"] == 0
    assert store.get_unlabeled_images() == [study.series]
    assert store.trainable(values=VALUES).cases == []
    assert store.structures() == tuple(values)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("conf", [{}, {"automatic_labels": "true"}])
def test_a_machine_never_outranks_a_person(
    opened: Opener, study: Study, tmp_path: Path, conf: dict[str, str], elsewhere: bool
) -> None:
    store = opened(**conf)
    path = tmp_path / "drawn.nii.gz"
    write_volume(replace(study.label, array=(study.label.array == 1).astype(np.uint8)), path)
    store.save_label(study.series, str(path), "final", {})
    drawn = final(store, study)
    put(store, study, "AUTOMATIC", elsewhere=elsewhere)
    assert final(store, study) == drawn
    label = read_volume(Path(store.get_label_uri(study.series, "final")), label=True)
    np.testing.assert_array_equal(label.array, study.label.array == 1)


@pytest.mark.parametrize("kind", ["MANUAL", "SEMIAUTOMATIC", "", ["AUTOMATIC", "SEMIAUTOMATIC"]])
def test_what_a_person_had_a_hand_in_is_a_finished_label(
    opened: Opener, study: Study, kind: str | list[str]
) -> None:
    """Drawn, corrected, in part corrected, or by a tool that leaves the type out."""
    store = opened()
    assert put(store, study, kind) == final(store, study)


def test_only_the_structures_of_the_model_are_looked_at(opened: Opener, study: Study) -> None:
    store = opened({"core": 1})
    put(store, study, ["AUTOMATIC", "MANUAL"])
    assert store.status()["completed"] == 0
    kept = put(store, study, ["MANUAL", "AUTOMATIC"], hour=8)
    assert final(store, study) == kept


def test_a_hospital_can_take_them_knowingly(opened: Opener, study: Study) -> None:
    """``--conf automatic_labels true``: the newest counts where no person drew any."""
    store = opened(automatic_labels="true")
    put(store, study, "AUTOMATIC", hour=8, value=1)
    newest = put(store, study, "AUTOMATIC", hour=9, value=2)
    assert final(store, study) == newest
    assert store.get_label_info(study.series, "final")["automatic"] is True
    assert [c.series for c in store.trainable().cases] == [study.series]
    drawn = put(store, study, "MANUAL", hour=7)
    assert final(store, study) == drawn
    assert store.get_label_info(study.series, "final")["automatic"] is False
