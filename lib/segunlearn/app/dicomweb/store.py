"""STOW-RS: results come in as DICOM (PS3.18 section 10.5)."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import IO, TYPE_CHECKING

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from pydicom import dcmread
from pydicom.dataset import Dataset
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser

from segunlearn.app.dicomweb.common import (
    DICOM_JSON,
    Client,
    StudyUID,
    address,
    annotator,
    make_router,
)
from segunlearn.app.dicomweb.frames import dumps
from segunlearn.app.dicomweb.media import parse_media
from segunlearn.dicom.deflated import refuse_deflated
from segunlearn.dicom.folder import FolderClient
from segunlearn.dicom.identifiers import validate_uid
from segunlearn.dicom.reading import Clamped
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    SegUnlearnError,
    UnavailableError,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logger = logging.getLogger(__name__)
router = make_router(dependencies=[annotator])

#: Largest message that is taken.
LARGEST_BYTES = 4 << 30
#: Most parts of a message: each costs some kilobytes of memory, however small it is.
MOST_PARTS = 20_000
#: Messages above this size wait on the disk.
_IN_MEMORY = 16 << 20

# Failure reasons of PS3.18 table I.2-2.
_PROCESSING, _DUPLICATE, _NO_RESOURCES = 0x0110, 0x0111, 0xA700
_OTHER_STUDY, _CANNOT_UNDERSTAND = 0xA900, 0xC000


class TooLargeError(SegUnlearnError):
    """The message is larger than this server takes."""

    http_status = 413


class UnsupportedMediaError(SegUnlearnError):
    """The message is of a media type that this server does not take."""

    http_status = 415


@router.post("/studies", summary="Store instances (STOW-RS)")
async def store(request: Request, client: Client) -> Response:
    """Store instances of any study."""
    return await _store(request, client, None)


@router.post("/studies/{study}", summary="Store instances of a study (STOW-RS)")
async def store_in_study(request: Request, client: Client, study: StudyUID) -> Response:
    """Store instances of one study; others are refused."""
    return await _store(request, client, study)


async def _store(request: Request, client: FolderClient, study: str | None) -> Response:
    parts = PartFiles(request.headers.get("content-type", ""))
    try:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > LARGEST_BYTES:
                raise TooLargeError(
                    f"the message is above {LARGEST_BYTES >> 20} MiB. Send fewer instances at once."
                )
            await run_in_threadpool(parts.write, chunk)
        parts.finish()
        return await run_in_threadpool(_store_parts, request, client, parts, study)
    finally:
        parts.close()


class PartFiles:
    """The parts of a multipart body, one after another in one temporary file.

    A file for each would keep small ones in memory however many they are, and large ones open.

    Parameters
    ----------
    content_type
        The header; must be ``multipart/related`` with ``type="application/dicom"``.
    """

    def __init__(self, content_type: str) -> None:
        media, parameters = parse_media(content_type)
        kind = parameters.get("type", "application/dicom").lower()
        if media != "multipart/related" or kind != "application/dicom":
            raise UnsupportedMediaError(
                f"the message is {content_type!r:.80}; send multipart/related; "
                'type="application/dicom"; boundary=…, one DICOM file in each part.'
            )
        boundary = parameters.get("boundary", "")
        if not boundary:
            raise InvalidInputError("Content-Type names no boundary between the parts.")
        self._starts: list[int] = []
        self._size = 0
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary.encode("latin-1"),
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_end": self._end,
                },
            )
        except (MultipartParseError, UnicodeEncodeError) as error:
            raise InvalidInputError(f"the boundary is not valid ({error}).") from error
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - see close

    def _begin(self) -> None:
        if len(self._starts) == MOST_PARTS:
            raise TooLargeError(
                f"the message holds more than {MOST_PARTS} instances. Send fewer at once."
            )
        self._starts.append(self._size)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += self._file.write(data[start:end])

    def _end(self) -> None:
        self._ended = True

    def write(self, chunk: bytes) -> None:
        """Take the next piece of the body.

        Raises
        ------
        InvalidInputError
            The body is not what its header says.
        TooLargeError
            It has too many parts.
        """
        try:
            self._parser.write(chunk)
        except MultipartParseError as error:
            raise InvalidInputError(f"the multipart body is damaged ({error}).") from error

    def finish(self) -> None:
        """Check that the body ended as it should.

        Raises
        ------
        InvalidInputError
            It was cut off, or holds no part.
        """
        if not self._ended or not self._starts:
            raise InvalidInputError(
                "the multipart body holds no part, or was cut off. Send it again."
            )

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def __iter__(self) -> Iterator[IO[bytes]]:
        for start, end in pairwise([*self._starts, self._size]):
            yield io.BufferedReader(_Part(self._file, start, end))


class _Part(io.RawIOBase):
    """What lies between two places of a file, as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._start, self._size = file, start, end - start
        self._here = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        beginning = {io.SEEK_SET: 0, io.SEEK_CUR: self._here, io.SEEK_END: self._size}[whence]
        if beginning + offset < 0:
            raise ValueError("a place before the beginning")
        self._here = beginning + offset
        return self._here

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        wanted = max(0, min(view.nbytes, self._size - self._here))
        self._file.seek(self._start + self._here)
        found = self._file.read(wanted)
        view[: len(found)] = found
        self._here += len(found)
        return len(found)


