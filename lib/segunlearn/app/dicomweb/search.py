"""QIDO-RS: search for studies, series and instances (PS3.18 section 10.6)."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from pydicom.datadict import tag_for_keyword

from segunlearn.app.dicomweb.common import (
    DICOM_JSON,
    Client,
    SeriesUID,
    StudyUID,
    address,
    make_router,
    reader,
    root,
)
from segunlearn.app.dicomweb.frames import dumps, read_header
from segunlearn.app.dicomweb.media import require
from segunlearn.dicom.folder import FolderClient
from segunlearn.dicom.json_model import to_json
from segunlearn.errors import InvalidInputError, SegUnlearnError

router = make_router(dependencies=[reader])

#: Results in one answer at most; more are said to be there (PS3.18 section 8.3.4.4).
LARGEST_ANSWER = 5000

_STUDY, _SERIES, _INSTANCE, _RETRIEVE_URL = "0020000D", "0020000E", "00080018", "00081190"
_OPTIONS = ("limit", "offset", "fuzzymatching", "includefield", "accept", "charset")


@router.get("/studies", summary="Search for studies (QIDO-RS)")
def studies(request: Request, client: Client) -> Response:
    """Search for studies; any indexed attribute is a filter."""
    return _search(request, client, "studies")


@router.get("/series", summary="Search for series (QIDO-RS)")
def all_series(request: Request, client: Client) -> Response:
    """Search for series of all studies."""
    return _search(request, client, "series")


@router.get("/instances", summary="Search for instances (QIDO-RS)")
def all_instances(request: Request, client: Client) -> Response:
    """Search for instances of all studies."""
    return _search(request, client, "instances")


@router.get("/studies/{study}/series", summary="Search for series of a study (QIDO-RS)")
def series(request: Request, client: Client, study: StudyUID) -> Response:
    """Search for series of a study."""
    return _search(request, client, "series", StudyInstanceUID=study)


@router.get("/studies/{study}/instances", summary="Search for instances of a study (QIDO-RS)")
def study_instances(request: Request, client: Client, study: StudyUID) -> Response:
    """Search for instances of a study."""
    return _search(request, client, "instances", StudyInstanceUID=study)


@router.get(
    "/studies/{study}/series/{series}/instances",
    summary="Search for instances of a series (QIDO-RS)",
)
def series_instances(
    request: Request, client: Client, study: StudyUID, series: SeriesUID
) -> Response:
    """Search for instances of a series."""
    return _search(request, client, "instances", StudyInstanceUID=study, SeriesInstanceUID=series)


def _search(request: Request, client: FolderClient, level: str, **within: str) -> Response:
    require(request, DICOM_JSON, "application/json")
    filters: dict[str, str] = {}
    wanted: list[str] = []
    for key, value in request.query_params.multi_items():
        if key == "includefield":
            wanted.extend(v.strip() for v in value.split(",") if v.strip())
        elif key not in _OPTIONS:
            if filters.get(key, value) != value:
                raise InvalidInputError(
                    f"search filter {key} is given twice. Separate several UIDs by a comma."
                )
            filters[key] = value
    asked = _whole(request, "limit")
    limit = LARGEST_ANSWER if asked is None else min(asked, LARGEST_ANSWER)
    client.index.refresh()
    results = client.index.query(
        level,
        {**filters, **within},
        limit=limit + 1,
        offset=_whole(request, "offset"),
        fuzzymatching=request.query_params.get("fuzzymatching", "").lower() == "true",
    )
    headers = {}
    if len(results) > limit and limit == LARGEST_ANSWER:
        headers["Warning"] = f'299 {root(request)} "There are additional results"'
    results = results[:limit]
    tags = [tag for tag in map(_tag, wanted) if tag]
    for result in results:
        uids = [_value(result, tag) for tag in (_STUDY, _SERIES, _INSTANCE)]
        _add_fields(client, result, [t for t in tags if t not in result], uids)
        result[_RETRIEVE_URL] = {"vr": "UR", "Value": [address(request, *uids)]}
        result["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
    if not results:
        return Response(status_code=204)
    ordered = [dict(sorted(result.items())) for result in results]
    return Response(dumps(ordered), media_type=DICOM_JSON, headers=headers)


def _whole(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InvalidInputError(f"{name}={text!r:.20}: give a whole number, at least 0.")
    return int(text)


def _tag(field: str) -> str | None:
    """Eight hexadecimal digits of a field; None for ``all`` and for what is unknown."""
    if len(field) == 8 and all(c in "0123456789abcdefABCDEF" for c in field):
        return field.upper()
    tag = tag_for_keyword(field)
    return f"{tag:08X}" if tag is not None else None


def _value(result: dict[str, Any], tag: str) -> str:
    values = result.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _add_fields(
    client: FolderClient, result: dict[str, Any], tags: list[str], uids: list[str]
) -> None:
    """Add attributes that the index does not keep, out of one file of the result."""
    tags = [t for t in tags if t < "7FE00008"]
    if not tags:
        return
    try:
        study, series, instance = uids
        if not series:
            first = client.index.query("series", {"StudyInstanceUID": study}, limit=1)
            series = _value(first[0], _SERIES) if first else ""
        path = client.index.files(study, series, instance or None)[0]
        header = read_header(path, tags)
        found = to_json(header)
        result.update({t: found[t] for t in tags if t in found})
    except SegUnlearnError:
        return  # the attributes are optional (PS3.18 section 10.6.1.5); the result is not
