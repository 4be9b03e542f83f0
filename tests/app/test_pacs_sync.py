"""Documents reach a real PACS, come back from it, and survive its outages."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from key_object_sources import ct_series, rejection_note
from orthanc_process import OrthancProcess
from segunlearn.app import pacs_sync
from segunlearn.app.forgetting import proposing, reporting
from segunlearn.app.pacs_sync import PacsSync
from segunlearn.app.patient_studies import PatientStudies
from segunlearn.cases import Case
from segunlearn.dicom.archive import Archive, open_archive
from segunlearn.dicom.key_objects import references_of
from segunlearn.dicom.orthanc import OrthancChanges, find_orthanc
from segunlearn.dicom.rejection import Proposal
from segunlearn.dicom.retraction import RetractionNote, build_retractions, parse_retraction
from segunlearn.errors import ForbiddenError, InvalidInputError, NotFoundError, UnavailableError
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.store import Store

pytestmark = pytest.mark.pacs
SECRET = bytes(range(32))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrthancProcess]:
    process = OrthancProcess(tmp_path_factory.mktemp("pacs"))
    process.start()
    yield process
    process.stop()


@pytest.fixture
def pacs(server: OrthancProcess) -> OrthancProcess:
    for patient in requests.get(f"{server.rest}/patients", timeout=20).json():
        requests.delete(f"{server.rest}/patients/{patient}", timeout=20)
    return server


class Site:
    """One installation on the PACS, with a list in place of its forget set."""

    def __init__(self, pacs: OrthancProcess, store: Store, folder: Path, **options: Any) -> None:
        self.store, self.outbox = store, Outbox(store)
        self.proposals: list[Proposal] = []
        self.archive: Archive = open_archive(pacs.url, index_dir=folder, timeout=2, attempts=1)
        self.sync = PacsSync(
            self.archive, self.outbox, PacsSeen(store), self.propose, secret=SECRET, **options
        )

    def propose(self, proposal: Proposal) -> bool:
        if proposal in self.proposals:
            return False
        self.proposals.append(proposal)
        return True

    def mark(
        self, target: str, kind: str = "study", state: str = "requested", **changes: str
    ) -> str:
        payload = {
            "target_kind": kind,
            "target_id": target,
            "state": state,
            "reason": "consent_withdrawn",
            "needed": "unlearned",
            "reached": "none",
            "changed": datetime.now(UTC).isoformat(),
            **changes,
        }
        with self.store.write() as connection:
            return self.outbox.enqueue(
                connection, lane=f"{kind}:{target}", request_id="f" * 32, payload=payload
            )


@pytest.fixture
def site(pacs: OrthancProcess, store: Store, tmp_path: Path) -> Site:
    return Site(pacs, store, tmp_path)


def key_objects(pacs: OrthancProcess, folder: Path) -> list[Dataset]:
    """All key object documents in the PACS, through its own REST interface, as it received them."""
    found = []
    for name in requests.get(f"{pacs.rest}/instances", timeout=20).json():
        path = folder / f"{name}.dcm"
        path.write_bytes(requests.get(f"{pacs.rest}/instances/{name}/file", timeout=20).content)
        dataset = dcmread(path)
        if dataset.Modality == "KO":
            number = requests.get(
                f"{pacs.rest}/instances/{name}/metadata/IndexInSeries", timeout=20
            )
            assert number.status_code == 200
            found.append(dataset)
    return sorted(found, key=lambda d: int(d.InstanceNumber))


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_mark_becomes_a_document_that_others_read(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    images = ct_series(instances=4)
    pacs.upload(images)
    uid = site.mark(images[0].StudyInstanceUID)
    assert site.sync.send_due().sent == 1
    (document,) = key_objects(pacs, tmp_path)
    assert document.SOPInstanceUID == uid
    retraction = parse_retraction(document)
    assert retraction is not None
    assert retraction.state == "requested"
    assert {r.sop_instance_uid for r in retraction.references} == {i.SOPInstanceUID for i in images}
    assert document.PatientName == "Müller^Änne"
    assert site.outbox.status().waiting == 0
    # the study itself is as it was
    assert len(site.archive.instances(images[0].StudyInstanceUID)) == 5
    if shutil.which("dsrdump"):
        path = tmp_path / "document.dcm"
        document.save_as(path, enforce_file_format=True)
        printed = subprocess.run(
            ["dsrdump", "+Pl", "+Pc", str(path)], capture_output=True, text=True, timeout=30
        )
        assert printed.returncode == 0
        assert "Withdrawn from model training" in printed.stdout


def test_a_series_mark_references_that_series_alone(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    first = ct_series(instances=2)
    second = ct_series(instances=2, study=first[0].StudyInstanceUID)
    pacs.upload(first + second)
    site.mark(second[0].SeriesInstanceUID, "series")
    assert site.sync.send_due().sent == 1
    retraction = parse_retraction(key_objects(pacs, tmp_path)[0])
    assert retraction is not None
    assert {r.series_instance_uid for r in retraction.references} == {second[0].SeriesInstanceUID}


def test_a_patient_mark_gives_each_study_its_document(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    studies = [ct_series(instances=1), ct_series(instances=1), ct_series(patient="P2", instances=1)]
    for images in studies:
        pacs.upload(images)
    site.mark("P1", "patient")
    assert site.sync.send_due().sent == 1
    documents = key_objects(pacs, tmp_path)
    assert {d.StudyInstanceUID for d in documents} == {i[0].StudyInstanceUID for i in studies[:2]}
    assert all(len(d.IdenticalDocumentsSequence) == 1 for d in documents)


def test_a_patient_of_another_issuer_gets_no_document(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    studies = [ct_series(instances=1) for _ in range(3)]
    for images, issuer in zip(studies, ("St. Anna", "St. Bernd", ""), strict=True):
        images[0].IssuerOfPatientID = issuer
        if not issuer:
            del images[0].IssuerOfPatientID
        pacs.upload(images)
    site.mark("P1", "patient", issuer="St. Anna")
    assert site.sync.send_due().sent == 1
    told = {d.StudyInstanceUID: d for d in key_objects(pacs, tmp_path)}
    assert set(told) == {studies[0][0].StudyInstanceUID, studies[2][0].StudyInstanceUID}
    assert told[studies[0][0].StudyInstanceUID].IssuerOfPatientID == "St. Anna"
    assert "IssuerOfPatientID" not in told[studies[2][0].StudyInstanceUID]


def test_a_study_whose_patient_was_corrected_stays_with_the_mark(
    pacs: OrthancProcess, store: Store, tmp_path: Path
) -> None:
    """It is out of training, and is told what becomes of the request."""
    forget_set = ForgetSet(store, on_change=reporting(Outbox(store)))
    site = Site(pacs, store, tmp_path)
    patients = PatientStudies(forget_set, site.archive.studies_of_patient)
    site = Site(pacs, store, tmp_path, patients=patients)
    images = ct_series(instances=2)
    pacs.upload(images)
    request, _ = forget_set.mark("patient", "P1", "consent_withdrawn", actor="anna")
    assert site.sync.send_due().sent == 1
    assert forget_set.get(request.request_id).studies == (images[0].StudyInstanceUID,)
    (patient,) = requests.get(f"{pacs.rest}/patients", timeout=20).json()
    uids = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    change = {
        "Replace": {"PatientID": "P9"}, "Keep": uids, "KeepSource": False, "Force": True,
        "Synchronous": True,
    }  # fmt: skip
    answer = requests.post(f"{pacs.rest}/patients/{patient}/modify", json=change, timeout=20)
    assert answer.status_code == 200, answer.text
    assert site.archive.studies_of_patient("P1") == []
    moved = Case(images[0].SeriesInstanceUID, images[0].StudyInstanceUID, "P9", tmp_path)
    assert forget_set.exclude([moved])[0] == []
    site.sync.poll_once()
    assert forget_set.get(request.request_id).studies == (moved.study,), "and it stays"
    forget_set.withdraw(request.request_id, actor="anna")
    assert site.sync.send_due().sent == 1
    last = parse_retraction(key_objects(pacs, tmp_path)[-1])
    assert last is not None
    assert last.state == "withdrawn"
    assert forget_set.exclude([moved])[0] == [moved]


def test_sending_again_after_a_crash_is_one_instance(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    images = ct_series()
    pacs.upload(images)
    site.mark(images[0].StudyInstanceUID)
    (item,) = site.outbox.claim()
    site.sync._send(item)  # and the process dies before it records that
    site.outbox.release(item)
    assert site.sync.send_due().sent == 1
    assert len(key_objects(pacs, tmp_path)) == 1


def test_a_study_that_is_not_there_yet_waits(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    images = ct_series()
    site.mark(images[0].StudyInstanceUID)
    result = site.sync.send_due()
    assert (result.sent, result.failed, result.reachable) == (0, 1, True)
    assert "no instances" in site.outbox.status().last_error
    pacs.upload(images)
    site.outbox.retry_now()
    assert site.sync.send_due().sent == 1


def test_marks_made_while_the_pacs_is_down_arrive_in_order(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    studies = [ct_series(instances=1) for _ in range(3)]
    for images in studies:
        pacs.upload(images)
    pacs.stop()
    expected = []
    try:
        for state in ("requested", "approved", "working", "fulfilled"):
            for images in studies:
                expected.append(site.mark(images[0].StudyInstanceUID, state=state))
        result = site.sync.send_due()
        assert (result.sent, result.reachable) == (0, False)
        with pytest.raises(UnavailableError):
            site.sync.poll_once()
        assert site.outbox.status().waiting == 12
        assert "cannot be reached" in site.outbox.status().last_error
    finally:
        pacs.start()
    site.outbox.retry_now()
    while site.sync.send_due().sent:
        pass
    assert site.outbox.status().waiting == 0
    documents = key_objects(pacs, tmp_path)
    assert sorted(d.SOPInstanceUID for d in documents) == sorted(expected)
    # the order in which the PACS received them, by its own counter
    received = requests.get(f"{pacs.rest}/changes?limit=1000", timeout=20).json()["Changes"]
    names = [c["ID"] for c in received if c["ChangeType"] == "NewInstance"]
    order = [
        requests.get(f"{pacs.rest}/instances/{n}/simplified-tags", timeout=20).json() for n in names
    ]
    for images in studies:
        sent = [
            t["SOPInstanceUID"]
            for t in order
            if t["Modality"] == "KO" and t["StudyInstanceUID"] == images[0].StudyInstanceUID
        ]
        index = studies.index(images)
        assert sent == expected[index::3]


def test_a_rejection_note_of_a_second_client_becomes_a_proposal_once(
    pacs: OrthancProcess, site: Site, tmp_path: Path
) -> None:
    images = ct_series()
    pacs.upload(images)
    assert site.sync.poll_once() == []
    note = rejection_note(images)
    second = open_archive(pacs.url, index_dir=tmp_path)
    second.store([note])
    (proposal,) = site.sync.poll_once()
    assert proposal.reason == "retention_expired"
    assert proposal.purge
    assert proposal.study_uid == images[0].StudyInstanceUID
    assert proposal.series_uids == ()  # it names every image of the study
    assert proposal.source_document_uid == note.SOPInstanceUID
    assert site.sync.poll_once() == []


def test_a_note_on_one_series_proposes_that_series(pacs: OrthancProcess, site: Site) -> None:
    first = ct_series(instances=1)
    second = ct_series(instances=1, study=first[0].StudyInstanceUID)
    pacs.upload(first + second)
    pacs.upload([rejection_note(first, "113001", "Rejected for Quality Reasons")])
    (proposal,) = site.sync.poll_once()
    assert (proposal.kind, proposal.series_uids) == ("drop", (first[0].SeriesInstanceUID,))


def test_our_own_documents_propose_nothing(pacs: OrthancProcess, site: Site) -> None:
    for images in (ct_series(instances=1), ct_series(instances=1)):
        pacs.upload(images)
    site.mark("P1", "patient")
    site.sync.send_due()
    assert site.sync.poll_once() == []
    assert site.proposals == []


def test_documents_of_another_server_become_proposals(pacs: OrthancProcess, site: Site) -> None:
    images = ct_series()
    pacs.upload(images)
    note = RetractionNote(
        "e" * 32, "requested", "study", "wrong_label", "unlearned", "none", datetime.now(UTC)
    )
    documents = build_retractions(
        note,
        [(images[0], references_of(images))],
        secret=b"another site",
        document_uid=generate_uid(),
    )
    pacs.upload(list(documents))
    (proposal,) = site.sync.poll_once()
    assert (proposal.source, proposal.reason) == ("retraction", "wrong_label")


def test_a_new_document_in_a_known_series_is_found(pacs: OrthancProcess, site: Site) -> None:
    images = ct_series()
    pacs.upload(images)
    first = rejection_note(images, "113001", "Rejected for Quality Reasons")
    pacs.upload([first])
    assert len(site.sync.poll_once()) == 1
    revocation = rejection_note(images, "REVOKE_REJECTION", "Restore", "99DCM4CHEE")
    revocation.SeriesInstanceUID = first.SeriesInstanceUID
    pacs.upload([revocation])
    assert [p.kind for p in site.sync.poll_once()] == ["withdraw"]


class Unready:
    """A request to the archive that fails while ``fault`` is set."""

    def __init__(self, site: Site, name: str, fault: Any) -> None:
        self.asked, self.fault = 0, fault
        self._request = getattr(site.archive, name)
        setattr(site.archive, name, self)

    def __call__(self, *uids: str) -> Any:
        self.asked += 1
        if isinstance(self.fault, Exception):
            raise self.fault
        return self._request(*uids) if self.fault is None else self.fault


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("header", NotFoundError("not indexed yet")),
        ("header", ForbiddenError("the rights change")),
        ("header", Dataset()),
        ("instances", NotFoundError("not indexed yet")),
        ("instances", []),
    ],
)
def test_a_document_that_cannot_be_read_yet_is_read_later(
    pacs: OrthancProcess, store: Store, tmp_path: Path, name: str, fault: Any
) -> None:
    site = Site(pacs, store, tmp_path, find_changes=lambda: find_orthanc(pacs.url))
    images = ct_series()
    pacs.upload(images)
    site.sync.poll_once()  # from now on Orthanc's counter tells whether to look
    pacs.upload([rejection_note(images)])
    unready = Unready(site, name, fault)
    for _ in range(3):
        assert site.sync.poll_once() == []
    assert unready.asked >= 2
    unready.fault = None
    later = Site(pacs, store, tmp_path)  # the server was restarted, too
    assert [len(later.sync.poll_once()) for _ in range(4)] == [1, 0, 0, 0]


def test_a_document_that_can_never_be_read_is_asked_for_ever_more_seldom_then_never(
    pacs: OrthancProcess, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segunlearn.app.pacs_sync.LAST_POLL", 16)
    images = ct_series()
    broken = rejection_note(images)
    pacs.upload([*images, broken])
    unready = Unready(site, "header", NotFoundError("there is none"))
    for _ in range(40):
        site.sync.poll_once()
    assert unready.asked == 5  # polls 1, 2, 4, 8, 16
    unready.fault = None
    second = rejection_note(images)
    second.SeriesInstanceUID = broken.SeriesInstanceUID
    pacs.upload([second])
    (proposal,) = site.sync.poll_once()
    assert proposal.source_document_uid == second.SOPInstanceUID


def test_a_document_at_which_the_pacs_fails_hides_no_other(
    pacs: OrthancProcess, site: Site
) -> None:
    images = ct_series()
    notes = [rejection_note(images), rejection_note(images)]
    pacs.upload([*images, *notes])
    read = site.archive.header

    def header(study: str, series: str, document: str) -> Dataset:
        if document == notes[0].SOPInstanceUID:
            raise UnavailableError("500")
        return read(study, series, document)

    site.archive.header = header  # type: ignore[method-assign]
    for _ in range(4):
        with suppress(UnavailableError):
            site.sync.poll_once()
    (proposal,) = site.proposals
    assert proposal.source_document_uid == notes[1].SOPInstanceUID


def test_a_study_deleted_from_the_pacs_is_proposed_after_two_polls(
    pacs: OrthancProcess, store: Store, tmp_path: Path
) -> None:
    kept, removed = ct_series(instances=1), ct_series(instances=1)
    never = generate_uid()  # trained on from elsewhere: its absence says nothing
    watched = [kept[0].StudyInstanceUID, removed[0].StudyInstanceUID, never]
    site = Site(pacs, store, tmp_path, studies=lambda: watched)
    pacs.upload(kept + removed)
    assert site.sync.poll_once() == []
    pacs.delete_study(removed[0].StudyInstanceUID)
    assert site.sync.poll_once() == []
    (proposal,) = site.sync.poll_once()
    assert (proposal.source, proposal.study_uid) == ("deletion", removed[0].StudyInstanceUID)
    assert site.sync.poll_once() == []
    pacs.upload(removed)
    assert site.sync.poll_once() == []
    assert len(site.proposals) == 1


def test_nothing_is_searched_while_the_change_counter_stands(
    pacs: OrthancProcess, store: Store, tmp_path: Path
) -> None:
    site = Site(pacs, store, tmp_path, find_changes=lambda: find_orthanc(pacs.url))
    images = ct_series()
    pacs.upload([*images, rejection_note(images)])
    assert len(site.sync.poll_once()) == 1
    assert site.sync.poll_once() == []  # the counter is known from now on
    searches: list[object] = []
    search = site.archive.client.search_for_series
    site.archive.client.search_for_series = lambda **o: (  # type: ignore[method-assign]
        searches.append(o) or search(**o)
    )
    assert site.sync.poll_once() == []
    assert searches == []
    pacs.upload([rejection_note(images, "113001", "Rejected for Quality Reasons")])
    assert len(site.sync.poll_once()) == 1
    assert searches != []


def test_key_objects_that_take_long_to_list_are_listed_the_more_seldom(
    pacs: OrthancProcess, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PACS with many of them, key images of every day, would be asked for all at every poll."""
    site = Site(pacs, store, tmp_path)
    images = ct_series()
    searches: list[object] = []
    search = site.archive.client.search_for_series

    def slowly(**options: Any) -> Any:
        searches.append(options)
        time.sleep(0.6)
        return search(**options)

    site.archive.client.search_for_series = slowly  # type: ignore[method-assign]
    site.sync.poll_once()
    assert len(searches) == 1
    pacs.upload([*images, rejection_note(images)])
    assert site.sync.poll_once() == []
    assert len(searches) == 1
    clock = time.monotonic
    monkeypatch.setattr(pacs_sync.time, "monotonic", lambda: clock() + 60)
    assert len(site.sync.poll_once()) == 1


