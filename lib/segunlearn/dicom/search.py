"""Searching an archive over QIDO-RS (PS3.18 section 10.6), and the answers' attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from segunlearn.dicom.web import fault_of
from segunlearn.errors import SegUnlearnError, UnsupportedSeriesError

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


@dataclass(frozen=True)
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
    search: Callable[..., list[dict[str, Any]]] = getattr(client, f"search_for_{level}")
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
            answer = _readable(item)
            name = text(answer, uid)
            if name and name not in seen:
                seen.add(name)
                fresh += 1
                yield answer
        offset += len(page)
        if fresh == 0:
            return


def series_record(answer: Dataset, study: str = "") -> SeriesRecord:
    """Make a record of one answer; ``study`` where the answer does not name it."""
    return SeriesRecord(
        study_instance_uid=text(answer, "StudyInstanceUID") or study,
        series_instance_uid=text(answer, "SeriesInstanceUID"),
        patient_id=text(answer, "PatientID"),
        modality=text(answer, "Modality"),
        series_description=text(answer, "SeriesDescription"),
        series_number=integer(answer, "SeriesNumber"),
        study_date=text(answer, "StudyDate"),
        study_description=text(answer, "StudyDescription"),
        number_of_instances=integer(answer, "NumberOfSeriesRelatedInstances"),
        issuer_of_patient_id=text(answer, "IssuerOfPatientID"),
    )


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


def parse(answer: Mapping[str, Any]) -> Dataset:
    """Parse DICOM JSON; bulk data stay where they are."""
    try:
        return Dataset.from_json(dict(answer), bulk_data_uri_handler=lambda _uri: None)
    except Exception as error:
        raise UnsupportedSeriesError(
            f"the archive answered with attributes that cannot be read ({error})."
        ) from error


def _readable(answer: Any) -> Dataset:
    """Parse what can be parsed: one bad value must not hide the other series."""
    try:
        return parse(answer)
    except UnsupportedSeriesError:
        result = Dataset()
        for tag, element in answer.items() if isinstance(answer, Mapping) else ():
            with suppress(UnsupportedSeriesError):
                result.update(parse({tag: element}))
        return result


def text(dataset: Dataset, keyword: str) -> str:
    """Value of an attribute without outer spaces; empty when it is missing."""
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip()


def integer(dataset: Dataset, keyword: str) -> int | None:
    """Value of an attribute as a whole number; None when it is missing or no number."""
    try:
        return int(dataset.get(keyword))
    except (TypeError, ValueError):
        return None
