"""Sealed deposits: opened by all keys of their requests, unchanged, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from segunlearn.adapters.deposit import Content, Deposit, Deposits, Entry
from segunlearn.adapters.keys import KeyStore
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError

RUN, OTHER_RUN = "a" * 32, "b" * 32
ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32
REPLACED_BY = "c" * 64
WEIGHTS = b"old weights " * 20
ADAPTER = b"adapter"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENTS = (
    Content("v0001", "weights", sha(WEIGHTS), WEIGHTS, "active"),
    Content("v0002", "adapter", "d" * 64, ADAPTER, "available"),
)


def at(root: Path) -> Deposits:
    deposits = Deposits(root / "deposits", KeyStore(root / "keys"))
    for request_id in (ONE, TWO, THREE):
        deposits.keys.create(request_id)
    return deposits


def seal(deposits: Deposits, deposit_id: str = RUN, **changes: Any) -> Deposit:
    options: dict[str, Any] = {
        "model": "segmentation",
        "requests": [TWO, ONE],
        "replaced_by": REPLACED_BY,
        "contents": CONTENTS,
    }
    return deposits.seal(deposit_id, **{**options, **changes})


@pytest.fixture
def deposits(tmp_path: Path) -> Deposits:
    return at(tmp_path)


def refused(deposits: Deposits, deposit_id: str = RUN, version: str = "v0001") -> bool:
    """Whether the deposit neither opens nor says that it would."""
    try:
        deposits.open(deposit_id, version)
    except IntegrityError:
        return not deposits.is_openable(deposit_id)
    return False


# seal and open


def test_what_was_sealed_is_opened(deposits: Deposits) -> None:
    deposit = seal(deposits)

    assert deposits.open(RUN, "v0001") == WEIGHTS
    assert deposits.open(RUN, "v0002") == ADAPTER
    assert deposits.is_openable(RUN)
    assert deposit == deposits.get(RUN)
    assert (deposit.deposit_id, deposit.model) == (RUN, "segmentation")
    assert deposit.requests == (ONE, TWO)
    assert deposit.replaced_by == REPLACED_BY
    assert deposit.entries == (
        Entry("v0001", "weights", sha(WEIGHTS), len(WEIGHTS), "active"),
        Entry("v0002", "adapter", "d" * 64, len(ADAPTER), "available"),
    )
    assert datetime.fromisoformat(deposit.created).utcoffset() == timedelta(0)


def test_the_files_are_what_the_format_says(deposits: Deposits) -> None:
    """Opened by hand: RFC 5869 from HMAC alone, AES-256-GCM, nonce first, tag last."""

    def mac(key: bytes, text: bytes) -> bytes:
        code = hmac.HMAC(key, hashes.SHA256())
        code.update(text)
        return code.finalize()

    seal(deposits)
    folder = deposits.root / RUN
    assert sorted(p.name for p in folder.iterdir()) == [
        "deposit.json",
        "v0001.sealed",
        "v0002.sealed",
    ]
    manifest = json.loads((folder / "deposit.json").read_text())
    assert manifest["format"] == 1
    extracted = mac(bytes(32), deposits.keys.get(ONE) + deposits.keys.get(TWO))
    key = mac(extracted, b"segunlearn deposit 1 " + RUN.encode() + b"\x01")
    sealed = (folder / "v0001.sealed").read_bytes()
    bound = json.dumps({**manifest, "entry": "v0001"}, sort_keys=True, separators=(",", ":"))

    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], bound.encode()) == WEIGHTS
    assert len(sealed) == 12 + len(WEIGHTS) + 16


def test_nothing_of_the_content_is_readable(deposits: Deposits) -> None:
    seal(deposits)
    for path in deposits.root.rglob("*"):
        assert path.is_dir() or b"weights " not in path.read_bytes()
    assert stat.S_IMODE(deposits.root.stat().st_mode) == 0o700


def test_a_nonce_is_never_used_twice(deposits: Deposits) -> None:
    contents = [Content(f"v{n:04d}", "adapter", "d" * 64, b"", "retired") for n in range(1, 31)]
    seal(deposits, contents=contents)

    nonces = {p.read_bytes()[:12] for p in deposits.root.rglob("*.sealed")}

    assert len(nonces) == 30


@settings(max_examples=10)
@given(payload=st.binary(max_size=2000))
def test_any_bytes_come_back(tmp_path_factory: pytest.TempPathFactory, payload: bytes) -> None:
    deposits = at(tmp_path_factory.mktemp("any"))
    seal(deposits, contents=[Content("v0001", "weights", sha(payload), payload, "active")])
    assert deposits.open(RUN, "v0001") == payload


# keys


@pytest.mark.parametrize("purged", [ONE, TWO])
def test_the_first_purge_closes_it_for_all_its_requests(deposits: Deposits, purged: str) -> None:
    seal(deposits)
    seal(deposits, OTHER_RUN, requests=[THREE])

    deposits.keys.destroy(purged)

    for version in ("v0001", "v0002"):
        with pytest.raises(NotFoundError, match=f"{purged}.*destroyed"):
            deposits.open(RUN, version)
    assert not deposits.is_openable(RUN)
    assert deposits.get(RUN).requests == (ONE, TWO), "what it was can still be said"
    assert deposits.open(OTHER_RUN, "v0001") == WEIGHTS, "others are not touched"

    deposits.keys.create(purged)
    assert refused(deposits), "a new key is not the old one"


def test_without_a_key_nothing_is_sealed(deposits: Deposits) -> None:
    deposits.keys.destroy(ONE)
    with pytest.raises(NotFoundError, match=ONE):
        seal(deposits)
    assert deposits.all() == []
    assert not list(deposits.root.rglob("*.sealed"))


def test_keys_of_another_store_do_not_open(deposits: Deposits, tmp_path: Path) -> None:
    seal(deposits)
    stranger = at(tmp_path / "stranger")
    assert refused(Deposits(deposits.root, stranger.keys))


def test_each_deposit_has_its_own_key(deposits: Deposits) -> None:
    seal(deposits)
    seal(deposits, OTHER_RUN)
    shutil.copy(deposits.root / OTHER_RUN / "deposit.json", deposits.root / RUN)
    with pytest.raises(IntegrityError, match=OTHER_RUN):
        deposits.get(RUN)


# tampering


def test_any_changed_bit_of_a_sealed_file_is_refused(deposits: Deposits) -> None:
    contents = [Content("v0001", "adapter", "d" * 64, b"0123456789", "active")]
    seal(deposits, contents=contents)
    path = deposits.root / RUN / "v0001.sealed"
    sealed = path.read_bytes()
    assert len(sealed) == 12 + 10 + 16
    for index in range(len(sealed)):  # nonce, ciphertext, tag
        for bit in (0, 7):
            path.write_bytes(
                sealed[:index] + bytes([sealed[index] ^ 1 << bit]) + sealed[index + 1 :]
            )
            with pytest.raises(IntegrityError, match=r"v0001\.sealed"):
                deposits.open(RUN, "v0001")
    for cut in (b"", sealed[:5], sealed[:12], sealed[:20], sealed[:-1], sealed + b"\0"):
        path.write_bytes(cut)
        assert refused(deposits)
    path.unlink()
    assert refused(deposits)
    path.write_bytes(sealed)
    assert deposits.open(RUN, "v0001") == b"0123456789", "the oracle is not always no"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"model": "other"},
        {"deposit_id": OTHER_RUN},
        {"requests": [ONE, THREE]},
        {"requests": [ONE]},
        {"requests": [TWO, ONE]},
        {"requests": []},
        {"requests": ["../x"]},
        {"requests": 7},
        {"created": "2020-01-01T00:00:00+00:00"},
        {"replaced_by": "e" * 64},
        {"more": 1},
        {"model": None},
        {"entries": []},
        {"entries": {}},
    ],
)
def test_a_changed_manifest_is_refused(deposits: Deposits, change: dict[str, Any]) -> None:
    seal(deposits)
    path = deposits.root / RUN / "deposit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert refused(deposits)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v0003"},
        {"version": "../v0001"},
        {"version": None},
        {"kind": "adapter"},
        {"sha256": "e" * 64},
        {"size": 1},
        {"size": float(len(WEIGHTS))},
        {"state": "retired"},
        {"more": 1},
    ],
)
@pytest.mark.parametrize("asked", [0, 1])
def test_a_changed_entry_closes_all_entries(
    deposits: Deposits, change: dict[str, Any], asked: int
) -> None:
    seal(deposits)
    path = deposits.root / RUN / "deposit.json"
    manifest = json.loads(path.read_text())
    manifest["entries"][0].update(change)
    path.write_text(json.dumps(manifest))

    with pytest.raises((IntegrityError, NotFoundError)):
        deposits.open(RUN, CONTENTS[asked].version)
    assert not deposits.is_openable(RUN)


def test_any_changed_byte_of_the_manifest_is_refused_or_means_the_same(deposits: Deposits) -> None:
    deposit = seal(deposits, requests=[ONE], contents=CONTENTS[:1])
    path = deposits.root / RUN / "deposit.json"
    text = path.read_bytes()
    opened = 0
    for index in range(len(text)):
        path.write_bytes(text[:index] + bytes([text[index] ^ 1]) + text[index + 1 :])
        try:
            assert deposits.open(RUN, "v0001") == WEIGHTS
        except (IntegrityError, NotFoundError):  # NotFound: another request, another version
            continue
        assert deposits.get(RUN) == deposit
        opened += 1
    assert opened < 5, "spaces between the words"
    path.write_bytes(text)
    assert deposits.open(RUN, "v0001") == WEIGHTS


def test_files_swapped_inside_or_between_deposits_are_refused(deposits: Deposits) -> None:
    alike = [
        Content("v0001", "adapter", "d" * 64, b"same size 1", "active"),
        Content("v0002", "adapter", "d" * 64, b"same size 2", "active"),
    ]
    seal(deposits, contents=alike)
    seal(deposits, OTHER_RUN, contents=alike)
    first, second = (deposits.root / RUN / f"{c.version}.sealed" for c in alike)
    one, two = first.read_bytes(), second.read_bytes()

    first.write_bytes(two)
    second.write_bytes(one)
    assert refused(deposits)
    first.write_bytes((deposits.root / OTHER_RUN / "v0001.sealed").read_bytes())
    assert refused(deposits)
    shutil.rmtree(deposits.root / RUN)
    shutil.copytree(deposits.root / OTHER_RUN, deposits.root / RUN)
    assert refused(deposits), "a whole folder under another name"
    assert deposits.open(OTHER_RUN, "v0001") == b"same size 1"


# what is there


def test_deposits_are_found_newest_first(deposits: Deposits) -> None:
    assert deposits.all() == []
    assert deposits.of_request(ONE) == []
    names = ["f" * 32, "0" * 32, "7" * 32]
    made = [
        seal(deposits, name, requests=[ONE, r])
        for name, r in zip(names, [TWO, ONE, THREE], strict=True)
    ]
    (deposits.root / "notes").mkdir()

    assert deposits.all() == made[::-1]
    assert deposits.of_request(ONE) == made[::-1]
    assert deposits.of_request(TWO) == [made[0]]
    assert deposits.of_request("9" * 32) == []


def test_unknown_names_are_said(deposits: Deposits) -> None:
    for action in (deposits.get, deposits.is_openable):
        with pytest.raises(NotFoundError, match=RUN):
            action(RUN)
    seal(deposits)
    with pytest.raises(NotFoundError, match=r"v0009.*v0001, v0002"):
        deposits.open(RUN, "v0009")
    for name in ("..", "A" * 32, ""):
        for action in (deposits.get, deposits.destroy, deposits.of_request):
            with pytest.raises(InvalidInputError):
                action(name)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""},
        {"requests": []},
        {"requests": [ONE, "x"]},
        {"replaced_by": "c" * 63},
        {"contents": []},
        {"contents": [CONTENTS[0], CONTENTS[0]]},
        {"contents": [Content("../v1", "adapter", "d" * 64, b"", "active")]},
        {"contents": [Content("v0001", "pickle", "d" * 64, b"", "active")]},  # type: ignore[arg-type]
        {"contents": [Content("v0001", "adapter", "D" * 64, b"", "active")]},
        {"contents": [Content("v0001", "adapter", "d" * 64, b"", "served")]},
    ],
)
def test_what_cannot_be_sealed_is_said(deposits: Deposits, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        seal(deposits, **changes)
    assert deposits.all() == []


def test_weights_that_are_not_the_version_are_not_sealed(deposits: Deposits) -> None:
    with pytest.raises(IntegrityError, match="v0001"):
        seal(deposits, contents=[Content("v0001", "weights", "d" * 64, WEIGHTS, "active")])


# again, and stopped


def test_sealing_again_gives_what_is_there(deposits: Deposits) -> None:
    first = seal(deposits)
    before = (deposits.root / RUN / "v0001.sealed").read_bytes()

    assert seal(deposits, requests=(ONE, TWO, ONE), contents=CONTENTS[::-1]) == first
    assert (deposits.root / RUN / "v0001.sealed").read_bytes() == before
    deposits.keys.destroy(ONE)
    assert seal(deposits) == first, "it needs no key to be there"


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"requests": [ONE]},
        {"replaced_by": "e" * 64},
        {"contents": CONTENTS[:1]},
        {"contents": [Content("v0001", "weights", sha(b"x"), b"x", "active"), CONTENTS[1]]},
    ],
)
def test_sealing_something_else_under_one_id_is_refused(
    deposits: Deposits, change: dict[str, Any]
) -> None:
    seal(deposits)
    with pytest.raises(ConflictError, match=RUN):
        seal(deposits, **change)
    assert deposits.open(RUN, "v0001") == WEIGHTS


def test_a_destroyed_deposit_is_gone(deposits: Deposits) -> None:
    deposits.destroy(RUN)
    seal(deposits)
    seal(deposits, OTHER_RUN)
    (deposits.root / RUN / "deposit.json").write_text("damaged")

    deposits.destroy(RUN)
    deposits.destroy(RUN)

    assert [d.deposit_id for d in deposits.all()] == [OTHER_RUN]
    assert not (deposits.root / RUN).exists()


class Failure(BaseException):
    """Stops a call as a kill would."""


def stop_at(patch: pytest.MonkeyPatch, index: int, *, after: bool) -> list[str]:
    """Stop at the call number ``index`` of those that reach the disk, and let none follow."""
    calls: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) > index + 1 or (len(calls) == index + 1 and not after):
                raise Failure(name)
            result = real(*arguments, **options)
            if len(calls) == index + 1:
                raise Failure(name)
            return result

        patch.setattr(os, name, call)

    for name in ("replace", "fsync", "unlink", "rmdir"):
        wrap(name)
    return calls


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_seal_that_is_stopped_left_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    there = []
    for index in range(100):
        deposits = at(tmp_path / f"{index}")
        with monkeypatch.context() as patch:
            stop_at(patch, index, after=after)
            try:
                seal(deposits)
                break
            except Failure:
                pass
        found = deposits.all()
        assert all(deposits.is_openable(d.deposit_id) for d in found)
        there.append(len(found))
        again = seal(deposits)
        assert found in ([], [again])
        assert deposits.open(RUN, "v0001") == WEIGHTS
        assert sorted(p.name for p in deposits.root.iterdir()) == [".lock", RUN]
    assert len(there) > 10, "three files, the folder, each flushed and renamed"
    assert there == sorted(there)
    assert set(there) == {0, 1}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_destruction_that_is_stopped_left_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    there = []
    for index in range(100):
        deposits = at(tmp_path / f"{index}")
        seal(deposits)
        with monkeypatch.context() as patch:
            stop_at(patch, index, after=after)
            try:
                deposits.destroy(RUN)
                break
            except Failure:
                pass
        there.append(len(deposits.all()))
        assert all(deposits.is_openable(d.deposit_id) for d in deposits.all())
        deposits.destroy(RUN)
        assert [p.name for p in deposits.root.iterdir()] == [".lock"]
    assert there == sorted(there, reverse=True)
    assert there[-1] == 0
    assert len(there) > 5


KILLED_AT_A_LINE = """
import os, sys
from pathlib import Path
from segunlearn.adapters.deposit import Content, Deposits
from segunlearn.adapters.keys import KeyStore