def test_orthanc_is_found_only_where_it_is(pacs: OrthancProcess) -> None:
    assert find_orthanc(f"{pacs.rest}/dicom-web/") is not None
    assert find_orthanc("http://127.0.0.1:9/dicom-web") is None
    with pytest.raises(UnavailableError):
        OrthancChanges(f"{pacs.rest}/nothing").last()


def test_the_thread_sends_after_an_outage_and_stops(
    pacs: OrthancProcess, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    images = ct_series(instances=1)
    pacs.upload(images)
    site.sync.start()
    site.sync.start()
    try:
        time.sleep(0.2)
        site.mark(images[0].StudyInstanceUID)
        started = time.monotonic()
        site.sync.wake()
        wait_for(lambda: site.outbox.status().waiting == 0)
        assert time.monotonic() - started < 5.0
    finally:
        assert site.sync.stop()
    assert site.sync.stop()
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_fault_does_not_end_the_thread(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segunlearn.app.pacs_sync.FIRST_PAUSE", 0.01)
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(site.sync, "send_due", fail)
    with caplog.at_level(logging.CRITICAL, logger="segunlearn.app.pacs_sync"):
        site.sync.start()
        try:
            wait_for(lambda: len(calls) >= 3)
        finally:
            assert site.sync.stop()


def test_from_the_mark_to_the_pacs_and_from_the_pacs_to_the_decision(
    pacs: OrthancProcess, store: Store, tmp_path: Path
) -> None:
    """The whole way with the real forget set: no list in its place."""
    images = ct_series(instances=2)
    study = images[0].StudyInstanceUID
    pacs.upload(images)
    outbox, seen = Outbox(store), PacsSeen(store)
    forget_set = ForgetSet(store, on_change=reporting(outbox))
    sync = PacsSync(
        open_archive(pacs.url, index_dir=tmp_path),
        outbox,
        seen,
        proposing(forget_set, seen),
        secret=SECRET,
    )
    request, _ = forget_set.mark("study", study, "wrong_label", actor="anna")
    forget_set.approve(request.request_id, actor="root")
    forget_set.withdraw(request.request_id, actor="root")
    sync.send_due()
    documents = key_objects(pacs, tmp_path)
    retractions = [parse_retraction(d) for d in documents]
    assert [r.state for r in retractions if r] == ["requested", "approved", "withdrawn"]
    assert {r.request_id for r in retractions if r} == {request.request_id}
    assert len({d.SeriesInstanceUID for d in documents}) == 1
    assert sync.poll_once() == []
    pacs.upload([rejection_note(images)])
    assert len(sync.poll_once()) == 1
    (proposal,) = forget_set.list(states=("proposed",))
    assert (proposal.target.id, proposal.reason) == (study, "retention_expired")
    assert (proposal.source, proposal.marked_by) == ("rejection_note", "system")
    assert not forget_set.status(studies=[study])[study].marked
    assert outbox.status().waiting == 0
    forget_set.mark("study", study, "retention_expired", actor="anna")
    assert forget_set.status(studies=[study])[study].marked
    assert outbox.status().waiting == 1


def test_an_interval_is_needed(pacs: OrthancProcess, store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        Site(pacs, store, tmp_path, interval=0.0)
