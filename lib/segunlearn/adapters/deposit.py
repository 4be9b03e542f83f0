"""Sealed deposits: what an unlearning run replaced, kept so that only its requests' keys open it.

::

    <root>/<deposit id>/deposit.json       model, requests, entries with their digests
    <root>/<deposit id>/v0001.sealed       12-byte nonce, AES-256-GCM ciphertext, 16-byte tag

The key is HKDF-SHA256 (RFC 5869) over the keys of **all** requests of the deposit, in the order of
their ids. Studies that were unlearned together went out of the weights together, and no part of
the deposit belongs to one of them alone. So the first purge of any of these requests makes the
deposit unopenable for ever, for the others too: restore those first if they are wanted back.

The manifest is associated data of every entry. A changed manifest, or a file from another deposit,
does not open.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from segunlearn.adapters.keys import KEY_BYTES, KeyStore, check_id, make_private_folder
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError
from segunlearn.records.durable import read_json, sync_folder, write_durably, write_json_durably
from segunlearn.records.store import canonical_json
from segunlearn.records.versions import State

Kind = Literal["weights", "adapter"]

FORMAT: Final = 1

_NONCE_BYTES: Final = 12
_STAGING: Final = ".staging-"
_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"v\d{4,}")


@dataclass(frozen=True)
class Content:
    """What is to be sealed for one version.

    Parameters
    ----------
    version
        Its name.
    kind
        ``"weights"``: the weights' file; ``"adapter"``: what turns the new weights into the old.
    sha256
        Of the weights' file that is in ``payload``, or that ``payload`` restores.
    payload
        The bytes to seal.
    state
        The version's state before it was replaced.
    """

    version: str
    kind: Kind
    sha256: str
    payload: bytes
    state: str


@dataclass(frozen=True)
class Entry:
    """One sealed version; ``size`` is the payload's, in bytes, the rest is as in ``Content``."""

    version: str
    kind: Kind
    sha256: str
    size: int
    state: str


@dataclass(frozen=True)
class Deposit:
    """What is known of a deposit without its keys.

    Parameters
    ----------
    deposit_id
        The run that replaced the versions, 32 hexadecimal digits.
    model
        Name of the model.
    requests
        Ids of the forget requests, sorted; all their keys are needed.
    created
        UTC, ISO 8601.
    replaced_by
        SHA-256 of the version that was published instead.
    entries
        By version.
    """

    deposit_id: str
    model: str
    requests: tuple[str, ...]
    created: str
    replaced_by: str
    entries: tuple[Entry, ...]

    def entry(self, version: str) -> Entry:
        """One entry by its version's name.

        Raises
        ------
        NotFoundError
            The deposit holds nothing of it.
        """
        for entry in self.entries:
            if entry.version == version:
                return entry
        raise NotFoundError(
            f"deposit {self.deposit_id} holds nothing of version {version!r}; it holds "
            f"{', '.join(e.version for e in self.entries)}."
        )


