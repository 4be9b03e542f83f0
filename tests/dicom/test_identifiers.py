from __future__ import annotations

import hashlib
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from segunlearn.dicom.identifiers import (
    KEY_BYTES,
    Pseudonyms,
    is_uid,
    load_or_create_key,
    validate_uid,
)
from segunlearn.errors import IntegrityError, InvalidIdentifierError, UnavailableError


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
def test_numbers_joined_by_dots_are_uids(components: list[int]) -> None:
    uid = ".".join(map(str, components))
    assert is_uid(uid) == (len(uid) <= 64)


def test_generated_uids_are_uids() -> None:
    assert all(is_uid(str(generate_uid())) for _ in range(50))


@pytest.mark.parametrize(
    "value",
    [
        *("", ".", "1.", ".1", "1..2", "1.02", "00", "1.2a", "1.2 ", "1.2\n", "../1.2", "1/2"),
        *("1" * 65, "１.２", None, 12, b"1.2"),
    ],
)
def test_what_is_no_uid(value: object) -> None:
    assert not is_uid(value)
    with pytest.raises(InvalidIdentifierError, match="not a valid SeriesInstanceUID"):
        validate_uid(value, what="SeriesInstanceUID")


@pytest.mark.parametrize("value", ["1.02", "00.1"])
def test_tolerance_lets_leading_zeros_through_and_nothing_else(value: str) -> None:
    assert validate_uid(value, strict=False) == value
    assert not is_uid(value + "/..", strict=False)


def test_a_pseudonym_is_the_start_of_the_hmac() -> None:
    key = bytes(range(32))
    expected = hmac.new(key, b"1.2.3", hashlib.sha256).hexdigest()[:12]
    assert Pseudonyms(key).of("1.2.3") == expected
    assert Pseudonyms(bytes(32)).of("1.2.3") != expected
    with pytest.raises(InvalidIdentifierError):
        Pseudonyms(b"short")


def test_a_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "home" / "site.key"
    key = load_or_create_key(path)
    assert len(key) == KEY_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_key(path) == key
    assert [p.name for p in path.parent.iterdir()] == ["site.key"]


def test_two_who_start_together_agree_on_the_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load_or_create_key, [tmp_path / "site.key"] * 16))
    assert len(keys) == 1


def test_a_damaged_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(b"half")
    with pytest.raises(IntegrityError, match="has 4"):
        load_or_create_key(path)
    assert path.read_bytes() == b"half"


def test_a_key_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be read or made"):
        load_or_create_key(tmp_path / "file" / "site.key")
