"""Files with flipped, lost and added bytes end in an answer or in an error of ours."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_sources import make_enhanced, make_series
from segunlearn.dicom.archive import open_archive
from segunlearn.dicom.folder import stored_frames
from segunlearn.dicom.segmentation import (
    describe_segmentation,
    read_segmentation,
    references_series,
    write_segmentation,
)
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import SegUnlearnError
from segunlearn.volumes import Volume

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]

SOURCE = make_series(shape=(6, 5, 4))
LABEL = Volume((SOURCE.array > 1000).astype(np.uint8), SOURCE.affine)


def encoded(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


SLICES = [encoded(d) for d in SOURCE.datasets]
ENHANCED = encoded(make_enhanced(SOURCE)[0])
SEG = encoded(write_segmentation(LABEL, SOURCE.datasets, {1: "liver"}))


def damaged(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(132, min(len(data), 2500))
        kind = rng.randrange(3)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.randrange(1, 9)]
        else:
            data[place:place] = rng.randbytes(rng.randrange(1, 5))
    return bytes(data)


def parsed(content: bytes) -> Dataset | None:
    try:
        return dcmread(BytesIO(content), force=True)
    except Exception:  # noqa: BLE001 - pydicom's own parser gave up: nothing reaches us
        return None


def uses(one: Dataset, enhanced: Dataset, seg: Dataset) -> list[Callable[[], object]]:
    series = [one, *map(parsed, SLICES[1:])]
    return [
        lambda: volume_from_datasets(series),
        lambda: write_segmentation(LABEL, series, {1: "liver"}),
        lambda: SiteKey.of(one),
        lambda: stored_frames(one),
        lambda: volume_from_datasets([enhanced]),
        lambda: stored_frames(enhanced),
        lambda: write_segmentation(LABEL, [enhanced], {1: "liver"}),
        lambda: read_segmentation(seg, SOURCE.datasets),
        lambda: describe_segmentation(seg),
        lambda: references_series(seg),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_damage_gives_no_other_error(seed: int) -> None:
    rng = random.Random(seed)
    used = 0
    for _ in range(25):
        files = [parsed(damaged(f, rng)) for f in (SLICES[0], ENHANCED, SEG)]
        if None in files:
            continue
        for use in uses(*files):  # type: ignore[arg-type]
            with suppress(SegUnlearnError):
                use()
                used += 1
    assert used > 0


def test_damaged_files_do_not_end_the_scan_of_a_folder(tmp_path: Path) -> None:
    rng = random.Random(4)
    (tmp_path / "studies").mkdir()
    for i, content in enumerate([*SLICES, ENHANCED, SEG] * 6):
        bad = i >= 6
        (tmp_path / "studies" / str(i)).write_bytes(damaged(content, rng) if bad else content)
    archive = open_archive(tmp_path / "studies", index_dir=tmp_path / "index")
    series = archive.list_series(modalities=())
    assert len(series) >= 3
    for record in series:
        uid = record.series_instance_uid
        for use in (archive.load_volume, archive.headers, archive.segmentations_of):
            with suppress(SegUnlearnError):
                use(uid)
        with suppress(SegUnlearnError):
            archive.load_label(uid, {1: "liver"})
