"""A PACS of very many series that exist only as answers: QIDO-RS, and WADO-RS for single series.

``python tests/large_pacs.py PORT SERIES LABELLED CAP`` serves one on 127.0.0.1 from a process of
its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any

import uvicorn
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dicom_sources import make_series

ROOT = "1.2.826.0.1.3680043.10.1.7"
_VR = {
    "StudyInstanceUID": ("0020000D", "UI"),
    "SeriesInstanceUID": ("0020000E", "UI"),
    "SOPInstanceUID": ("00080018", "UI"),
    "SOPClassUID": ("00080016", "UI"),
    "PatientID": ("00100020", "LO"),
    "Modality": ("00080060", "CS"),
    "StudyDate": ("00080020", "DA"),
    "SeriesDescription": ("0008103E", "LO"),
    "SeriesNumber": ("00200011", "IS"),
    "NumberOfSeriesRelatedInstances": ("00201209", "IS"),
}
Row = dict[str, Any]


def study_uid(number: int) -> str:
    """StudyInstanceUID of the study with this number."""
    return f"{ROOT}.1.{number}"


def series_uid(number: int) -> str:
    """SeriesInstanceUID of the image series with this number."""
    return f"{ROOT}.2.{number}"


@dataclass(eq=False)
class LargePacs:
    """Studies of five image series each; the first ones have a segmentation, too.

    Parameters
    ----------
    series
        Number of image series, four CT and one MR a study.
    labelled
        Studies with a SEG of their first series.
    cap
        Rows in one answer at most, whatever is asked for, as many PACS do; None for no bound.
    delay
        Seconds before each page of the whole archive.
    """

    series: int
    labelled: int = 0
    cap: int | None = None
    delay: float = 0.0
    #: Whether answers tell how many instances a series has; many PACS do not.
    counts: bool = True
    #: Series of which only a part arrives.
    broken: frozenset[str] = frozenset()
    #: What was asked for: requests by resource, the largest answer in rows, and largest ``limit``.
    asked: Counter[str] = field(default_factory=Counter)
    largest: int = 0
    limits: set[int | None] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._images = [self._image(n) for n in range(self.series)]
        self._segs = [self._seg(n) for n in range(self.labelled)]
        self._of = {row["SeriesInstanceUID"]: row for row in (*self._images, *self._segs)}
        self._by_study: dict[str, list[Row]] = {}
        for row in self._of.values():
            self._by_study.setdefault(row["StudyInstanceUID"], []).append(row)

    def _image(self, number: int) -> Row:
        study = number // 5
        return {
            "StudyInstanceUID": study_uid(study),
            "SeriesInstanceUID": series_uid(number),
            "PatientID": f"SYN-{study // 2}",
            "Modality": "MR" if number % 5 == 4 else "CT",
            "StudyDate": f"20{study % 20:02d}0{1 + study % 9}15",
            "SeriesDescription": f"synthetic series {number % 5}",
            "SeriesNumber": number % 5 + 1,
            "NumberOfSeriesRelatedInstances": 8,
        }

    def _seg(self, study: int) -> Row:
        image = self._images[study * 5]
        return {
            **image, "SeriesInstanceUID": f"{ROOT}.3.{study}", "Modality": "SEG",
            "NumberOfSeriesRelatedInstances": 1,
        }  # fmt: skip

    # -- QIDO-RS ---------------------------------------------------------------------------------

    def _answer(self, what: str, request: Request, rows: list[Row]) -> Response:
        query = request.query_params
        for key in _VR.keys() & query.keys():
            rows = [r for r in rows if _matches(key, str(r.get(key, "")), query[key])]
        limit = int(query["limit"]) if "limit" in query else None
        offset = int(query.get("offset", 0))
        self.asked[what] += 1
        self.limits.add(limit)
        most = min((n for n in (limit, self.cap) if n is not None), default=len(rows))
        rows = rows[offset : offset + most]
        self.largest = max(self.largest, len(rows))
        if not self.counts:
            count = "NumberOfSeriesRelatedInstances"
            rows = [{k: v for k, v in r.items() if k != count} for r in rows]
        content = json.dumps([_attributes(r) for r in rows])
        return Response(content, media_type="application/dicom+json")

    def _chosen(self, request: Request) -> list[Row]:
        """Rows that can match, without going through all of them for one UID."""
        query, path = request.query_params, request.path_params
        if "SeriesInstanceUID" in query:
            found = self._of.get(query["SeriesInstanceUID"])
            rows = [found] if found is not None else []
        elif study := path.get("study") or query.get("StudyInstanceUID"):
            rows = self._by_study.get(study, [])
        elif query.get("Modality") == "SEG":
            rows = self._segs
        else:
            rows = self._modality(query.get("Modality", ""))
        study = path.get("study")
        return [r for r in rows if r["StudyInstanceUID"] == study] if study else rows

    @lru_cache(maxsize=8)  # noqa: B019  one object a process
    def _modality(self, modality: str) -> list[Row]:
        return [r for r in self._of.values() if modality in ("", r["Modality"])]

    async def _series(self, request: Request) -> Response:
        what = "series of a study" if "study" in request.path_params else "series"
        if what == "series" and request.query_params.get("Modality") != "SEG" and not (
            {"SeriesInstanceUID", "PatientID"} & request.query_params.keys()
        ):  # fmt: skip
            what = "pages"
            await asyncio.sleep(self.delay)
        return self._answer(what, request, self._chosen(request))

    async def _studies(self, request: Request) -> Response:
        wanted = request.query_params.get("StudyInstanceUID")
        groups = [self._by_study.get(wanted, [])] if wanted else self._by_study.values()
        return self._answer("studies", request, [g[0] for g in groups if g])

    async def _instances(self, request: Request) -> Response:
        row = self._of.get(request.path_params["series"])
        rows = [
            {
                **row,
                "SOPInstanceUID": f"{row['SeriesInstanceUID']}.{n + 1}",
                "SOPClassUID": SegmentationStorage if row["Modality"] == "SEG" else "1.2.840.1",
            }
            for n in range(row["NumberOfSeriesRelatedInstances"])
        ] if row else []  # fmt: skip
        return self._answer("instances", request, rows)

    # -- WADO-RS ---------------------------------------------------------------------------------

    def datasets(self, series: str) -> list[Dataset]:
        """Instances of an image series."""
        row = self._of[series]
        found = make_series(
            shape=(32, 28, 8), spacing=(1.5, 1.5, 2.0), patient_id=row["PatientID"],
            study_uid=row["StudyInstanceUID"], modality=row["Modality"],
        ).datasets  # fmt: skip
        for ds in found:
            ds.SeriesInstanceUID = series
            ds.SOPInstanceUID = f"{series}.{ds.InstanceNumber}"
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        return [ds for ds in found if ds.InstanceNumber <= row["NumberOfSeriesRelatedInstances"]]

    async def _retrieve(self, request: Request) -> Response:
        self.asked["retrieved series"] += 1
        parts = []
        series = request.path_params["series"]
        for ds in self.datasets(series)[: 5 if series in self.broken else None]:
            file = BytesIO()
            ds.save_as(file, enforce_file_format=True)
            parts.append(
                b"--part\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n"
            )
        kind = 'multipart/related; type="application/dicom"; boundary=part'
        return Response(b"".join(parts) + b"--part--", media_type=kind)

    async def _metadata(self, request: Request) -> Response:
        self.asked["metadata"] += 1
        row = self._of[request.path_params["series"]]
        if row["Modality"] != "SEG":
            headers = self.datasets(row["SeriesInstanceUID"])
            for ds in headers:
                del ds.PixelData
            return JSONResponse([ds.to_json_dict() for ds in headers])
        seg = Dataset()
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality"):
            setattr(seg, name, row[name])
        seg.SOPClassUID, seg.SOPInstanceUID = SegmentationStorage, f"{row['SeriesInstanceUID']}.1"
        seg.ContentDate, seg.ContentTime = row["StudyDate"], "120000"
        segment, image = Dataset(), Dataset()
        segment.SegmentNumber, segment.SegmentLabel = 1, "core"
        image.SeriesInstanceUID = self._by_study[row["StudyInstanceUID"]][0]["SeriesInstanceUID"]
        seg.SegmentSequence, seg.ReferencedSeriesSequence = [segment], [image]
        return JSONResponse([seg.to_json_dict()])

    # -- what was asked --------------------------------------------------------------------------

    async def _report(self, request: Request) -> Response:
        report = {
            "requests": dict(self.asked), "largest": self.largest,
            "limits": sorted(self.limits, key=lambda n: n or 0),
        }  # fmt: skip
        if request.method == "POST":
            self.asked.clear()
            self.limits.clear()
            self.largest = 0
        return JSONResponse(report)

    def app(self) -> Starlette:
        """Return the ASGI application; DICOMweb is below ``/dw``."""
        series = "/dw/studies/{study}/series/{series}"
        return Starlette(
            routes=[
                Route("/asked", self._report, methods=["GET", "POST"]),
                Route("/dw/studies", self._studies),
                Route("/dw/series", self._series),
                Route("/dw/studies/{study}/series", self._series),
                Route(series, self._retrieve),
                Route(f"{series}/instances", self._instances),
                Route(f"{series}/metadata", self._metadata),
                Route(f"{series}/instances/{{instance}}/metadata", self._metadata),
            ]
        )


def _matches(key: str, value: str, wanted: str) -> bool:
    """Match as PS3.4 C.2.2.2 does: texts with the wildcards ``*`` and ``?``, UIDs without."""
    if _VR[key][1] == "UI" or not {"*", "?"} & set(wanted):
        return value == wanted
    signs = {"*": ".*", "?": "."}
    return re.fullmatch("".join(signs.get(c, re.escape(c)) for c in wanted), value) is not None


def _attributes(row: Row) -> dict[str, Any]:
    return dict(_elements(row))


def _elements(row: Row) -> Iterator[tuple[str, Any]]:
    for keyword, value in row.items():
        tag, vr = _VR[keyword]
        yield tag, {"vr": vr, "Value": [value]}


if __name__ == "__main__":
    pacs = LargePacs(int(sys.argv[2]), labelled=int(sys.argv[3]), cap=int(sys.argv[4]) or None)
    uvicorn.run(pacs.app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
