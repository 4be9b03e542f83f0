"""What the app knows of studies, series and patients when one of them is marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from segunlearn.app.datastores.studies import ImageRecord
from segunlearn.app.forget_service import StudiesCatalogue
from segunlearn.records.targets import split_person

RECORDS = (
    ImageRecord("1.1.1", "1.1", "4711^^^St. Anna"),
    ImageRecord("1.2.1", "1.2", "4711^^^St. Bernd"),
    ImageRecord("1.3.1", "1.3", "0815"),
)


class Studies:
    """A list of images, in place of a datastore."""

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._records = {r.id: r for r in records}

    def list_images(self) -> list[str]:
        return sorted(self._records)

    def record(self, image_id: str) -> ImageRecord:
        return self._records[image_id]


@pytest.fixture
def catalogue() -> StudiesCatalogue:
    studies: Any = Studies(RECORDS)
    return StudiesCatalogue(lambda: studies)


@pytest.mark.parametrize(
    ("patient", "studies"),
    [
        ("4711", ["1.1", "1.2"]), ("4711^^^St. Anna", ["1.1"]), (" 4711^^^St.  Bernd ", ["1.2"]),
        ("4711^^^St. Clara", []), ("0815", ["1.3"]), ("0815^^^St. Anna", ["1.3"]), ("4712", []),
    ],
)  # fmt: skip
def test_studies_are_a_patients_when_the_issuer_agrees_or_is_unknown(
    catalogue: StudiesCatalogue, patient: str, studies: list[str]
) -> None:
    assert catalogue.studies(*split_person(patient)) == studies


def test_issuers_of_a_number(catalogue: StudiesCatalogue) -> None:
    assert catalogue.issuers("4711") == {"St. Anna", "St. Bernd"}
    assert catalogue.issuers("0815") == {""}
    assert catalogue.issuers("4712") == set()
