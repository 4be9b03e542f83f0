"""DICOM unique identifiers, and the keyed pseudonyms that stand for them in logs and reports."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from segunlearn.errors import IntegrityError, InvalidIdentifierError, UnavailableError
from segunlearn.replacing import sync_folder

#: Bytes of a site's pseudonym key.
KEY_BYTES = 32

_STRICT = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")
_TOLERANT = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_uid(value: object, *, strict: bool = True) -> bool:
    """Whether a string is a DICOM UID (PS3.5 section 9.1).

    Parameters
    ----------
    value
        Candidate, at most 64 characters of digits and dots.
    strict
        Refuse components with leading zeros, as the standard does. Archives in use hold such
        UIDs; they are harmless in file names and URLs and may be let through by ``False``.

    Examples
    --------
    >>> is_uid("1.2.840.10008.1.1"), is_uid("1.02"), is_uid("1.02", strict=False), is_uid("1..2")
    (True, False, True, False)
    """
    pattern = _STRICT if strict else _TOLERANT
    return isinstance(value, str) and len(value) <= 64 and pattern.fullmatch(value) is not None


def is_pattern(value: str) -> bool:
    """Whether a search takes a text for a pattern (PS3.4 C.2.2.2.4), which cannot be escaped."""
    return "*" in value or "?" in value


def validate_uid(value: object, *, what: str = "UID", strict: bool = True) -> str:
    """Return the UID unchanged, or raise.

    Parameters
    ----------
    value, strict
        As for :func:`is_uid`.
    what
        Name of the identifier for the message, e.g. ``"SeriesInstanceUID"``.

    Raises
    ------
    InvalidIdentifierError
        The value is not a UID.
    """
    if is_uid(value, strict=strict):
        return str(value)
    shown = value[:70] if isinstance(value, str) else type(value).__name__
    raise InvalidIdentifierError(
        f"{shown!r} is not a valid {what}: a DICOM UID has at most 64 characters, digits and "
        "single dots, and no leading zeros in a component (PS3.5 section 9.1). Copy it from the "
        "header."
    )


class Pseudonyms:
    """Keyed short names for identifiers, the same for one site and unlinkable without its key.

    Parameters
    ----------
    key
        Secret of the site, at least 16 bytes; see :func:`load_or_create_key`.

    Examples
    --------
    >>> Pseudonyms(bytes(32)).of("1.2.3") == Pseudonyms(bytes(32)).of("1.2.3")
    True
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise InvalidIdentifierError(
                f"a pseudonym key needs at least 16 bytes, this one has {len(key)}."
            )
        self._key = key

    def of(self, identifier: str) -> str:
        """First 12 hexadecimal digits of HMAC-SHA256 over the identifier (UTF-8)."""
        return hmac.new(self._key, identifier.encode("utf-8"), hashlib.sha256).hexdigest()[:12]


def load_or_create_key(path: Path) -> bytes:
    """Read a site's key, or make one that only the owner can read (mode 0600).

    Two processes that start together agree on one key: a file is written whole and then linked
    to its name, and linking fails for the second.

    Parameters
    ----------
    path
        Key file, ``home/site.key``; its folder is made when it is missing.

    Returns
    -------
    bytes
        32 random bytes.

    Raises
    ------
    IntegrityError
        The file does not hold 32 bytes. Another key would rename every study in logs and reports.
    UnavailableError
        The file cannot be read or written.
    """
    path = Path(path)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(part, path)
                except FileExistsError:
                    pass  # another process was first: its key is the site's key
                else:
                    sync_folder(path.parent)
            finally:
                part.unlink(missing_ok=True)
        key = path.read_bytes()
    except OSError as error:
        raise UnavailableError(
            f"{path.name}: the site's key cannot be read or made ({error.strerror}). "
            "Check the rights of the home folder."
        ) from error
    if len(key) != KEY_BYTES:
        raise IntegrityError(
            f"{path.name}: a site's key has {KEY_BYTES} bytes, this file has {len(key)}. "
            "Put the right file back; a new key would change every pseudonym."
        )
    return key
