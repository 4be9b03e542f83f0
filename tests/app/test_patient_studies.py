"""Studies of a marked patient stay out of training when the archive changes their PatientID."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from dicom_sources import make_series
from large_pacs import LargePacs, series_uid, study_uid
from live_server import live_server
from records_entries import ledger_entry
from segunlearn.app import checkpoints, pacs_sync, patient_studies
from segunlearn.app.datastores import DicomDatastore, open_datastore
from segunlearn.app.forget_service import ForgetService, StudiesCatalogue
from segunlearn.app.options import AppOptions, Home
from segunlearn.app.records import Records
from segunlearn.cases import Case
from segunlearn.errors import UnavailableError, UnsupportedSeriesError
from segunlearn.records.runs import Runs

#: Studies 0 and 1 of the stand-in are of this patient, with series 0 to 4 and 5 to 9.
OLD, NEW = "SYN-0", "SYN-1"


class Server:
    """A home, its studies in a PACS, and what follows that."""

    def __init__(self, pacs: LargePacs, url: str, home: Path, reports: bool) -> None:
        options = AppOptions.from_conf({"home": str(home), "refresh": "0.01"})
        self.pacs, self.home = pacs, Home(options.home)
        self.records = Records(self.home, reports=reports)
        store = open_datastore(
            f"{url}/dw", options, self.home, label_values=dict, keep=self.records.without_forgotten
        )
        assert isinstance(store, DicomDatastore)
        self.studies = store
        self.service = ForgetService(
            self.records, self.home, lambda: store, lambda: None, pacs_url=f"{url}/dw", interval=0.1
        )

    def mark(self, patient: str = OLD) -> str:
        """Mark as the command line does, which asks no archive."""
        forget_set = self.records.forget_set
        return forget_set.mark("patient", patient, "consent_withdrawn", actor="anna")[0].request_id

    def kept(self, request: str) -> tuple[str, ...]:
        return self.records.forget_set.get(request).studies

    def correct(self, study: int, patient: str) -> None:
        """Correct a PatientID as a PACS does, while nobody looks."""
        for row in self.pacs._by_study[study_uid(study)]:
            row["PatientID"] = patient
        self.studies.refresh()

    def left_out(self) -> set[str]:
        images = [series_uid(n) for n in range(20)]
        return {*images} - {*self.studies.without_forgotten(images)}


@pytest.fixture
def pacs() -> LargePacs:
    return LargePacs(20)


@contextmanager
def serving(pacs: LargePacs, home: Path, *, reports: bool = False) -> Iterator[Server]:
    with live_server(pacs.app()) as url:
        server = Server(pacs, url, home, reports)
        try:
            yield server
        finally:
            server.service.stop()
            server.records.store.close()


@pytest.fixture
def server(pacs: LargePacs, tmp_path: Path) -> Iterator[Server]:
    with serving(pacs, tmp_path) as server:
        yield server


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


OWN = {series_uid(n) for n in range(10)}


def test_the_server_lists_the_studies_of_a_mark_that_the_command_line_made(server: Server) -> None:
    request = server.mark()
    assert server.kept(request) == ()
    server.service.start()
    wait_for(lambda: server.kept(request) == (study_uid(0), study_uid(1)))
    server.correct(1, NEW)
    assert server.left_out() == OWN
    server.records.forget_set.withdraw(request, actor="anna")
    assert server.left_out() == set()


def test_studies_that_come_to_the_number_later_are_covered_too(server: Server) -> None:
    request = server.mark()
    server.service.start()
    wait_for(lambda: len(server.kept(request)) == 2)
    server.correct(2, OLD)
    wait_for(lambda: len(server.kept(request)) == 3)
    server.correct(2, "SYN-7")  # it was imported under a wrong number
    assert series_uid(10) in server.left_out(), "until somebody withdraws the mark"


def test_what_a_training_meets_under_the_number_is_covered(server: Server) -> None:
    request = server.mark()
    assert server.left_out() == OWN
    for study in (0, 1):
        server.correct(study, NEW)
    assert server.left_out() == OWN
    assert len(server.kept(request)) == 2


def test_a_mark_while_the_archive_is_away_is_caught_up_with(
    pacs: LargePacs,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ask, asked = server.studies.archive.studies_of_patient, list[str]()

    def away(patient_id: str, issuer: str = "") -> list[str]:
        asked.append(patient_id)
        raise UnavailableError("the archive cannot be reached")

    monkeypatch.setattr(server.studies.archive, "studies_of_patient", away)
    monkeypatch.setattr(pacs_sync, "FIRST_PAUSE", 0.05)
    with caplog.at_level(logging.WARNING):
        assert StudiesCatalogue(lambda: server.studies).studies(OLD, "") is None
    assert "cannot be listed now" in caplog.text
    assert OLD not in caplog.text
    request = server.mark()
    server.service.start()
    wait_for(lambda: len(asked) > 2)
    assert server.kept(request) == ()
    monkeypatch.setattr(server.studies.archive, "studies_of_patient", ask)
    wait_for(lambda: len(server.kept(request)) == 2)


def test_one_patient_that_the_archive_refuses_hides_no_other(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask = server.studies.archive.studies_of_patient

    def odd(patient_id: str, issuer: str = "") -> list[str]:
        if patient_id == OLD:
            raise UnsupportedSeriesError("the answer cannot be read.")
        return ask(patient_id, issuer)

    monkeypatch.setattr(server.studies.archive, "studies_of_patient", odd)
    first, second = server.mark(), server.mark(NEW)
    with caplog.at_level(logging.WARNING):
        server.service.start()
        wait_for(lambda: server.kept(second) == (study_uid(2), study_uid(3)))
    assert server.kept(first) == ()
    wait_for(lambda: f"studies of forget request {first}" in caplog.text)


def test_a_pacs_that_takes_no_documents_is_asked_all_the_same(
    pacs: LargePacs, tmp_path: Path
) -> None:
    with serving(pacs, tmp_path, reports=True) as server:
        requests = [server.mark(f"SYN-{n}") for n in range(2)]
        server.service.start()
        wait_for(lambda: all(len(server.kept(r)) == 2 for r in requests))


def test_many_marked_patients_have_their_turns(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patient_studies, "PATIENTS_A_LOOK", 1)
    requests = [server.mark(f"SYN-{n}") for n in range(2)]
    server.service.start()
    wait_for(lambda: all(server.kept(r) for r in requests))
    for study, patient in ((0, NEW), (2, OLD)):
        server.correct(study, patient)
    wait_for(lambda: all(len(server.kept(r)) == 3 for r in requests))


def test_a_header_that_names_another_issuer_is_believed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.studies.list_images()
    note = {"issuer": "St. Bernd"}
    monkeypatch.setattr(
        server.studies._images, "note", lambda uid: note if uid == series_uid(0) else {}
    )
    listed = {issuer: server.studies.studies_of_patient(OLD, issuer) for issuer in
              ("", "St. Anna", "St. Bernd")}  # fmt: skip
    both = [study_uid(0), study_uid(1)]
    assert listed == {"": both, "St. Anna": both[1:], "St. Bernd": both}


def test_a_study_that_comes_to_a_fulfilled_request_and_is_known_is_told(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = [(series_uid(10), study_uid(2), NEW, "train")]
    server.records.ledger.append(ledger_entry(1, cases=recorded))
    request = server.mark()
    for state in ("approved", "working", "fulfilled"):
        server.records.forget_set.transition(
            request, state, actor="root", reached="unlearned" if state == "fulfilled" else None
        )
    with caplog.at_level(logging.WARNING):
        server.service.start()
        wait_for(lambda: len(server.kept(request)) == 2)
        assert "have come" not in caplog.text
        server.correct(2, OLD)
        wait_for(lambda: len(server.kept(request)) == 3)
        wait_for(lambda: f"1 series that have come to the patient of forget request {request}"
                 in caplog.text)  # fmt: skip
    assert study_uid(2) not in caplog.text


def test_a_checkpoint_that_saw_a_study_goes_when_the_study_comes_to_the_patient(
    server: Server,
) -> None:
    saw = Case(series_uid(10), study_uid(2), NEW, Path("x"))
    run = Runs(server.records.store).start("train", "segmentation", {})
    folder = server.home.runs / run
    folder.mkdir(parents=True)
    checkpoints.note(folder, [saw], server.records.pseudonyms)
    Runs(server.records.store).finish(run, "failed", "killed")
    request = server.mark()
    server.service.start()
    wait_for(lambda: len(server.kept(request)) == 2)
    assert folder.is_dir()
    server.correct(2, OLD)
    wait_for(lambda: not folder.is_dir())


def test_a_folder_of_dicom(tmp_path: Path) -> None:
    """No poll follows it: it is listed at the mark, and whenever something is to be learnt from."""
    folder, uids = tmp_path / "dicom", [generate_uid() for _ in range(2)]
    for number, uid in enumerate(uids):
        (folder / str(number)).mkdir(parents=True)
        for ds in make_series(study_uid=uid, patient_id="X").datasets:
            ds.save_as(folder / str(number) / f"{ds.InstanceNumber}.dcm", enforce_file_format=True)
    options = AppOptions.from_conf({"home": str(tmp_path / "home"), "refresh": "0.01"})
    records = Records(Home(options.home))
    store = open_datastore(
        str(folder), options, records.home, label_values=dict, keep=records.without_forgotten
    )
    listed = StudiesCatalogue(lambda: store).studies("X", "")
    assert listed is not None
    assert set(listed) == set(uids)
    request, _ = records.forget_set.mark("patient", "X", "quality", actor="anna")
    assert store.without_forgotten(store.list_images()) == []
    assert set(records.forget_set.get(request.request_id).studies) == set(uids)
    records.store.close()
