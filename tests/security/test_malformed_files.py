"""Damaged and hostile files end in an answer or in an error of ours, within time and memory."""

from __future__ import annotations

import os
import signal
import struct
import time
import tracemalloc
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

import malformed_files
from app_sources import TINY, make_study, publish_tiny
from dicom_sources import make_series
from malformed_files import Sample, fuzz, nifti_samples
from segunlearn.app.infer import header_of, read_image
from segunlearn.app.models import ActiveModel
from segunlearn.dicom.archive import open_archive
from segunlearn.dicom.reading import read_dicom
from segunlearn.dicom.segmentation import write_segmentation
from segunlearn.errors import GeometryError, InvalidInputError, UnavailableError
from segunlearn.inference import Segmenter
from segunlearn.records.versions import VersionRegistry
from segunlearn.transforms import preprocess
from segunlearn.volumes import Volume

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")


def samples() -> list[Sample]:
    study, source = make_study(0), make_series(shape=(6, 5, 4))
    mask = Volume((source.array > 1000).astype(np.uint8), source.affine)
    seg = write_segmentation(mask, source.datasets, {1: "liver"})
    files = []
    for dataset in [*source.datasets, seg]:
        out = BytesIO()
        dataset.save_as(out, enforce_file_format=True)
        files.append(out.getvalue())
    whole = Volume(study.image.array.astype(np.int16), study.image.affine, "CT")
    return [*nifti_samples(whole, study.label), Sample("upload", files[:-1]),
            Sample("archive", files)]  # fmt: skip


def test_mutated_files() -> None:
    found = fuzz(samples(), range(120))
    assert found.faults == []
    assert sum(found.read.values()) + sum(found.refused.values()) == 120
    assert {"image", "label", "upload", "archive: volume"} <= set(found.read)
    assert len(found.refused) >= 6


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hangs, deaths, too much memory and other errors are all seen."""
    monkeypatch.setattr(malformed_files, "SECONDS", 1)
    for way, told in (
        (lambda *_: time.sleep(5), "a hang"),
        (lambda *_: os.kill(os.getpid(), signal.SIGKILL), "death by -9"),
        (lambda *_: bytes(1 << 30), "MemoryError"),
        (lambda *_: {}["x"], "KeyError"),
    ):
        monkeypatch.setattr(malformed_files, "read", way)
        found = fuzz(samples()[:1], range(2), megabytes=256)
        assert len(found.faults) == 2
        assert all(told in fault for fault in found.faults), found.faults


def test_an_element_that_claims_gigabytes(tmp_path: Path) -> None:
    """pydicom asks for what an element claims; two files of one upload, each read on its own."""
    content = BytesIO()
    make_series(shape=(6, 5, 4)).datasets[0].save_as(content, enforce_file_format=True)
    claim = b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", 0xFFFFFFF0) + b"few"
    (tmp_path / "00000.dcm").write_bytes(content.getvalue()[: 132 + 200] + claim)
    head = content.getvalue()
    (tmp_path / "00001.dcm").write_bytes(head[: head.index(b"\x08\x00")] + claim)
    for path in tmp_path.iterdir():
        tracemalloc.start()
        try:
            with suppress(InvalidInputError):
                read_dicom(path)
        finally:
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
            tracemalloc.stop()


@pytest.mark.parametrize("keep", [140, 150, 200, 400])
def test_an_upload_that_was_cut_off(tmp_path: Path, keep: int) -> None:
    content = BytesIO()
    make_series(shape=(6, 5, 4)).datasets[0].save_as(content, enforce_file_format=True)
    (tmp_path / "00000.dcm").write_bytes(content.getvalue()[:keep])
    header_of(tmp_path)
    with pytest.raises(InvalidInputError):
        read_image(tmp_path)


def test_a_number_that_no_database_holds_ends_no_scan(tmp_path: Path) -> None:
    source = make_series(shape=(6, 5, 4))
    for number, dataset in enumerate(source.datasets):
        dataset.InstanceNumber = "99999999999999999999" if number == 1 else number + 1
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    archive = open_archive(tmp_path, index_dir=tmp_path.with_name("index"))
    (series,) = archive.list_series(modalities=())
    assert len(archive.headers(series.series_instance_uid)) == 4


@pytest.mark.parametrize("spacing", [300.0, 1e6])
def test_a_spacing_of_another_unit_takes_no_memory(spacing: float) -> None:
    """A few thousand voxels would become a thousand million, in half a minute."""
    volume = Volume(np.zeros((35, 51, 35), np.float32), np.diag([1.0, spacing, spacing, 1.0]))
    with pytest.raises(GeometryError, match="unit of the spacing"):
        preprocess(volume, TINY)


def test_an_image_too_large_for_this_machine_now_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has no class of its own for a CPU without memory."""
    publish_tiny(tmp_path)
    model = ActiveModel(VersionRegistry(tmp_path / "models" / TINY.name))

    def allocate(*_: object, **__: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr(Segmenter, "predict", allocate)
    with pytest.raises(UnavailableError, match="not enough memory"):
        model.predict(make_study(0).image)
