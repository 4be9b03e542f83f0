"""Notes of clients: nothing is lost between processes, nothing leaves the folder."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segunlearn.app.datastores.index import CachedIndex
from segunlearn.app.datastores.infos import MAX_INFO_LEVELS, Infos, check_name, check_tag
from segunlearn.errors import InvalidInputError, UnavailableError

_WRITER = """
import sys
from pathlib import Path
from segunlearn.app.datastores.infos import Infos
root, worker = Path(sys.argv[1]), sys.argv[2]
for i in range(15):
    Infos(root / "infos", root / "locks").update_image("one", {f"{worker}-{i}": i})
"""


def test_two_processes_lose_no_update(tmp_path: Path) -> None:
    """The stock datastore_v2.json lost most of them."""
    workers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(w)]) for w in range(2)
    ]
    assert [w.wait(timeout=60) for w in workers] == [0, 0]
    assert len(Infos(tmp_path / "infos", tmp_path / "locks").image("one")) == 30


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "a\\b", "/etc/passwd", "a..b", ".hidden", "a\0b", "x" * 300]
)
def test_names_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="not a usable name"):
        check_name(name)


@pytest.mark.parametrize("tag", ["", "..", "../../x", "a/b", "final.x", "a b", "é", "x" * 65])
def test_tags_that_are_paths_are_refused(tag: str) -> None:
    with pytest.raises(InvalidInputError, match="tag"):
        check_tag(tag)


def test_a_damaged_note_is_ignored_and_replaced(tmp_path: Path) -> None:
    infos = Infos(tmp_path / "infos", tmp_path / "locks")
    infos.update_image("one", {"a": 1})
    (tmp_path / "infos" / "images" / "one.json").write_text("")
    assert infos.image("one") == {}
    infos.update_image("one", {"b": 2})
    assert infos.image("one") == {"b": 2}


def test_huge_and_odd_notes_are_refused(tmp_path: Path) -> None:
    infos = Infos(tmp_path / "infos", tmp_path / "locks")
    with pytest.raises(InvalidInputError, match="bytes"):
        infos.update_label("one", "final", {"a": "x" * 300_000})
    with pytest.raises(InvalidInputError, match="JSON"):
        infos.update_label("one", "final", {"a": float("nan")})
    assert infos.label("one", "final") == {}


def nested(levels: int) -> dict[str, object]:
    value: object = 1
    for _ in range(levels - 1):
        value = [value]
    return {"comment": value}


def test_notes_that_no_list_could_show_are_refused_and_those_on_the_disk_ignored(
    tmp_path: Path,
) -> None:
    infos = Infos(tmp_path / "infos", tmp_path / "locks")
    infos.update_image("one", nested(MAX_INFO_LEVELS))
    for levels in (MAX_INFO_LEVELS + 1, 5000):
        with pytest.raises(InvalidInputError, match="nested"):
            infos.update_image("one", nested(levels))
    assert infos.image("one") == nested(MAX_INFO_LEVELS)
    for text in ('{"a": ' + "[" * n + "]" * n + "}" for n in (MAX_INFO_LEVELS, 50_000)):
        (tmp_path / "infos" / "images" / "one.json").write_text(text)
        assert infos.image("one") == {}


def test_the_index_answers_at_once_and_never_misses_an_own_change() -> None:
    content = ["a"]
    reading = threading.Event()

    def read() -> list[str]:
        reading.set()
        time.sleep(0.05)
        return list(content)

    index = CachedIndex(read, seconds=0.0)
    assert index.get() == ["a"]
    content.append("b")
    index.invalidate()
    assert index.get() == ["a", "b"]
    content.append("c")  # someone else's: seen after a while, nobody waits
    reading.clear()
    started = time.monotonic()
    index.get()
    assert time.monotonic() - started < 0.04
    assert reading.wait(2)
    deadline = time.monotonic() + 2
    while index.get() != ["a", "b", "c"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert index.get() == ["a", "b", "c"]


def test_the_index_keeps_what_it_knows_while_the_source_is_away() -> None:
    answers = iter([["a"]])

    def read() -> list[str]:
        try:
            return next(answers)
        except StopIteration:
            raise UnavailableError("away") from None

    index = CachedIndex(read, seconds=0.0)
    assert index.get() == ["a"]
    for _ in range(3):
        assert index.get() == ["a"]
        time.sleep(0.02)
    with pytest.raises(UnavailableError):
        CachedIndex(read, seconds=0.0).get()
