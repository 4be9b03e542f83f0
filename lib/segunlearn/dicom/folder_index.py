"""Index of a folder of DICOM files: one SQLite table, kept outside the folder.

The index of dicomweb-client 0.61 is not used: it keeps no track of changed and deleted files, one
damaged file ends its scan, its connection belongs to one thread, and its answers about the series
of a study hold three attributes. This one has a row for each file, whatever is in it, so that a
second look at the folder reads only what is new. Every operation opens its own connection: threads
and processes (server and training) share the file safely (WAL).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

from segunlearn.dicom.folder_filters import INTEGER_VRS, conditions_of
from segunlearn.dicom.identifiers import is_uid
from segunlearn.errors import InvalidInputError, NotFoundError, UnavailableError

logger = logging.getLogger(__name__)

STUDY_KEYWORDS = (
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
)
SERIES_KEYWORDS = (
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "SeriesDate",
    "SeriesTime",
    "BodyPartExamined",
    "Manufacturer",
    "ManufacturerModelName",
    "InstitutionName",
    "StationName",
)
INSTANCE_KEYWORDS = (
    "SOPInstanceUID",
    "SOPClassUID",
    "InstanceNumber",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
)
_KEYWORDS = (*STUDY_KEYWORDS, *SERIES_KEYWORDS, *INSTANCE_KEYWORDS)
_LEVELS = {
    "studies": ("StudyInstanceUID", STUDY_KEYWORDS, "StudyDate DESC, StudyTime DESC"),
    "series": (
        "SeriesInstanceUID",
        (*STUDY_KEYWORDS, *SERIES_KEYWORDS),
        "StudyDate DESC, StudyInstanceUID, SeriesNumber",
    ),
    "instances": ("SOPInstanceUID", _KEYWORDS, "SeriesInstanceUID, InstanceNumber"),
}
_SCHEMA_VERSION = 2
#: File endings that are never DICOM; all others are looked into.
_OTHER_FILES = (
    *(".nii", ".gz", ".nrrd", ".mha", ".jpg", ".jpeg", ".png", ".json", ".csv", ".txt", ".md"),
    *(".db", ".db-wal", ".db-shm", ".zip", ".tar", ".pdf", ".xml", ".html", ".py", ".log"),
    *(".yaml", ".yml", ".safetensors"),
)


class FolderIndex:
    """What lies in one or more folders of DICOM files.

    Parameters
    ----------
    roots
        Folders; hidden files and folders in them, and links to folders, are left out.
    index_dir
        Where the database is kept, never inside a studies folder. The file's name depends on
        ``roots``, so several folders may share ``index_dir``.
    """

    def __init__(self, roots: Sequence[Path], index_dir: Path) -> None:
        self.roots = tuple(Path(root).resolve() for root in roots)
        index_dir = Path(index_dir).resolve()
        if any(index_dir.is_relative_to(root) for root in self.roots):
            raise InvalidInputError(
                f"the index folder {index_dir} lies inside the studies folder; choose another, "
                "studies may be read-only and are scanned for images."
            )
        name = hashlib.sha256("\0".join(map(str, self.roots)).encode()).hexdigest()[:16]
        self._path = index_dir / f"folder-{name}.db"
        self._next_scan = 0.0
        self._looking = threading.Lock()
        try:
            index_dir.mkdir(parents=True, exist_ok=True)
            with self._connect() as connection:
                self._create(connection)
        except OSError as error:
            raise UnavailableError(
                f"the index of the studies cannot be made in {index_dir} ({error.strerror}). "
                "Check the rights of the home folder."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.roots, self._path.parent)

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as handle:
                handle.row_factory = sqlite3.Row
                handle.execute("PRAGMA synchronous = normal")
                yield handle
        except sqlite3.OperationalError as error:
            raise UnavailableError(
                f"the index of the studies folder cannot be used ({error}). Check the disk and the "
                "rights of the home folder; the index may be deleted, it is made again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise UnavailableError(
                f"the index of the studies folder is damaged ({error}). Delete the file "
                f"{self._path.name} in {self._path.parent}; it is made again."
            ) from error

    def _create(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("PRAGMA user_version").fetchone()[0] != _SCHEMA_VERSION:
            columns = ", ".join(f"{k} {_sql_type(k)}" for k in _KEYWORDS)
            connection.execute("DROP TABLE IF EXISTS files")
            connection.execute(
                "CREATE TABLE files (path TEXT PRIMARY KEY, modified INTEGER NOT NULL, "
                f"bytes INTEGER NOT NULL, {columns})"
            )
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID"):
                connection.execute(f"CREATE INDEX files_{keyword} ON files ({keyword})")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def refresh(self, *, force: bool = False) -> None:
        """Look for new, changed and deleted files.

        Without ``force`` nothing happens when the last look was a moment ago: five seconds, or
        ten times as long as that look took; or when somebody else is looking and an earlier look
        has ended. Who comes before that waits for it.
        """
        if not force and time.monotonic() < self._next_scan:
            return
        somebody_has_looked = self._next_scan > 0
        if not self._looking.acquire(blocking=force or not somebody_has_looked):
            return  # somebody looks just now
        try:
            if force or time.monotonic() >= self._next_scan:
                self._look()
        finally:
            self._looking.release()

    def _look(self) -> None:
        started = time.monotonic()
        with self._connect() as connection:
            known = {
                row["path"]: (row["modified"], row["bytes"])
                for row in connection.execute("SELECT path, modified, bytes FROM files")
            }
            batch: list[tuple[Any, ...]] = []
            for path, stat in self._walk():
                state = (stat.st_mtime_ns, stat.st_size)
                if known.pop(path, None) != state:
                    batch.append((path, *state, *_describe(Path(path))))
                if len(batch) >= 200:
                    self._insert(connection, batch)
                    batch = []
            self._insert(connection, batch)
            if known:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM files WHERE path = ?", [(p,) for p in known])
                connection.execute("COMMIT")
        ended = time.monotonic()
        self._next_scan = ended + max(5.0, 10.0 * (ended - started))

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        for root in self.roots:
            for folder, folders, files in os.walk(root):
                folders[:] = sorted(f for f in folders if not f.startswith("."))
                for name in sorted(files):
                    if name.startswith(".") or name == "DICOMDIR":
                        continue
                    path = os.path.join(folder, name)  # noqa: PTH118 - a hot loop
                    try:
                        path.encode()
                        yield path, os.stat(path)  # noqa: PTH116
                    except (OSError, UnicodeEncodeError):
                        continue  # vanished meanwhile, a broken link, or a name that is no text

    @staticmethod
    def _insert(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        if not rows:
            return
        marks = ", ".join("?" * (3 + len(_KEYWORDS)))
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(f"INSERT OR REPLACE INTO files VALUES ({marks})", rows)
        connection.execute("COMMIT")

    def add(self, path: Path) -> None:
        """Enter one file that was just written."""
        stat = path.stat()
        with self._connect() as connection:
            row = (str(path), stat.st_mtime_ns, stat.st_size, *_describe(path))
            self._insert(connection, [row])

    def remove(self, path: Path) -> None:
        """Forget one file that was just deleted."""
        with self._connect() as connection:
            connection.execute("DELETE FROM files WHERE path = ?", (str(path),))

    def files(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str | None = None
    ) -> list[Path]:
        """Files of a series or of an instance, by InstanceNumber; copies are all listed.

        Raises
        ------
        NotFoundError
            None is in the index.
        """
        query = "SELECT path FROM files WHERE StudyInstanceUID = ? AND SeriesInstanceUID = ?"
        values = [study_instance_uid, series_instance_uid]
        if sop_instance_uid is not None:
            query += " AND SOPInstanceUID = ?"
            values.append(sop_instance_uid)
        query += " ORDER BY InstanceNumber, path"
        with self._connect() as connection:
            rows = connection.execute(query, values).fetchall()
        if not rows:
            self.refresh()  # it may have come since
            with self._connect() as connection:
                rows = connection.execute(query, values).fetchall()
        if not rows:
            raise NotFoundError(
                f"series {series_instance_uid}"
                + (f", instance {sop_instance_uid}" if sop_instance_uid else "")
                + " is not in the studies folder. Check the UID, and that the files are there."
            )
        return [Path(row["path"]) for row in rows]

    def state(self, study_instance_uid: str, series_instance_uid: str) -> str:
        """Digest of a series' files as they were last seen; another one when any changes."""
        query = (
            "SELECT SOPInstanceUID, modified, bytes FROM files WHERE StudyInstanceUID = ? "
            "AND SeriesInstanceUID = ? ORDER BY 1, 2, 3"
        )
        with self._connect() as connection:
            rows = connection.execute(query, (study_instance_uid, series_instance_uid)).fetchall()
        return hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()[:32]

    def query(
        self,
        level: str,
        filters: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        offset: int | None = None,
        fuzzymatching: bool = False,
    ) -> list[dict[str, Any]]:
        """Answer a QIDO-RS search (PS3.18 section 10.6) in the DICOM JSON model.

        Parameters
        ----------
        level
            ``"studies"``, ``"series"`` or ``"instances"``.
        filters
            Keyword or tag to value; wildcards ``*`` and ``?``, lists of UIDs or codes, and ranges
            of dates and times match as in PS3.4 section C.2.2.2.
        limit, offset
            Page of the result, whose order is fixed: newest studies first.
        fuzzymatching
            Match any part of a person's name.

        Raises
        ------
        InvalidInputError
            The filter names an unknown attribute or one that is not indexed.
        """
        uid, keywords, order = _LEVELS[level]
        conditions, values = conditions_of(filters or {}, _KEYWORDS, fuzzymatching)
        where = f"{uid} IS NOT NULL"
        if conditions:
            inner = " AND ".join(conditions)
            where += f" AND {uid} IN (SELECT {uid} FROM files WHERE {inner})"
            if uid == "SOPInstanceUID":
                where, values = f"{uid} IS NOT NULL AND {inner}", values
        columns = ", ".join(k if k == uid else f"max({k}) AS {k}" for k in keywords)
        query = (
            f"SELECT {columns}, group_concat(DISTINCT Modality) AS modalities, "
            "count(DISTINCT SeriesInstanceUID) AS series, count(DISTINCT SOPInstanceUID) AS images "
            f"FROM files WHERE {where} GROUP BY {uid} ORDER BY {order}, {uid} LIMIT ? OFFSET ?"
        )
        page = [-1 if limit is None else max(0, limit), max(0, offset or 0)]
        with self._connect() as connection:
            rows = connection.execute(query, [*values, *page]).fetchall()
        return [_json(level, row, keywords) for row in rows]