class Deposits:
    """Sealed deposits in a folder.

    Parameters
    ----------
    root
        The folder; made at the first ``seal``.
    keys
        Where the requests' keys are.
    """

    def __init__(self, root: Path, keys: KeyStore) -> None:
        self.root = Path(root)
        self.keys = keys

    def seal(
        self,
        deposit_id: str,
        *,
        model: str,
        requests: Collection[str],
        replaced_by: str,
        contents: Sequence[Content],
    ) -> Deposit:
        """Seal what a run replaced; it appears whole, by one rename.

        Sealing the same again returns the deposit that is there: a run that was killed can be
        repeated.

        Parameters
        ----------
        deposit_id
            The run's id, 32 hexadecimal digits.
        model, requests, replaced_by
            See ``Deposit``. Every request must have a key (``KeyStore.create``).
        contents
            One for each version that is replaced.

        Raises
        ------
        InvalidInputError
            An id, a digest, a name or a state is none, a version comes twice, or nothing is given.
        IntegrityError
            Weights have another digest than their content says.
        ConflictError
            This id has a deposit with other content.
        NotFoundError
            The key of a request was destroyed or never made.
        """
        wanted = _checked(deposit_id, model, requests, replaced_by, contents)
        with self._lock():
            if (self.root / deposit_id).exists():
                there = self.get(deposit_id)
                if _without_time(there) != _without_time(wanted):
                    raise ConflictError(
                        f"deposit {deposit_id} is there with other content. A run seals once; "
                        "start a new run."
                    )
                return there
            cipher = AESGCM(self._key(wanted))
            staging = self.root / f"{_STAGING}{secrets.token_hex(16)}"
            staging.mkdir(mode=0o700)
            for content in contents:
                nonce = secrets.token_bytes(_NONCE_BYTES)
                bound = _associated(wanted, content.version)
                sealed = nonce + cipher.encrypt(nonce, content.payload, bound)
                write_durably(staging / f"{content.version}.sealed", sealed)
            write_json_durably(staging / "deposit.json", _to_json(wanted))
            os.replace(staging, self.root / deposit_id)  # noqa: PTH105 - see records.durable
            sync_folder(self.root)
            return wanted

    def get(self, deposit_id: str) -> Deposit:
        """Read a deposit's manifest.

        Raises
        ------
        NotFoundError
            There is no such deposit.
        IntegrityError
            The manifest is damaged.
        """
        folder = self.root / check_id(deposit_id, "deposit")
        if not folder.is_dir():
            raise NotFoundError(
                f"there is no deposit {deposit_id}: it was destroyed, or the run sealed nothing."
            )
        deposit = _from_json(deposit_id, read_json(folder / "deposit.json"))
        if deposit.deposit_id != deposit_id:
            raise IntegrityError(
                f"deposit {deposit_id}: the manifest is of {deposit.deposit_id}. Put the folder "
                "back as it was."
            )
        return deposit

    def all(self) -> list[Deposit]:
        """All deposits, newest first.

        Raises
        ------
        IntegrityError
            A manifest is damaged.
        """
        if not self.root.is_dir():
            return []
        names = (p.name for p in self.root.iterdir() if p.is_dir() and _ID.fullmatch(p.name))
        return sorted(map(self.get, names), key=lambda d: (d.created, d.deposit_id), reverse=True)

    def of_request(self, request_id: str) -> list[Deposit]:
        """Deposits that need this request's key, newest first.

        Raises
        ------
        InvalidInputError
            ``request_id`` is not 32 hexadecimal digits.
        IntegrityError
            A manifest is damaged.
        """
        check_id(request_id, "forget request")
        return [d for d in self.all() if request_id in d.requests]

    def open(self, deposit_id: str, version: str) -> bytes:
        """Open what was sealed for a version.

        Raises
        ------
        NotFoundError
            There is no such deposit or version in it, or a request's key was destroyed.
        IntegrityError
            The sealed file or the manifest was changed, or comes from another deposit.
        """
        deposit = self.get(deposit_id)
        entry = deposit.entry(version)
        cipher = AESGCM(self._key(deposit))
        path = self.root / deposit_id / f"{version}.sealed"
        changed = IntegrityError(
            f"deposit {deposit_id}: {path.name} or deposit.json is missing or was changed since it "
            "was sealed, or its key was destroyed and made anew. Restore the folder from a backup."
        )
        try:
            sealed = path.read_bytes()
            payload = cipher.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated(deposit, version)
            )
        except (FileNotFoundError, InvalidTag, ValueError) as error:
            raise changed from error
        if entry.kind == "weights" and hashlib.sha256(payload).hexdigest() != entry.sha256:
            raise changed
        return payload

    def is_openable(self, deposit_id: str) -> bool:
        """Whether every entry can be opened now; it is tried.

        Raises
        ------
        NotFoundError
            There is no such deposit.
        """
        try:
            deposit = self.get(deposit_id)
        except IntegrityError:
            return False
        try:
            for entry in deposit.entries:
                self.open(deposit_id, entry.version)
        except (NotFoundError, IntegrityError):
            return False
        return True

    def destroy(self, deposit_id: str) -> None:
        """Remove a deposit, damaged or not; without one nothing happens.

        It vanishes by one rename. This frees the disk; what makes a deposit unopenable is
        ``KeyStore.destroy``.

        Raises
        ------
        InvalidInputError
            ``deposit_id`` is not 32 hexadecimal digits.
        """
        folder = self.root / check_id(deposit_id, "deposit")
        if not self.root.is_dir():
            return
        with self._lock():
            if folder.exists():
                gone = self.root / f"{_STAGING}{secrets.token_hex(16)}"
                os.replace(folder, gone)  # noqa: PTH105 - see records.durable
                sync_folder(self.root)
                shutil.rmtree(gone)
            sync_folder(self.root)

    def clear(self) -> None:
        """Remove what killed processes left half made or half destroyed."""
        if self.root.is_dir():
            with self._lock():
                pass

    def _key(self, deposit: Deposit) -> bytes:
        material = b"".join(self.keys.get(r) for r in deposit.requests)
        info = b"segunlearn deposit 1 " + deposit.deposit_id.encode()
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(material)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One at a time, and what killed ones left removed."""
        make_private_folder(self.root)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for stale in self.root.glob(f"{_STAGING}*"):
                shutil.rmtree(stale)
            yield


def _checked(
    deposit_id: str,
    model: str,
    requests: Collection[str],
    replaced_by: str,
    contents: Sequence[Content],
) -> Deposit:
    check_id(deposit_id, "deposit")
    ids = sorted({check_id(r, "forget request") for r in requests})
    versions = [c.version for c in contents]
    if not model or not ids or not contents:
        raise InvalidInputError("a deposit needs a model, a forget request and something to seal.")
    if len(set(versions)) != len(versions):
        raise InvalidInputError(f"{', '.join(versions)}: seal each version once.")
    if not _SHA256.fullmatch(replaced_by):
        raise InvalidInputError(f"{replaced_by!r} is no SHA-256; name the version that replaced.")
    for content in contents:
        if (
            not _VERSION.fullmatch(content.version)
            or content.kind not in get_args(Kind)
            or not _SHA256.fullmatch(content.sha256)
            or content.state not in get_args(State)
        ):
            raise InvalidInputError(
                f"version {content.version!r}, kind {content.kind!r}, state {content.state!r}, "
                f"SHA-256 {content.sha256!r}: one of them is none. Give those of the registry."
            )
        digest = hashlib.sha256(content.payload).hexdigest()
        if content.kind == "weights" and digest != content.sha256:
            raise IntegrityError(
                f"{content.version}: the weights have digest {digest[:12]}…, not "
                f"{content.sha256[:12]}…. They were changed; restore them from a backup."
            )
    entries = sorted(
        (Entry(c.version, c.kind, c.sha256, len(c.payload), c.state) for c in contents),
        key=lambda e: (len(e.version), e.version),
    )
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    return Deposit(deposit_id, model, tuple(ids), created, replaced_by, tuple(entries))


def _without_time(deposit: Deposit) -> dict[str, Any]:
    return {**_to_json(deposit), "created": None}


def _to_json(deposit: Deposit) -> dict[str, Any]:
    lists = {"requests": [*deposit.requests], "entries": [asdict(e) for e in deposit.entries]}
    return {"format": FORMAT, **asdict(deposit), **lists}


def _from_json(name: str, data: Any) -> Deposit:
    """Read a manifest strictly: a key that is not known is not covered by the seal."""
    try:
        if data["format"] != FORMAT:
            raise IntegrityError(
                f"deposit {name}: format {data['format']!r} is not known; use the program that "
                "sealed it."
            )
        entries = tuple(Entry(**e) for e in data["entries"])
        rest = {k: v for k, v in data.items() if k not in ("format", "requests", "entries")}
        deposit = Deposit(**rest, requests=tuple(data["requests"]), entries=entries)
        sound = all(_VERSION.fullmatch(e.version) for e in deposit.entries)
        for request_id in deposit.requests:
            check_id(request_id, "forget request")
        check_id(deposit.deposit_id, "deposit")
    except (KeyError, TypeError, AttributeError, InvalidInputError) as error:
        raise IntegrityError(
            f"deposit {name}: the manifest is damaged ({error}). Restore it from a backup."
        ) from error
    if not sound or not deposit.requests or not deposit.entries:
        raise IntegrityError(f"deposit {name}: the manifest is damaged. Restore it from a backup.")
    return deposit


def _associated(deposit: Deposit, version: str) -> bytes:
    """Bind a ciphertext to the whole manifest and to its own place in it."""
    return canonical_json({**_to_json(deposit), "entry": version}).encode()
