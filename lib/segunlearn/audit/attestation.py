"""The signed audit: an in-toto Statement in a DSSE envelope, verified offline.

Formats: in-toto attestation framework, Statement v1; Dead Simple Signing Envelope v1.0.2, whose
signature covers the pre-authentication encoding ``"DSSEv1" SP len(type) SP type SP len(body) SP
body``; Ed25519 (RFC 8032). The subjects are the digests of what was audited and of its report, so
that a changed byte of either is found. What is signed are measurements; it is no certificate of a
proven bound.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from segunlearn.errors import IntegrityError, InvalidInputError
from segunlearn.records.durable import sync_folder, write_durably
from segunlearn.records.versions import file_sha256

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:segunlearn:audit:v1"


def create_keys(private: Path, public: Path) -> None:
    """Make a key pair as PEM files; the private one is readable by its owner alone (0600).

    Raises
    ------
    InvalidInputError
        The private key's file exists: a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    private.parent.mkdir(parents=True, exist_ok=True)
    part = private.with_name(f".{private.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, private)
        except FileExistsError as error:
            raise InvalidInputError(
                f"{private.name}: there is a key already, and what it signed needs it. Choose "
                "another file."
            ) from error
    finally:
        part.unlink(missing_ok=True)
    sync_folder(private.parent)
    write_durably(
        public,
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the signing key.

    Raises
    ------
    InvalidInputError
        No such file, no Ed25519 key, or a file that others may read.
    """
    try:
        mode = path.stat().st_mode & 0o777
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(f"{path.name}: is no readable private key ({error}).") from error
    if mode & 0o077:
        raise InvalidInputError(
            f"{path.name}: the signing key can be read by others (mode {mode:04o}). Make a new "
            "key, or at least: chmod 600."
        )
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInputError(f"{path.name}: is no Ed25519 key.")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read the verifying key.

    Raises
    ------
    InvalidInputError
        No such file, or no Ed25519 key.
    """
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInputError(f"{path.name}: is no readable public key ({error}).") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInputError(f"{path.name}: is no Ed25519 key.")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, hexadecimal; names the key and proves nothing."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def statement(subjects: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Make an in-toto Statement v1.

    Parameters
    ----------
    subjects
        Name to SHA-256, e.g. ``{"candidate": "…", "audit.json": "…"}``.
    predicate
        The audit: verdict, findings, figures, parameters; with pseudonyms only.

    Raises
    ------
    InvalidInputError
        No subject, or a digest that is no SHA-256.
    """
    if not subjects:
        raise InvalidInputError("an attestation needs at least one subject with its digest.")
    for name, digest in subjects.items():
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise InvalidInputError(f"the digest of {name!r} is no SHA-256 in lower-case hex.")
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": dict(predicate),
    }


def sign(content: Mapping[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Put a statement into a signed envelope.

    Returns
    -------
    bytes
        The envelope as JSON.
    """
    payload = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")
    envelope = {
        "payload": base64.standard_b64encode(payload).decode("ascii"),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {
                "keyid": key_id(key.public_key()),
                "sig": base64.standard_b64encode(key.sign(_encoded(payload))).decode("ascii"),
            }
        ],
    }
    return _canonical(envelope)


def verify(
    envelope: bytes, key: Ed25519PublicKey, artefacts: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Check an envelope and, where they are given, the files it speaks of. Needs no network.

    Parameters
    ----------
    envelope
        As ``sign`` made it, to the byte.
    key
        The signer's.
    artefacts
        Subject name to file: each must be a subject, and have its digest.

    Returns
    -------
    dict
        The statement.

    Raises
    ------
    IntegrityError
        Any byte of the envelope or of an artefact differs, or another key signed it.
    """
    try:
        outer = json.loads(envelope.decode("utf-8"))
        (signature,) = outer["signatures"]
        payload = base64.b64decode(outer["payload"], validate=True)
        signed = base64.b64decode(signature["sig"], validate=True)
        if outer["payloadType"] != PAYLOAD_TYPE or set(outer) != {
            "payload",
            "payloadType",
            "signatures",
        }:
            raise ValueError("another kind of envelope")
        # base64 and JSON leave room for bytes that no signature covers: allow one spelling only
        if envelope != _canonical(outer) or signature != {
            "keyid": key_id(key),
            "sig": base64.standard_b64encode(signed).decode("ascii"),
        }:
            raise ValueError("signed by another key, or written in another way")
        if base64.standard_b64encode(payload).decode("ascii") != outer["payload"]:
            raise ValueError("the payload is written in another way")
        key.verify(signed, _encoded(payload))
        content = json.loads(payload)
        if content["_type"] != STATEMENT_TYPE or content["predicateType"] != PREDICATE_TYPE:
            raise ValueError("not the statement of an audit")
        digests = {s["name"]: s["digest"]["sha256"] for s in content["subject"]}
    except InvalidSignature as error:
        raise IntegrityError(
            "the attestation's signature is not valid: it was changed, or signed by another key. "
            "Do not trust it; ask for the original."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise IntegrityError(
            f"the attestation is damaged or not one of ours ({error}). Ask for the original."
        ) from error
    for name, path in (artefacts or {}).items():
        if name not in digests:
            raise IntegrityError(f"the attestation does not speak of {name!r}.")
        if not path.is_file() or file_sha256(path) != digests[name]:
            raise IntegrityError(
                f"{name}: the file is missing or is not the one that was audited; its SHA-256 "
                f"should be {digests[name][:12]}…."
            )
    return dict(content)


def attest(result: Mapping[str, Any], files: Mapping[str, Path], key: Ed25519PrivateKey) -> bytes:
    """Sign an audit's result together with the digests of its models and files.

    Parameters
    ----------
    result
        ``AuditResult.to_json()``.
    files
        Name to file, e.g. ``{"audit.json": …, "report.html": …}``.
    """
    subjects = {**result["digests"], **{name: file_sha256(path) for name, path in files.items()}}
    predicate = {
        k: result[k]
        for k in (
            "format",
            "created",
            "verdict",
            "findings",
            "void",
            "notes",
            "not_proved",
            "sets",
            "provenance",
            "settings",
            "versions",
        )
    }
    predicate["forgotten"] = sorted({s["series"] for s in result["figures"]["original"]["forget"]})
    return sign(statement(subjects, predicate), key)


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _canonical(envelope: Mapping[str, Any]) -> bytes:
    return (json.dumps(envelope, sort_keys=True, indent=1) + "\n").encode("ascii")
