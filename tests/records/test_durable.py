"""Files replaced whole: what is read after any stop is the old or the new content."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segunlearn.errors import IntegrityError
from segunlearn.records.durable import (
    read_json,
    sync_file,
    sync_folder,
    write_durably,
    write_json_durably,
)


class Syscalls:
    """Records ``os.fsync`` and ``os.replace`` in order and can fail at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> None:
        self.calls: list[tuple[str, str]] = []
        self._fail_at = fail_at
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            what = arguments[0]
            if name == "fsync":
                what = os.readlink(f"/proc/self/fd/{what}")  # noqa: PTH115 - a descriptor
            self.calls.append((name, Path(what).name))
            if len(self.calls) - 1 == self._fail_at:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks descriptors up in /proc")


def test_content_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"

    write_durably(path, b"old")
    write_durably(path, b"new")

    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file"], "nothing else is left"


@needs_proc
def test_content_is_on_the_disk_before_the_rename_and_the_rename_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    syscalls = Syscalls(monkeypatch)

    write_durably(path, b"content")

    (first, part), (second, renamed), (third, folder) = syscalls.calls
    assert (first, second, third) == ("fsync", "replace", "fsync")
    assert part == renamed
    assert part != "file"
    assert folder == tmp_path.name


@needs_proc
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_failing_disk_leaves_the_old_or_the_new_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        Syscalls(patch, fail_at=index)
        with pytest.raises(OSError, match="No space left"):
            write_durably(path, b"new")

    assert path.read_bytes() == (b"new" if index == 2 else b"old")
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "the part is cleared away"


@needs_proc
def test_file_and_folder_are_flushed_and_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    syscalls = Syscalls(monkeypatch)

    sync_file(tmp_path / "file")
    sync_folder(tmp_path)

    assert syscalls.calls == [("fsync", "file"), ("fsync", tmp_path.name)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_json_round_trip_is_sorted_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    data = {"b": [1, 2.5, None, True], "a": {"name": "Größe"}}

    write_json_durably(path, data)

    assert read_json(path) == data
    text = path.read_text(encoding="utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "Größe" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "file.json"
    write_json_durably(path, {"old": 1})

    with pytest.raises((TypeError, ValueError)):
        write_json_durably(path, {"new": value})

    assert json.loads(path.read_text()) == {"old": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"{} {}"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "v0001" / "manifest.json"
    path.parent.mkdir()
    path.write_bytes(content)

    with pytest.raises(IntegrityError, match=r"v0001/manifest\.json.*backup"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json")
