"""Every real series and object through the app: used, or refused with a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app_sources import LABELS, TINY, publish_tiny
from segunlearn.app.application import SegUnlearnApp
from segunlearn.errors import SegUnlearnError
from segunlearn.volumes import read_volume

pytestmark = [pytest.mark.data, pytest.mark.slow]


def test_every_real_series_is_segmented_or_refused(data_dir: Path, tmp_path: Path) -> None:
    coarse = replace(TINY, spacing=(8.0, 8.0, 8.0))  # the images are large, the network is not
    publish_tiny(tmp_path / "home", config=coarse)
    conf = {"home": str(tmp_path / "home"), "modalities": "CT,MR,SM,SR,SEG,PT,OT"}
    app = SegUnlearnApp(str(tmp_path), str(data_dir / "dicom"), conf)
    used: list[str] = []
    refused: list[SegUnlearnError] = []
    for image_id in app.datastore().list_images():
        try:
            done = app.infer({"model": TINY.name, "image": image_id})
        except SegUnlearnError as error:
            refused.append(error)
            continue
        mask = read_volume(Path(done["file"]), label=True)
        image = read_volume(Path(app.datastore().get_image_uri(image_id)))
        assert mask.same_grid(image)
        used.append(image_id)
        Path(done["file"]).unlink()
    app.records.store.close()
    assert len(used) >= 6
    assert refused  # the whole-slide and report objects
    assert all(400 <= error.http_status < 500 and len(str(error)) > 40 for error in refused)
    assert set(done["params"]["label_names"]) == set(LABELS)