folder = Path(sys.argv[1])
content = Content("v0002", "adapter", "d" * 64, b"adapter", "active")
for number in range(0, 10_000, 2):  # a state of the disk lasts for longer than two lines
    root = folder / f"{number:05d}"
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: None  # a killed process loses nothing it has written
        keys = KeyStore(root / "keys")
        lines = 0
        def trace(frame, event, argument):
            global lines
            name = frame.f_globals.get("__name__", "")
            ours = "segunlearn.adapters", "segunlearn.records.durable", "segunlearn.replacing"
            if not name.startswith(ours):
                return None
            if event == "line":
                if lines == number:
                    os._exit(9)  # no handler, no finally, no flush: as kill -9
                lines += 1
            return trace
        sys.settrace(trace)
        keys.create("1" * 32)
        Deposits(root / "deposits", keys).seal(
            "a" * 32, model="segmentation", requests=["1" * 32], replaced_by="c" * 64,
            contents=[content],
        )
        keys.destroy("1" * 32)
        sys.settrace(None)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        sys.exit()
"""


def test_killed_while_making_sealing_and_purging(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_AT_A_LINE, str(tmp_path)], check=True, timeout=120)

    roots = sorted(tmp_path.iterdir())
    assert len(roots) > 100, "the trace saw the lines"
    stages = []
    for root in roots:
        keys = KeyStore(root / "keys")
        deposits = Deposits(root / "deposits", keys)
        sealed = bool(deposits.all())
        if sealed and keys.has(ONE):
            assert deposits.open(RUN, "v0002") == ADAPTER
        elif sealed:
            assert not deposits.is_openable(RUN)
        stages.append((sealed, sealed and not keys.has(ONE)))
        keys.destroy(ONE)
        assert not list((root / "keys").glob("*.key"))
    assert stages == sorted(stages), "nothing, then sealed, then purged"
    assert set(stages) == {(False, False), (True, False), (True, True)}
