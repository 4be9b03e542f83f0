"""PatientIDs with ``*`` or ``?``: legal, but to a PACS they are wildcards, so none is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydicom.dataset import Dataset

from large_pacs import LargePacs, study_uid
from live_server import live_server
from segunlearn.app.datastores import DicomDatastore, open_datastore
from segunlearn.app.forget_service import StudiesCatalogue
from segunlearn.app.forgetting import reporting
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.pacs_sync import PacsSync
from segunlearn.app.patient_studies import PatientStudies
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.store import Store

SECRET = bytes(range(32))
WILD = ("*", "SYN-*", "SYN-?", "?")


@pytest.fixture(scope="module")
def pacs() -> LargePacs:
    return LargePacs(2000)


@pytest.fixture(scope="module")
def studies(pacs: LargePacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomDatastore]:
    with live_server(pacs.app()) as url:
        options = AppOptions.from_conf({"home": str(tmp_path_factory.mktemp("home"))})
        opened = open_datastore(
            f"{url}/dw", options, Home(options.home), label_values=dict, keep=list
        )
        assert isinstance(opened, DicomDatastore)
        yield opened


def test_the_stand_in_matches_as_a_pacs_does(pacs: LargePacs, studies: DicomDatastore) -> None:
    """PS3.4 C.2.2.2.4; else the other tests here would show nothing."""
    listed = studies.archive.iter_series(filters={"PatientID": "?YN-1*"})
    assert {s.patient_id[:5] for s in listed} == {"SYN-1"}
    listed = studies.archive.iter_series(filters={"PatientID": "SYN-1?"})
    assert {s.patient_id for s in listed} == {f"SYN-1{n}" for n in range(10)}
    assert not list(studies.archive.iter_series(filters={"PatientID": "SYN.1"}))


@pytest.mark.parametrize("patient", WILD)
def test_no_pacs_is_asked_for_a_pattern(
    pacs: LargePacs, studies: DicomDatastore, patient: str
) -> None:
    pacs.asked.clear()
    catalogue = StudiesCatalogue(lambda: studies)
    assert studies.archive.studies_of_patient(patient) == []
    assert studies.persons_numbered(patient) == set()
    assert catalogue.issuers(patient) == set()
    assert catalogue.studies(patient, "") == []
    assert not pacs.asked


@pytest.mark.parametrize("known", [(), (study_uid(3), study_uid(4))])
def test_an_older_mark_is_told_by_the_studies_that_are_known(
    pacs: LargePacs,
    studies: DicomDatastore,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    known: tuple[str, ...],
) -> None:
    outbox, sent = Outbox(store), list[Dataset]()
    forget_set = ForgetSet(store, on_change=reporting(outbox))
    forget_set.mark("patient", "SYN-*", "consent_withdrawn", "", "ann", opaque=True, studies=known)
    monkeypatch.setattr(studies.archive, "store", sent.extend)
    sync = PacsSync(
        studies.archive, outbox, PacsSeen(store), lambda proposal: True, secret=SECRET,
        patients=PatientStudies(forget_set, studies.studies_of_patient),
    )  # fmt: skip
    pacs.asked.clear()
    result = sync.send_due()
    assert pacs.asked["studies"] == 0
    assert sum(pacs.asked.values()) <= 20 * len(known)
    assert {str(d.StudyInstanceUID) for d in sent} == set(known)
    assert (result.sent, result.failed) == ((1, 0) if known else (0, 1))
    if not known:
        assert "by their StudyInstanceUID" in outbox.status().last_error


def test_an_older_mark_is_read_and_withdrawn(store: Store) -> None:
    outbox = Outbox(store)
    forget_set = ForgetSet(store, on_change=reporting(outbox))
    request, _ = forget_set.mark(
        "patient", "SYN-*", "consent_withdrawn", "", "ann", opaque=True
    )  # as before such ids were refused
    assert forget_set.get(request.request_id).target.id == "SYN-*"
    assert [r.target.id for r in forget_set.list()] == ["SYN-*"]
    assert forget_set.withdraw(request.request_id, actor="ann", why="").state == "withdrawn"
