"""Keys of forget requests: one each, private, and gone when they are destroyed."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from segunlearn.adapters.keys import KeyStore
from segunlearn.errors import IntegrityError, InvalidInputError, NotFoundError, UnavailableError

ONE, TWO = "1" * 32, "2" * 32


class Failure(BaseException):
    """Stops a call as a kill would, without anybody handling it."""


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys")


def files(keys: KeyStore) -> list[str]:
    return sorted(p.name for p in keys.root.iterdir() if p.name != ".lock")


def test_each_request_has_its_own_random_key(keys: KeyStore, tmp_path: Path) -> None:
    assert not keys.has(ONE)
    assert not keys.root.exists(), "asking makes nothing"
    keys.create(ONE)
    keys.create(TWO)
    other = KeyStore(tmp_path / "others")
    other.create(ONE)

    found = {keys.get(ONE), keys.get(TWO), other.get(ONE)}

    assert len(found) == 3
    assert {len(key) for key in found} == {32}
    assert keys.has(ONE)
    assert (keys.root / f"{ONE}.key").read_bytes() == keys.get(ONE)


def test_an_existing_key_stays(keys: KeyStore) -> None:
    keys.create(ONE)
    before = keys.get(ONE)

    keys.create(ONE)

    assert keys.get(ONE) == before


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_reads_them(tmp_path: Path, umask: int) -> None:
    keys = KeyStore(tmp_path / "new" / "keys")
    before = os.umask(umask)
    try:
        keys.create(ONE)
    finally:
        os.umask(before)

    assert stat.S_IMODE(keys.root.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in keys.root.iterdir()} == {0o600}


def test_a_folder_that_others_can_enter_is_closed(keys: KeyStore) -> None:
    keys.root.mkdir(mode=0o755)

    keys.create(ONE)

    assert stat.S_IMODE(keys.root.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "request_id", ["", "1" * 31, "1" * 33, "A" * 32, "../" + "1" * 29, "ä" * 32]
)
@pytest.mark.parametrize("action", ["create", "get", "has", "destroy"])
def test_what_is_no_id_names_no_file(keys: KeyStore, action: str, request_id: str) -> None:
    with pytest.raises(InvalidInputError, match="forget request"):
        getattr(keys, action)(request_id)
    assert not keys.root.exists()


def test_a_missing_and_a_destroyed_key_cannot_be_told_apart(keys: KeyStore) -> None:
    keys.create(ONE)
    keys.create(TWO)
    two = keys.get(TWO)

    keys.destroy(ONE)

    for request_id in (ONE, "3" * 32):
        assert not keys.has(request_id)
        with pytest.raises(NotFoundError, match=f"{request_id}.*destroyed.*never made"):
            keys.get(request_id)
    assert files(keys) == [f"{TWO}.key"]
    assert keys.get(TWO) == two, "the others stay"
    keys.destroy(ONE)
    keys.destroy("3" * 32)


def test_destroying_before_anything_was_made(keys: KeyStore) -> None:
    keys.destroy(ONE)
    assert not keys.root.exists()


def test_the_bytes_are_overwritten_where_they_lie(keys: KeyStore, tmp_path: Path) -> None:
    keys.create(ONE)
    witness = tmp_path / "witness"
    witness.hardlink_to(keys.root / f"{ONE}.key")  # the same bytes on the disk

    keys.destroy(ONE)

    assert witness.read_bytes() == bytes(32)


def test_a_key_made_anew_is_another_one(keys: KeyStore) -> None:
    keys.create(ONE)
    before = keys.get(ONE)
    keys.destroy(ONE)

    keys.create(ONE)

    assert keys.get(ONE) != before


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 31, b"x" * 33, b"x" * 64])
def test_a_damaged_key_is_said_and_can_be_destroyed(keys: KeyStore, content: bytes) -> None:
    keys.create(ONE)
    path = keys.root / f"{ONE}.key"
    path.write_bytes(content)

    for action in (keys.get, keys.has, keys.create):
        with pytest.raises(IntegrityError, match=f"{ONE}.*32 bytes.*{len(content)}"):
            action(ONE)
    assert path.read_bytes() == content, "nothing is put in its place"

    keys.destroy(ONE)
    assert files(keys) == []


def stop_at(patch: pytest.MonkeyPatch, index: int, *, after: bool) -> list[str]:
    """Stop at the call number ``index`` of those that reach the disk."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if len(calls) > index:  # whatever cleans up is not there after a kill
                raise Failure(name)
            calls.append(name)
            if len(calls) > index and not after:
                raise Failure(name)
            result = real(*arguments, **options)
            if len(calls) > index:
                raise Failure(name)
            return result

        patch.setattr(os, name, call)

    for name in ("replace", "fsync", "unlink"):
        wrap(name)
    return calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_create_that_is_stopped_made_a_whole_key_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    made = []
    for index in range(20):
        keys = KeyStore(tmp_path / f"{index}")
        with monkeypatch.context() as patch:
            stop_at(patch, index, after=after)
            try:
                keys.create(ONE)
                break
            except Failure:
                pass
        made.append(keys.has(ONE))
        before = keys.get(ONE) if keys.has(ONE) else None
        keys.create(ONE)
        assert before in (None, keys.get(ONE)), "what was there stays"
        assert files(keys) == [f"{ONE}.key"], "no part is left"
    assert made == sorted(made)
    assert set(made) == {False, True}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_destruction_that_is_stopped_leaves_the_key_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    stopped = []
    for index in range(20):
        keys = KeyStore(tmp_path / f"{index}")
        keys.create(ONE)
        before = keys.get(ONE)
        with monkeypatch.context() as patch:
            calls = stop_at(patch, index, after=after)
            try:
                keys.destroy(ONE)
                break
            except Failure:
                stopped.append(calls[-1])
        # already written over when the first flush begins, so never a wrong key and never a half
        assert not keys.has(ONE)
        with pytest.raises(NotFoundError):
            keys.get(ONE)
        left = [p.read_bytes() for p in keys.root.iterdir()]
        assert before not in left
        if index % 2:
            keys.create(ONE)
            assert any(keys.get(ONE)), "zeros are never taken for a key"
        keys.destroy(ONE)
        assert files(keys) == []
    assert stopped == ["fsync", "unlink", "fsync"], "overwritten, removed, both on the disk"


def test_many_that_make_one_key_agree(keys: KeyStore) -> None:
    seen: list[bytes] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        keys.create(ONE)
        seen.append(keys.get(ONE))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(UnavailableError, match="key folder"):
        KeyStore(tmp_path / "keys").create(ONE)
