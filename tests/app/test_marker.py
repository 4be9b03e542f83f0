"""The marker model: marks the loaded image, and leaves what was drawn as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

from segunlearn.app.forgetting import Mark, Marked
from segunlearn.app.marker import ForgetMarkerTask, has_forget_segment
from segunlearn.errors import ForbiddenError, InvalidInputError, NotFoundError, UnavailableError
from segunlearn.volumes import Volume, write_volume

AFFINE = np.array([[-2.0, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
REASONS = ["other", "consent_withdrawn"]


class Marks:
    def __init__(self) -> None:
        self.made: list[tuple[str, Mark, str, str, bool]] = []

    def __call__(self, image_id: str, mark: Mark, reason: str, actor: str, admin: bool) -> Marked:
        if image_id == "unknown":
            raise NotFoundError("no such image")
        if image_id == "down":
            raise UnavailableError("the store is down")
        self.made.append((image_id, mark, reason, actor, admin))
        return Marked("f" * 32, "requested", True, "The study is marked.")


@pytest.fixture
def marks() -> Marks:
    return Marks()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "1.2.3.nii.gz"
    write_volume(Volume(np.ones((4, 5, 6), np.float32), AFFINE), path)
    return path


@pytest.fixture
def task(marks: Marks, tmp_path: Path) -> ForgetMarkerTask:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return ForgetMarkerTask(marks, REASONS, lambda: folder)


def request(image: Path, **changes: Any) -> dict[str, Any]:
    roles = frozenset({"monailabel-annotator"})
    return {"model": "forget_study", "image": image, "image_id": "1.2.3", "roles": roles, **changes}


def test_what_clients_render(task: ForgetMarkerTask) -> None:
    info = task.info()
    assert info["labels"] == []  # with a label, Slicer would empty that segment
    assert str(info["type"].value) == "segmentation"
    assert info["config"] == {"mark": ["forget", "keep"], "reason": REASONS}
    # Slicer collapses a list to a text only if it holds texts
    assert all(isinstance(v, str) for values in info["config"].values() for v in values)
    assert task.is_valid()


def test_it_marks_and_answers_with_an_empty_mask_of_the_same_size(
    task: ForgetMarkerTask, marks: Marks, image: Path
) -> None:
    file, params = task(
        request(image, mark="forget", reason="consent_withdrawn", actor="rad1", client_id="x")
    )
    assert marks.made == [("1.2.3", "forget", "consent_withdrawn", "rad1", False)]
    assert file.endswith(".nrrd")
    assert not file.endswith(".seg.nrrd")
    mask, header = nrrd.read(file)
    assert mask.shape == (4, 5, 6)
    assert not mask.any()
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE
    np.testing.assert_allclose(header["space origin"], lps[:3, 3])
    np.testing.assert_allclose(np.asarray(header["space directions"]), lps[:3, :3].T)
    assert params["request_id"] == "f" * 32
    assert "label_names" not in params  # it would override labels in Slicer
    assert params["message"] == "The study is marked."


def test_stock_clients_that_send_no_options(
    task: ForgetMarkerTask, marks: Marks, image: Path
) -> None:
    task(request(image))
    assert marks.made == [("1.2.3", "forget", "other", "", False)]


def test_roles(task: ForgetMarkerTask, marks: Marks, image: Path) -> None:
    for roles in (frozenset(), frozenset({"monailabel-user"}), None):
        with pytest.raises(ForbiddenError):
            task(request(image, roles=roles))
    assert marks.made == []
    task(request(image, roles=frozenset({"monailabel-admin"})))
    assert marks.made[0][-1] is True


def test_keep(task: ForgetMarkerTask, marks: Marks, image: Path) -> None:
    task(request(image, mark="keep"))
    assert marks.made[0][1] == "keep"


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": None},
        {"image_id": ""},
        {"session": {"id": 1}},
        {"mark": "delete"},
        {"mark": ["forget"]},
        {"reason": "'; DROP TABLE forget_request"},
        {"reason": 7},
    ],
)
def test_what_is_refused_marks_nothing(
    task: ForgetMarkerTask, marks: Marks, image: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError):
        task(request(image, **changes))
    assert marks.made == []


@pytest.mark.parametrize("image_id", ["unknown", "down"])
def test_a_mark_that_fails_leaves_no_file(
    task: ForgetMarkerTask, image: Path, tmp_path: Path, image_id: str
) -> None:
    with pytest.raises((NotFoundError, UnavailableError)):
        task(request(image, image_id=image_id))
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("value", [2, 300])
def test_viewers_that_replace_their_labelmap_get_the_saved_label(
    marks: Marks, image: Path, tmp_path: Path, value: int
) -> None:
    saved = np.zeros((4, 5, 6), np.uint16)
    saved[1, 2, 3] = value
    write_volume(Volume(saved, AFFINE), tmp_path / "label.nii.gz")
    task = ForgetMarkerTask(marks, REASONS, lambda: tmp_path, lambda _: tmp_path / "label.nii.gz")
    file, _ = task(request(image, result_compress=False))
    mask, header = nrrd.read(file)
    assert header["encoding"] == "raw"
    np.testing.assert_array_equal(mask, saved)
    file, _ = task(request(image))
    assert not nrrd.read(file)[0].any()


@pytest.mark.parametrize(
    ("label_info", "expected"),
    [
        ([{"name": "liver", "idx": 1}, {"name": "FORGET", "idx": 2}], True),
        ([{"name": " FORGET ", "idx": 2}], True),
        ([{"name": "forget"}], False),
        ([{"idx": 1}, 7, None, {"name": 3}], False),
        ([], False),
        ({"name": "FORGET"}, False),
        ("FORGET", False),
        (None, False),
    ],
)
def test_segment_named_forget(label_info: Any, expected: bool) -> None:
    assert has_forget_segment(label_info) is expected