def _store_parts(
    request: Request, client: FolderClient, parts: PartFiles, study: str | None
) -> Response:
    """Store what can be stored, and say of each part what became of it."""
    stored: list[Dataset] = []
    failed: list[Dataset] = []
    unknown: list[Dataset] = []
    studies: set[str] = set()
    for file in parts:
        item = Dataset()
        try:
            dataset = _read(file)
        except InvalidInputError:
            item.FailureReason = _CANNOT_UNDERSTAND
            unknown.append(item)
            continue
        item.ReferencedSOPClassUID = dataset.SOPClassUID
        item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        reason = _store_one(client, dataset, study)
        if reason is not None:
            item.FailureReason = reason
            failed.append(item)
            continue
        studies.add(dataset.StudyInstanceUID)
        item.RetrieveURL = address(
            request, dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID
        )
        stored.append(item)
    answer = Dataset()
    if len(studies) == 1:
        answer.RetrieveURL = address(request, studies.pop())
    if stored:
        answer.ReferencedSOPSequence = stored
    if failed:
        answer.FailedSOPSequence = failed
    if unknown:
        answer.OtherFailuresSequence = unknown
    status = 200 if not (failed or unknown) else 202 if stored else 409
    return Response(dumps(answer.to_json_dict()), status_code=status, media_type=DICOM_JSON)


def _read(file: IO[bytes]) -> Dataset:
    refuse_deflated(file)
    try:
        dataset = dcmread(Clamped(file))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            validate_uid(dataset.get(keyword), what=keyword, strict=False)
    except Exception as error:
        raise InvalidInputError(f"a part is not a DICOM file ({error}).") from error
    return dataset


def _store_one(client: FolderClient, dataset: Dataset, study: str | None) -> int | None:
    """Store an instance; the failure reason when that did not work.

    The same instance sent twice is stored once and both times a success, so that a sender may
    repeat a message whose answer was lost.
    """
    if study is not None and dataset.StudyInstanceUID != study:
        return _OTHER_STUDY
    try:
        client.store_instances([dataset])
    except ForbiddenError:
        raise
    except ConflictError:
        uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
        try:
            return None if client.retrieve_instance(*uids) == dataset else _DUPLICATE
        except SegUnlearnError:
            return _DUPLICATE
    except UnavailableError:
        return _NO_RESOURCES
    except SegUnlearnError as error:
        logger.warning("an instance was not stored: %s", type(error).__name__)
        return _CANNOT_UNDERSTAND if isinstance(error, InvalidInputError) else _PROCESSING
    return None
