"""A series that has only half arrived is never kept as if it were whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from app_sources import SHAPE, make_study, write_dicom
from segunlearn.app.application import SegUnlearnApp
from segunlearn.errors import UnsupportedSeriesError
from segunlearn.volumes import read_volume


def test_the_rest_arrives_later(tmp_path: Path) -> None:
    """What was converted of the half is made anew; a gap in the middle is refused."""
    study = make_study(0)
    write_dicom(tmp_path / "all", [study])
    files = sorted((tmp_path / "all" / study.series).iterdir())
    place = tmp_path / "studies"
    place.mkdir()

    def arrive(*chosen: Path) -> None:
        for path in chosen:
            path.rename(place / path.name)
        app.datastore().archive.client.index.refresh(force=True)  # else it looks every 5 s
        app.datastore().refresh()

    for path in files[:8]:
        path.rename(place / path.name)
    conf = {"home": str(tmp_path / "home"), "labels": "core,shell", "refresh": "0"}
    app = SegUnlearnApp(str(tmp_path), str(place), conf)
    half = read_volume(Path(app.datastore().get_image_uri(study.series)))
    assert half.shape == (*SHAPE[:2], 8)
    arrive(*files[12:])  # four are missing in the middle
    with pytest.raises(UnsupportedSeriesError):
        app.datastore().get_image_uri(study.series)
    arrive(*files[8:12])
    whole = read_volume(Path(app.datastore().get_image_uri(study.series)))
    assert whole.shape == SHAPE
    assert (whole.array == study.image.array).all()
    app.records.store.close()
