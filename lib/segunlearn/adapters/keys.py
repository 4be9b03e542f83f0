"""A key for each forget request; a purge destroys it, and with it every deposit it sealed.

::

    <root>/<request id>.key     32 random bytes, 0600, in a folder of 0700

The folder lies outside the models' folder, so that a copy of the models opens nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from segunlearn.errors import IntegrityError, InvalidInputError, NotFoundError, UnavailableError
from segunlearn.records.durable import sync_folder

KEY_BYTES: Final = 32

_ID = re.compile(r"[0-9a-f]{32}")
#: A key that was overwritten: a destruction that was stopped before the file was removed.
_DESTROYED: Final = bytes(KEY_BYTES)


def check_id(value: object, what: str) -> str:
    """Return ``value`` when it is 32 hexadecimal digits in lower case.

    Raises
    ------
    InvalidInputError
        It is not; it could name a file elsewhere.
    """
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidInputError(f"{value!r} is no {what}: give its 32 hexadecimal digits.")
    return value


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner enters (0700), or make an existing one so."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_folder(folder.parent)
    if folder.stat().st_mode & 0o777 != 0o700:
        folder.chmod(0o700)


class KeyStore:
    """Keys of forget requests in a folder.

    Parameters
    ----------
    root
        The folder; made at the first ``create``.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def create(self, request_id: str) -> None:
        """Make the request's key; an existing one stays.

        Raises
        ------
        InvalidInputError
            ``request_id`` is not 32 hexadecimal digits.
        IntegrityError
            There is a damaged key; another one would not open what was sealed.
        UnavailableError
            The folder cannot be written.
        """
        path = self._path(request_id)
        with self._lock():
            if self._read(path) is not None:
                return
            part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
            try:
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(part, path)  # noqa: PTH105 - see records.durable
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            sync_folder(self.root)

    def get(self, request_id: str) -> bytes:
        """Return the request's key, 32 bytes.

        Raises
        ------
        NotFoundError
            It was destroyed, or never made.
        IntegrityError
            The file is damaged.
        InvalidInputError, UnavailableError
            As ``create``.
        """
        path = self._path(request_id)
        with _reported(path):
            key = self._read(path)
        if key is None:
            raise NotFoundError(
                f"the key of request {request_id} was destroyed (the request was purged) or never "
                "made. What was sealed with it cannot be opened, by nobody; train a new version."
            )
        return key

    def has(self, request_id: str) -> bool:
        """Whether ``get`` would return a key.

        Raises
        ------
        IntegrityError, InvalidInputError, UnavailableError
            As ``get``.
        """
        path = self._path(request_id)
        with _reported(path):
            return self._read(path) is not None

    def destroy(self, request_id: str) -> None:
        """Overwrite and remove the request's key, damaged or not; without a key nothing happens.

        From the overwriting on ``get`` finds no key, wherever it is stopped after that; destroying
        again removes the rest.

        Notes
        -----
        The bytes are overwritten through the file system. That does not reach what the medium or
        others keep: SSDs and copy-on-write file systems write to another place and free the old
        one later, snapshots and backups hold the file as it was, and a process that opened a
        deposit had the key in its memory. Encrypt the disk, and leave this folder out of backups
        or let them expire.

        Raises
        ------
        InvalidInputError, UnavailableError
            As ``create``.
        """
        path = self._path(request_id)
        if not self.root.is_dir():
            return
        with self._lock():
            if not path.exists():
                sync_folder(self.root)  # a removal that was stopped before this
                return
            with path.open("r+b") as file:
                file.write(bytes(max(KEY_BYTES, path.stat().st_size)))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(self.root)

    def _path(self, request_id: str) -> Path:
        return self.root / f"{check_id(request_id, 'forget request')}.key"

    def _read(self, path: Path) -> bytes | None:
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            return None
        if len(key) != KEY_BYTES:
            if not any(key) and key:
                return None  # a damaged one whose destruction was stopped
            raise IntegrityError(
                f"{path.name}: a request's key has {KEY_BYTES} bytes, this file has {len(key)}. "
                "Put the right file back, or purge the request: what it sealed stays closed then."
            )
        return None if key == _DESTROYED else key

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One at a time, and parts of killed ones removed: they were never anybody's key."""
        with _reported(self.root):
            make_private_folder(self.root)
            descriptor = os.open(self.root / ".lock", os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                for part in self.root.glob(".*.part"):
                    part.unlink()
                yield


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"{path.name}: keys cannot be read or written ({error.strerror}). Check the disk and "
            "the rights of the key folder."
        ) from error
