"""Images that clients upload for a while.

::

    <folder>/<session>/meta.info    what clients are told of it; written last
    <folder>/<session>/<image>      a volume file, or a folder of DICOM files

They are patients' images, so they must go when their time is over: the files alone tell, not what a
server remembers, and nothing that a killed one left stops it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from segunlearn.records.durable import write_durably

logger = logging.getLogger(__name__)

_META: Final = "meta.info"


@dataclass
class SessionInfo:
    """What clients are told of a session, in the words of MONAI Label.

    Parameters
    ----------
    name
        Id of the session.
    path, image
        Its folder; its file, or folder of DICOM files.
    create_ts, last_access_ts
        When it was made and last used, in seconds since 1970.
    expiry
        Seconds for which it is kept after its last use.
    """

    name: str
    path: str
    image: str
    create_ts: int
    last_access_ts: int
    expiry: int
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return dataclasses.asdict(self)


class UploadSessions:
    """Sessions of a server.

    Parameters
    ----------
    folder
        Where they lie; made when it is needed.
    expiry
        Most seconds that a session is kept after its last use; up to 60 are read as an hour, as
        the platform reads them.
    """

    def __init__(self, folder: Path, expiry: int) -> None:
        self._folder, self._expiry = folder, expiry if expiry > 60 else 3600

    def add(self, data: Path, expiry: int = 0) -> SessionInfo:
        """Begin a session with a file or folder, which is moved into it.

        Parameters
        ----------
        data
            On the same disk.
        expiry
            Seconds; 0 for the most.
        """
        name, now = str(uuid.uuid4()), int(time.time())
        place = self._folder / name
        image = place / data.name
        expiry = min(expiry, self._expiry) if expiry > 0 else self._expiry
        info = SessionInfo(name, str(place), str(image), now, now, expiry)
        place.mkdir(parents=True)
        try:
            shutil.move(data, image)
            self._write(info)
        except BaseException:
            self.remove(name)
            raise
        return info

    def get(self, name: str, *, touch: bool = False) -> SessionInfo | None:
        """Return a session; None where there is none, or its time is over.

        Parameters
        ----------
        name
            Checked by the caller: it is a name of a folder.
        touch
            Count this as a use, from which its time runs anew.
        """
        info = self._read(self._folder / name)
        if info is None or self._expired(info) or not Path(info.image).exists():
            return None
        if touch:
            info.last_access_ts = int(time.time())
            self._write(info)
        return info

    def remove(self, name: str) -> None:
        """Remove a session with its image; the caller has checked its name."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def over(self, *, unfinished: float) -> list[Path]:
        """Folders of sessions whose time is over.

        Parameters
        ----------
        unfinished
            Seconds after which one whose record is missing or damaged counts as left by a killed
            server, not as just being made.
        """
        found = []
        for place in self._folder.glob("*/"):
            info = self._read(place)
            try:
                left = info is None and abs(time.time() - place.stat().st_mtime) >= unfinished
            except FileNotFoundError:  # somebody has removed it
                continue
            if left or (info is not None and self._expired(info)):
                found.append(place)
        return found

    def remove_expired(self) -> int:
        """Remove those whose time is over; returns how many.

        The platform calls it by this name, in a thread that ends for good at the first error.
        """
        removed = 0
        try:
            for place in self.over(unfinished=self._expiry):
                removed += self._removed(place)
        except OSError as error:
            logger.error("uploaded images cannot be looked through: %s", error.strerror)
        return removed

    @staticmethod
    def _removed(place: Path) -> bool:
        try:
            shutil.rmtree(place)
        except FileNotFoundError:  # a request has removed it
            return False
        except OSError as error:
            logger.error(
                "the uploaded image of session %s has expired and cannot be removed (%s). Remove "
                "its folder by hand.", place.name, error.strerror,
            )  # fmt: skip
            return False
        return True

    def _expired(self, info: SessionInfo) -> bool:
        age = time.time() - info.last_access_ts  # far below 0 where the clock was set back
        return abs(age) > min(info.expiry, self._expiry)

    @staticmethod
    def _read(place: Path) -> SessionInfo | None:
        try:
            told = json.loads((place / _META).read_text(encoding="utf-8"))
            info = SessionInfo(**told)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        kinds = (info.image, str), (info.expiry, int), (info.last_access_ts, int)
        whole = info.name == place.name and all(isinstance(v, kind) for v, kind in kinds)
        return info if whole else None

    def _write(self, info: SessionInfo) -> None:
        write_durably(self._folder / info.name / _META, json.dumps(info.to_json()).encode())