def _sql_type(keyword: str) -> str:
    return "INTEGER" if dictionary_VR(keyword) in INTEGER_VRS else "TEXT"


def _describe(path: Path) -> tuple[Any, ...]:
    """Values of the indexed attributes; all None for what is not a DICOM instance."""
    nothing = (None,) * len(_KEYWORDS)
    if path.name.lower().endswith(_OTHER_FILES):
        return nothing
    try:
        with path.open("rb") as file:
            start = file.read(132)
        if start[128:] != b"DICM" and not _headless(start):
            return nothing
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=list(_KEYWORDS), force=True)
        values = tuple(_plain(dataset, keyword) for keyword in _KEYWORDS)
    except Exception as error:  # noqa: BLE001 - a damaged file must not end the scan
        logger.warning("a file cannot be read as DICOM and is left out: %s", type(error).__name__)
        return nothing
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    if not all(is_uid(values[_KEYWORDS.index(k)], strict=False) for k in uids):
        return nothing
    return values


def _headless(start: bytes) -> bool:
    """Whether a file without preamble begins with a tag of group 0002 or 0008."""
    return start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08") and len(start) > 12


def _plain(dataset: Dataset, keyword: str) -> Any:
    value = dataset.get(keyword)
    if value is None or str(value) == "":
        return None
    if dictionary_VR(keyword) in INTEGER_VRS:
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if abs(number) < 2**63 else None  # SQLite's largest
    return str(value).replace("\0", "").strip() or None


def _person(name: str) -> dict[str, str]:
    """Component groups of a name (PS3.5 section 6.2.1), as PS3.18 section F.2.2 has them."""
    kinds = ("Alphabetic", "Ideographic", "Phonetic")
    return {k: v for k, v in zip(kinds, name.split("="), strict=False) if v} or {kinds[0]: ""}


def _json(level: str, row: sqlite3.Row, keywords: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}

    def put(keyword: str, values: list[Any]) -> None:
        tag, vr = tag_for_keyword(keyword), dictionary_VR(keyword)
        element: dict[str, Any] = {"vr": vr}
        if values:
            element["Value"] = [_person(v) for v in values] if vr == "PN" else values
        result[f"{tag:08X}"] = element

    for keyword in keywords:
        put(keyword, [] if row[keyword] is None else [row[keyword]])
    if level == "studies":
        put("ModalitiesInStudy", sorted((row["modalities"] or "").split(",")))
        put("NumberOfStudyRelatedSeries", [row["series"]])
        put("NumberOfStudyRelatedInstances", [row["images"]])
    elif level == "series":
        put("NumberOfSeriesRelatedInstances", [row["images"]])
    return result
