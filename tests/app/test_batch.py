"""A batch ends with what has no mask: of a long one only the last lines are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import pytest

from segunlearn.app.batch import BatchInfer
from segunlearn.app.datastores import StudiesDatastore
from segunlearn.errors import GeometryError


class Images:
    """Forty images of a datastore."""

    def list_images(self) -> list[str]:
        return [f"{n:02d}" for n in range(40)]


def test_what_has_no_mask_is_told_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of the first failed; the task was DONE, and its last lines were of the others."""

    def infer(asked: dict[str, Any], _: object) -> dict[str, Any]:
        if asked["image"] in ("03", "05"):
            raise GeometryError(f"series {asked['image']} misses 1 of 36 slices.")
        return {"file": str(tmp_path / "mask"), "label": asked["image"]}

    caplog.set_level(logging.INFO)
    done = BatchInfer()({"images": "all"}, cast("StudiesDatastore", Images()), infer)
    assert [i for i, found in done.items() if "error" in found] == ["03", "05"]
    assert [r.getMessage() for r in caplog.records[-3:]] == [
        "2 of 40 images have no mask:",
        "image 4: series 03 misses 1 of 36 slices.",
        "image 6: series 05 misses 1 of 36 slices.",
    ]
