"""WADO-RS: instances, metadata, frames and bulk data (PS3.18 section 10.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import Request, Response

from segunlearn.app.dicomweb import frames as files
from segunlearn.app.dicomweb.common import (
    DICOM_JSON,
    Client,
    InstanceUID,
    SeriesUID,
    StudyUID,
    address,
    make_router,
    reader,
)
from segunlearn.app.dicomweb.media import (
    EXPLICIT_LITTLE_ENDIAN,
    Acceptable,
    NotAcceptableError,
    Part,
    accepted,
    multipart,
    require,
)
from segunlearn.dicom.folder import FolderClient
from segunlearn.errors import InvalidInputError, NotFoundError

router = make_router(dependencies=[reader])

_DICOM = "application/dicom"
_INSTANCE_PATH = "/studies/{study}/series/{series}/instances/{instance}"


@router.get("/studies/{study}", summary="Retrieve a study (WADO-RS)")
def study(request: Request, client: Client, study: StudyUID) -> Response:
    """Send all instances of a study."""
    return _send(request, paths_of_study(client, study), study)


@router.get("/studies/{study}/metadata", summary="Metadata of a study (WADO-RS)")
def study_metadata(request: Request, client: Client, study: StudyUID) -> Response:
    """Send the headers of a study."""
    return _send_metadata(request, paths_of_study(client, study))


@router.get("/studies/{study}/series/{series}", summary="Retrieve a series (WADO-RS)")
def series(request: Request, client: Client, study: StudyUID, series: SeriesUID) -> Response:
    """Send all instances of a series."""
    return _send(request, client.index.files(study, series), study, series)


@router.get("/studies/{study}/series/{series}/metadata", summary="Metadata of a series (WADO-RS)")
def series_metadata(
    request: Request, client: Client, study: StudyUID, series: SeriesUID
) -> Response:
    """Send the headers of a series."""
    return _send_metadata(request, client.index.files(study, series))


@router.get(_INSTANCE_PATH, summary="Retrieve an instance (WADO-RS)")
def instance(
    request: Request, client: Client, study: StudyUID, series: SeriesUID, instance: InstanceUID
) -> Response:
    """Send one instance."""
    path = client.path_of(study, series, instance)
    return _send(request, [path], study, series, instance)


@router.get(f"{_INSTANCE_PATH}/metadata", summary="Metadata of an instance (WADO-RS)")
def instance_metadata(
    request: Request, client: Client, study: StudyUID, series: SeriesUID, instance: InstanceUID
) -> Response:
    """Send the header of one instance."""
    return _send_metadata(request, [client.path_of(study, series, instance)])


@router.get(f"{_INSTANCE_PATH}/frames/{{numbers}}", summary="Retrieve frames (WADO-RS)")
def instance_frames(
    request: Request,
    client: Client,
    study: StudyUID,
    series: SeriesUID,
    instance: InstanceUID,
    numbers: str,
) -> Response:
    """Send frames (comma-separated, from 1), as stored or decoded, as the caller accepts."""
    path = client.path_of(study, series, instance)
    header = files.read_header(path)
    wanted = parse_numbers(numbers)
    files.check_numbers(header, wanted)
    syntax = files.transfer_syntax(header)
    acceptable, stored = _choose_frames(accepted(request), syntax, len(wanted))
    if stored:
        content, media = files.stored_frames(path, wanted), files.media_of(syntax)
    else:
        content, media = files.native_frames(path, header, wanted), files.OCTETS
        syntax = EXPLICIT_LITTLE_ENDIAN
    kind = f"{media}; transfer-syntax={syntax}"
    if not acceptable.multipart and not acceptable.anything:
        return Response(next(content), headers={"Content-Type": kind})
    where = address(request, study, series, instance)
    parts = (
        Part(kind, data, f"{where}/frames/{number}")
        for number, data in zip(wanted, content, strict=True)
    )
    return multipart(parts, media)


@router.get(f"{_INSTANCE_PATH}/bulkdata/{{digest}}", summary="Retrieve bulk data (WADO-RS)")
def bulkdata(
    request: Request,
    client: Client,
    study: StudyUID,
    series: SeriesUID,
    instance: InstanceUID,
    digest: str,
) -> Response:
    """Send a large value that the metadata name by an address."""
    value = files.bulk_value(client.path_of(study, series, instance), digest)
    for acceptable in accepted(request):
        if acceptable.takes(files.OCTETS):
            if acceptable.multipart or acceptable.anything:
                return multipart([Part(files.OCTETS, value)], files.OCTETS)
            return Response(value, media_type=files.OCTETS)
    raise NotAcceptableError(f"bulk data are sent as {files.OCTETS} only.")


def paths_of_study(client: FolderClient, study: str) -> list[Path]:
    """Files of a study, series by series.

    Raises
    ------
    NotFoundError
        The archive has no such study.
    """
    client.index.refresh()
    found = client.index.query("series", {"StudyInstanceUID": study})
    if not found:
        raise NotFoundError("there is no such study. Check the UID, and that its files are there.")
    series = [result["0020000E"]["Value"][0] for result in found]
    return [path for uid in series for path in client.index.files(study, uid)]


def parse_numbers(text: str) -> list[int]:
    """Frame numbers of an address, ``1,2,5``.

    Raises
    ------
    InvalidInputError
        Something is no positive number, or comes twice, which PS3.18 forbids.
    """
    items = text.split(",")
    if not all(i.isascii() and i.isdigit() and 0 < len(i) < 10 for i in items):
        raise InvalidInputError(f"frames {text!r:.40}: give numbers from 1, as in 1,2,5.")
    numbers = [int(i) for i in items]
    if len(set(numbers)) < len(numbers):
        raise InvalidInputError(f"frames {text!r:.40}: ask for each frame once.")
    return numbers


def _send_metadata(request: Request, paths: Iterable[Path]) -> Response:
    require(request, DICOM_JSON, "application/json")
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        header = files.read_header(path, ["StudyInstanceUID", "SeriesInstanceUID"])
        instance = _instance_of(path)
        if instance not in found:
            where = address(request, header.StudyInstanceUID, header.SeriesInstanceUID, instance)
            found[instance] = files.header_json(path, f"{where}/bulkdata")
    return Response(files.dumps(list(found.values())), media_type=DICOM_JSON)


def _instance_of(path: Path) -> str:
    return str(files.read_header(path, ["SOPInstanceUID"]).SOPInstanceUID)


def _send(request: Request, paths: Sequence[Path], *uids: str) -> Response:
    """Send instances, each SOPInstanceUID once, in a form that the caller accepts."""
    syntaxes: dict[str, tuple[Path, str]] = {}
    for path in paths:
        header = files.read_header(path, ["SOPInstanceUID"])
        syntaxes.setdefault(str(header.SOPInstanceUID), (path, files.transfer_syntax(header)))
    chosen = list(syntaxes.values())
    for acceptable in accepted(request):
        if not acceptable.takes(_DICOM):
            continue
        wanted = acceptable.transfer_syntax or EXPLICIT_LITTLE_ENDIAN
        if wanted not in ("*", EXPLICIT_LITTLE_ENDIAN) and any(s != wanted for _, s in chosen):
            continue
        if acceptable.multipart or acceptable.anything:
            return multipart(_instances(chosen, wanted, address(request, *uids)), _DICOM)
        if len(chosen) == 1:
            data, _ = files.instance_bytes(*chosen[0], wanted)
            return Response(data, media_type=_DICOM)
    raise NotAcceptableError(
        'instances are sent as multipart/related; type="application/dicom", in the transfer '
        f"syntax they are stored in or in {EXPLICIT_LITTLE_ENDIAN}."
    )


def _instances(chosen: Sequence[tuple[Path, str]], wanted: str, where: str) -> Iterator[Part]:
    for path, stored in chosen:
        data, syntax = files.instance_bytes(path, stored, wanted)
        yield Part(f"{_DICOM}; transfer-syntax={syntax}", data, where)


def _choose_frames(
    acceptables: Iterable[Acceptable], syntax: str, count: int
) -> tuple[Acceptable, bool]:
    """Choose a form for frames; the second value says whether they stay as they are stored.

    Compressed frames go out compressed to who names their media type or transfer syntax, or takes
    any (``transfer-syntax=*``); all others get octets, Explicit VR Little Endian.
    """
    media, compressed = files.media_of(syntax), files.is_compressed(syntax)
    for acceptable in acceptables:
        if not acceptable.multipart and not acceptable.anything and count > 1:
            continue
        wanted = acceptable.transfer_syntax
        if compressed and (
            (wanted in ("*", syntax) and acceptable.takes(media))
            or (wanted == "*" and acceptable.media == files.OCTETS)
            or (wanted == "" and acceptable.media == media)
        ):
            return acceptable, True
        if acceptable.takes(files.OCTETS) and wanted in ("", "*", EXPLICIT_LITTLE_ENDIAN):
            return acceptable, False
    raise NotAcceptableError(
        f"these frames are sent as multipart/related, as {media} in transfer syntax {syntax} or as "
        f"{files.OCTETS} in {EXPLICIT_LITTLE_ENDIAN}."
    )
