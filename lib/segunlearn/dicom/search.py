"""Searching an archive over QIDO-RS (PS3.18 section 10.6), and the answers' attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from sys import intern
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from segunlearn.dicom.web import fault_of
from segunlearn.errors import SegUnlearnError

#: Results asked for in one search request.
PAGE = 100
SERIES_FIELDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
    "Modality",
    "SeriesDescription",
    "SeriesNumber",
    "StudyDate",
    "StudyDescription",
    "NumberOfSeriesRelatedInstances",
)


#: Tags of the attributes that are read without pydicom, as the DICOM JSON model writes them.
_TAGS = {
    keyword: f"{tag_for_keyword(keyword):08X}" for keyword in (*SERIES_FIELDS, "SOPInstanceUID")
}


@dataclass(frozen=True, slots=True)
class SeriesRecord:
    """One series as a search answers; absent attributes are empty.

    Parameters
    ----------
    study_instance_uid, series_instance_uid, patient_id, modality
        DICOM identifiers of the series.
    series_description, series_number, study_date, study_description
        As in the header; the date is ``YYYYMMDD``.
    number_of_instances
        Instances that the archive holds, None when it does not say.
    issuer_of_patient_id
        Who gave the PatientID, which is unique only within its issuer; many archives do not say.
    """

    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    modality: str
    series_description: str = ""
    series_number: int | None = None
    study_date: str = ""
    study_description: str = ""
    number_of_instances: int | None = None
    issuer_of_patient_id: str = ""


def search(
    client: Any, level: str, criteria: Mapping[str, str], fields: Sequence[str], *path: str
) -> Iterator[Dataset]:
    """Ask page by page, until a page brings nothing new (some servers ignore ``offset``)."""
    for item in _answers(client, level, criteria, fields, *path):
        yield parse(item)


def search_series(
    client: Any, criteria: Mapping[str, str], study: str = ""
) -> Iterator[SeriesRecord]:
    """Search for series, of one study where it is named; pages are asked for as they are read."""
    for item in _answers(client, "series", criteria, SERIES_FIELDS, study):
        yield _series_record(item, study)


def count_instances(client: Any, study: str, series: str) -> int:
    """Count the instances of a series as a search lists them, page by page."""
    return sum(1 for _ in _answers(client, "instances", {}, (), study, series))


def _answers(
    client: Any, level: str, criteria: Mapping[str, str], fields: Sequence[str], *path: str
) -> Iterator[Mapping[str, Any]]:
    search: Callable[..., list[Any]] = getattr(client, f"search_for_{level}")
    names = [p for p in path if p]
    keys = dict(zip(("study_instance_uid", "series_instance_uid"), names, strict=False))
    uid = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}.get(
        level, "SOPInstanceUID"
    )
    seen: set[str] = set()
    offset = 0
    while True:
        with faults(f"search for {level}"):
            page = list(
                search(
                    **keys,
                    search_filters=dict(criteria),
                    fields=list(fields),
                    limit=PAGE,
                    offset=offset,
                )
            )
        fresh = 0
        for item in page:
            name = _plain(item, uid) if isinstance(item, Mapping) else ""
            if name and name not in seen:
                seen.add(name)
                fresh += 1
                yield item
        offset += len(page)
        if fresh == 0:
            return


def _series_record(answer: Mapping[str, Any], study: str) -> SeriesRecord:
    """Make a record of one answer; ``study`` where the answer does not name it.

    Read without pydicom, which takes fifty times as long, and with each text that comes again and
    again kept once: archives list a hundred thousand of them.
    """

    def word(keyword: str) -> str:
        return intern(_plain(answer, keyword))

    return SeriesRecord(
        study_instance_uid=word("StudyInstanceUID") or study,
        series_instance_uid=_plain(answer, "SeriesInstanceUID"),
        patient_id=word("PatientID"),
        modality=word("Modality"),
        series_description=word("SeriesDescription"),
        series_number=_whole(_plain(answer, "SeriesNumber")),
        study_date=word("StudyDate"),
        study_description=word("StudyDescription"),
        number_of_instances=_whole(_plain(answer, "NumberOfSeriesRelatedInstances")),
        issuer_of_patient_id=word("IssuerOfPatientID"),
    )


def _plain(answer: Mapping[str, Any], keyword: str) -> str:
    """First value of an attribute of the DICOM JSON model, as text; empty when there is none."""
    tag = _TAGS[keyword]
    element = answer.get(tag) or answer.get(tag.lower())
    values = element.get("Value") if isinstance(element, Mapping) else None
    value = values[0] if isinstance(values, list) and values else None
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _whole(word: str) -> int | None:
    try:
        return int(float(word))
    except (ValueError, OverflowError):
        return None


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Turn what HTTP libraries raise into this package's errors."""
    try:
        yield
    except SegUnlearnError:
        raise
    except Exception as error:
        fault = fault_of(error, what)
        if fault is None:
            raise
        raise fault from error


def parse(answer: Any) -> Dataset:
    """Parse what can be parsed of DICOM JSON; bulk data stay where they are.

    One bad value must hide neither the other attributes nor the other series.
    """
    try:
        return _parse(answer)
    except Exception:  # noqa: BLE001 - pydicom raises a dozen kinds
        result = Dataset()
        for tag, element in answer.items() if isinstance(answer, Mapping) else ():
            with suppress(Exception):
                result.update(_parse_one(tag, element))
        return result


def _parse_one(tag: str, element: Mapping[str, Any]) -> Dataset:
    if element.get("vr") != "SQ":
        return _parse({tag: element})
    sequence = Dataset()
    sequence.add_new(int(tag, 16), "SQ", [parse(item) for item in element.get("Value") or []])
    return sequence


def _parse(answer: Mapping[str, Any]) -> Dataset:
    return Dataset.from_json(dict(answer), bulk_data_uri_handler=lambda _uri: None)


def text(dataset: Dataset, keyword: str) -> str:
    """Value of an attribute without outer spaces; empty when it is missing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()
