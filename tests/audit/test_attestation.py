"""A signed audit is found changed by any byte, offline, with the public key alone."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from segunlearn.audit.attestation import (
    PAYLOAD_TYPE,
    create_keys,
    key_id,
    read_private_key,
    read_public_key,
    sign,
    statement,
    verify,
)
from segunlearn.errors import IntegrityError, InvalidInputError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DIGEST = hashlib.sha256(b"weights").hexdigest()
STATEMENT = statement({"candidate": DIGEST}, {"verdict": "passed", "words": "größer ≥ 0"})
ENVELOPE = sign(STATEMENT, KEY)


def test_what_was_signed_is_read_back() -> None:
    assert verify(ENVELOPE, KEY.public_key()) == STATEMENT


def test_the_envelope_is_dsse_as_others_check_it() -> None:
    """The signature by the letter of the specification, without our code."""
    outer = json.loads(ENVELOPE)
    body = base64.b64decode(outer["payload"])
    kind = outer["payloadType"]
    assert kind == "application/vnd.in-toto+json"
    encoded = f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body
    KEY.public_key().verify(base64.b64decode(outer["signatures"][0]["sig"]), encoded)
    inner = json.loads(body)
    assert inner["_type"] == "https://in-toto.io/Statement/v1"
    assert inner["subject"] == [{"name": "candidate", "digest": {"sha256": DIGEST}}]


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(place: int, change: int) -> None:
    changed = bytearray(ENVELOPE)
    changed[place] ^= change
    with pytest.raises(IntegrityError):
        verify(bytes(changed), KEY.public_key())


def test_really_every_byte() -> None:
    for place in range(len(ENVELOPE)):
        changed = bytearray(ENVELOPE)
        changed[place] ^= 1
        with pytest.raises(IntegrityError):
            verify(bytes(changed), KEY.public_key())


@given(st.binary(max_size=40), st.integers(0, len(ENVELOPE)))
def test_nothing_can_be_put_in_or_left_out(more: bytes, place: int) -> None:
    for changed in (ENVELOPE[:place] + more + ENVELOPE[place:], ENVELOPE[:place], more):
        if changed != ENVELOPE:
            with pytest.raises(IntegrityError):
                verify(changed, KEY.public_key())


def test_another_key_or_kind_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(IntegrityError):
        verify(ENVELOPE, other.public_key())
    for kind in ("_type", "predicateType"):
        with pytest.raises(IntegrityError, match="not the statement of an audit"):
            verify(sign({**STATEMENT, kind: "other"}, KEY), KEY.public_key())
    swapped = ENVELOPE.replace(PAYLOAD_TYPE.encode(), b"text/plain")
    with pytest.raises(IntegrityError, match="another kind"):
        verify(swapped, KEY.public_key())


def test_artefacts_are_checked_by_their_digest(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    verify(ENVELOPE, KEY.public_key(), {"candidate": weights})
    with pytest.raises(IntegrityError, match="does not speak of"):
        verify(ENVELOPE, KEY.public_key(), {"report.html": weights})
    weights.write_bytes(b"weightz")
    with pytest.raises(IntegrityError, match="not the one that was audited"):
        verify(ENVELOPE, KEY.public_key(), {"candidate": weights})


def test_keys_are_kept_for_the_owner_and_never_overwritten(tmp_path: Path) -> None:
    private, public = tmp_path / "keys" / "audit.key", tmp_path / "keys" / "audit.pub"
    create_keys(private, public)
    assert private.stat().st_mode & 0o777 == 0o600
    key = read_private_key(private)
    assert key_id(read_public_key(public)) == key_id(key.public_key())
    before = private.read_bytes()
    with pytest.raises(InvalidInputError, match="there is a key already"):
        create_keys(private, public)
    assert private.read_bytes() == before
    assert {p.name for p in private.parent.iterdir()} == {"audit.key", "audit.pub"}
    private.chmod(0o644)
    with pytest.raises(InvalidInputError, match="can be read by others"):
        read_private_key(private)


def test_wrong_keys_and_digests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.pem"
    for read in (read_private_key, read_public_key):
        with pytest.raises(InvalidInputError, match="no readable"):
            read(path)
    other = X25519PrivateKey.generate()
    path.write_bytes(
        other.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    with pytest.raises(InvalidInputError, match="no Ed25519 key"):
        read_private_key(path)
    for subjects in ({}, {"a": "00"}, {"a": DIGEST.upper()}):
        with pytest.raises(InvalidInputError):
            statement(subjects, {})
