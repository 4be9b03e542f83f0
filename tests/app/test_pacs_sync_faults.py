"""What one broken study or document does to the others: nothing. No Orthanc is needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import DataElement
from pydicom.dataset import Dataset

from key_object_sources import ct_series, rejection_note
from segunlearn.app import pacs_sync
from segunlearn.app.forgetting import proposing, reporting
from segunlearn.app.pacs_sync import PacsSync
from segunlearn.dicom.archive import SeriesRecord, open_archive
from segunlearn.errors import NotFoundError, UnavailableError
from segunlearn.records.forget_set import ForgetRequest, ForgetSet
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.store import Store

SECRET = bytes(range(32))
BIRTH_DATE = "19500231"


class FakeArchive:
    """As much of an archive as a poll asks for: key object documents, each in its own series."""

    def __init__(self, *documents: Dataset, images: list[Dataset] | None = None) -> None:
        self.documents = list(documents)
        self.images = images or []
        self.hidden: set[str] = set()
        self.asked: list[str] = []

    def _listed(self) -> list[Dataset]:
        return [i for i in self.images if i.SOPInstanceUID not in self.hidden]

    def iter_series(self, **_: Any) -> Iterator[SeriesRecord]:
        for d in self.documents:
            yield SeriesRecord(
                str(d.StudyInstanceUID), str(d.SeriesInstanceUID), "P", "KO", number_of_instances=1
            )

    def instances(self, _study: str, series: str) -> list[Dataset]:
        return [d for d in [*self.documents, *self._listed()] if d.SeriesInstanceUID == series]

    def header(self, _study: str, series: str, document: str) -> Dataset:
        self.asked.append(document)
        return next(d for d in self.documents if d.SeriesInstanceUID == series)

    def series_of_study(self, study: str) -> list[SeriesRecord]:
        found = {
            str(i.SeriesInstanceUID): SeriesRecord(
                study, str(i.SeriesInstanceUID), "P", str(i.Modality)
            )
            for i in [*self._listed(), *self.documents]
            if i.StudyInstanceUID == study
        }
        if not found:
            raise NotFoundError("there is none")
        return list(found.values())

    def has_study(self, _study: str) -> bool:
        return False


class Site:
    """The forget set of an installation beside an archive."""

    def __init__(self, archive: Any, store: Store, **options: Any) -> None:
        self.outbox = Outbox(store, jitter=lambda: 0.0)
        self.seen = PacsSeen(store)
        self.forget_set = ForgetSet(store, on_change=reporting(self.outbox))
        self.sync = PacsSync(
            archive,
            self.outbox,
            self.seen,
            proposing(self.forget_set, self.seen),
            secret=SECRET,
            **options,
        )

    def proposed(self) -> list[ForgetRequest]:
        return list(self.forget_set.list(states=("proposed",)))


# -- out ------------------------------------------------------------------------------------------


def folder_archive(tmp_path: Path, studies: list[list[Dataset]]) -> Any:
    folder = tmp_path / "studies"
    folder.mkdir()
    for images in studies:
        for image in images:
            image.save_as(folder / f"{image.SOPInstanceUID}.dcm", enforce_file_format=True)
    return open_archive(str(folder), index_dir=tmp_path / "index", results_dir=tmp_path / "made")


def with_a_broken_study(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, count: int
) -> Site:
    """Studies that are marked, of which the first has a header that nobody can build on."""
    studies = [ct_series(instances=1) for _ in range(count)]
    archive = folder_archive(tmp_path, studies)
    read = archive.header

    def header(study: str, series: str, instance: str) -> Dataset:
        if study == studies[0][0].StudyInstanceUID:
            raise ValueError(f"Unable to convert '{BIRTH_DATE}' to 'DA' object")
        found: Dataset = read(study, series, instance)
        return found

    monkeypatch.setattr(archive, "header", header)
    site = Site(archive, store)
    for images in studies:
        site.forget_set.mark("study", images[0].StudyInstanceUID, "quality", actor="anna")
    return site


def test_a_document_that_cannot_be_made_holds_up_no_other(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = with_a_broken_study(tmp_path, store, monkeypatch, count=4)
    result = site.sync.send_due()
    assert (result.sent, result.failed, result.reachable) == (3, 1, True)
    (waiting,) = site.outbox.list(waiting=True)
    assert waiting.attempts == 1
    assert waiting.last_error == "unexpected error: ValueError"
    assert "ValueError" in caplog.text
    assert BIRTH_DATE not in caplog.text
    assert waiting.document_uid not in caplog.text


def test_a_fault_in_the_thread_is_logged_without_what_it_holds(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pacs_sync, "FIRST_PAUSE", 0.01)
    site = with_a_broken_study(tmp_path, store, monkeypatch, count=1)
    failed = threading.Event()

    def send_due() -> None:
        failed.set()
        raise ValueError(f"Unable to convert '{BIRTH_DATE}' to 'DA' object")

    monkeypatch.setattr(site.sync, "send_due", send_due)
    site.sync.start()
    assert failed.wait(20)
    assert site.sync.stop()
    assert "following the PACS failed: ValueError (test_pacs_sync_faults.py, line" in caplog.text
    assert BIRTH_DATE not in caplog.text


# -- in -------------------------------------------------------------------------------------------


def title_of_text(document: Dataset) -> None:
    document.add(DataElement("ConceptNameCodeSequence", "LO", ["x"]))


def unreadable_series(document: Dataset) -> None:
    study = document.CurrentRequestedProcedureEvidenceSequence[0]
    study.add(DataElement("ReferencedSeriesSequence", "LO", ["x"]))


@pytest.mark.parametrize("spoil", [title_of_text, unreadable_series])
def test_a_document_of_another_shape_hides_no_other(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Any,
) -> None:
    monkeypatch.setattr(pacs_sync, "LAST_POLL", 4)
    images = ct_series()
    broken, good = rejection_note(ct_series()), rejection_note(images)
    spoil(broken)
    archive = FakeArchive(broken, good, images=images)
    site = Site(archive, store, studies=lambda: ["1.7"])
    site.seen.remember("study", {"1.7": "there"})
    for _ in range(9):
        site.sync.poll_once()
    assert {r.target.id for r in site.proposed()} == {images[0].StudyInstanceUID, "1.7"}
    assert archive.asked.count(broken.SOPInstanceUID) == 3, "polls 1, 2 and 4: then given up"
    assert archive.asked.count(good.SOPInstanceUID) == 1
    assert "is passed over for now: AttributeError (" in caplog.text
    assert "is given up: AttributeError (" in caplog.text


def test_an_outage_in_the_midst_of_a_document_is_an_outage(store: Store) -> None:
    images = ct_series()
    archive = FakeArchive(rejection_note(images), images=images)
    site = Site(archive, store)
    whole, there = archive.series_of_study, []

    def series_of_study(study: str) -> list[SeriesRecord]:
        if not there:
            raise UnavailableError("the PACS is away")
        return whole(study)

    archive.series_of_study = series_of_study  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        site.sync.poll_once()
    there.append(True)
    site.sync.poll_once()
    assert len(site.proposed()) == 1


@pytest.mark.parametrize("padding", ["\0", " ", " \0"])
def test_the_padding_of_a_documents_uids_is_no_part_of_them(store: Store, padding: str) -> None:
    images = ct_series()
    note = rejection_note(images)
    uid = str(note.SOPInstanceUID)
    (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
    (series,) = evidence.ReferencedSeriesSequence
    for dataset, keyword in (
        (note, "SOPInstanceUID"),
        (note, "SOPClassUID"),
        (evidence, "StudyInstanceUID"),
        (series, "SeriesInstanceUID"),
        *((i, "ReferencedSOPInstanceUID") for i in series.ReferencedSOPSequence),
    ):
        dataset[keyword]._value = str(dataset[keyword].value) + padding
    archive = FakeArchive(note, images=images)
    site = Site(archive, store)
    site.sync.poll_once()
    (proposal,) = site.proposed()
    assert proposal.target.id == images[0].StudyInstanceUID
    assert f"Document {uid}." in proposal.note
    assert archive.asked == [uid]


def test_our_own_document_is_known_by_a_padded_uid(store: Store) -> None:
    images = ct_series()
    note = rejection_note(images)
    site = Site(FakeArchive(note, images=images), store)
    site.seen.remember("document", {str(note.SOPInstanceUID): "ours"})
    note["SOPInstanceUID"]._value = f"{note.SOPInstanceUID}\0"
    site.sync.poll_once()
    assert site.proposed() == []


# -- how much of a study --------------------------------------------------------------------------


def test_a_note_about_one_slice_says_so(store: Store) -> None:
    images = ct_series(instances=30)
    note = rejection_note(images[:1], "113001", "Rejected for Quality Reasons")
    site = Site(FakeArchive(note, images=images), store)
    site.sync.poll_once()
    (proposal,) = site.proposed()
    assert (proposal.target.kind, proposal.target.id) == ("series", images[0].SeriesInstanceUID)
    assert "It names 1 of 30 images of the series." in proposal.note


def test_a_note_about_all_images_is_about_the_study(store: Store) -> None:
    images = ct_series()
    images += ct_series(study=images[0].StudyInstanceUID)
    site = Site(FakeArchive(rejection_note(images), images=images), store)
    site.sync.poll_once()
    (proposal,) = site.proposed()
    assert (proposal.target.kind, proposal.target.id) == ("study", images[0].StudyInstanceUID)
    assert "images" not in proposal.note


def test_a_note_about_a_whole_series_and_a_slice_of_another(store: Store) -> None:
    first = ct_series()
    second = ct_series(study=first[0].StudyInstanceUID)
    note = rejection_note([*first, second[0]])
    site = Site(FakeArchive(note, images=first + second), store)
    site.sync.poll_once()
    told = {p.target.id: p.note for p in site.proposed()}
    assert set(told) == {first[0].SeriesInstanceUID, second[0].SeriesInstanceUID}
    assert "images" not in told[first[0].SeriesInstanceUID]
    assert "It names 1 of 3 images of the series." in told[second[0].SeriesInstanceUID]


@pytest.mark.parametrize(
    ("count", "said"),
    [(2, "It names 2 of 3 images of the series."), (3, "the PACS does not say of how many")],
)
def test_an_archive_that_hides_what_is_rejected_makes_no_note_wider(
    store: Store, count: int, said: str
) -> None:
    """It counts what is left: as many images as the note names, or none."""
    images = ct_series(instances=3)
    archive = FakeArchive(rejection_note(images[:count]), images=images)
    archive.hidden = {str(i.SOPInstanceUID) for i in images[:count]}
    site = Site(archive, store)
    site.sync.poll_once()
    (proposal,) = site.proposed()
    assert proposal.target.kind == "series"
    assert said in proposal.note


def test_a_note_taken_back_for_one_slice_says_so(store: Store) -> None:
    images = ct_series()
    note = rejection_note(images[:1], "REVOKE_REJECTION", "Restore", "99DCM4CHEE")
    site = Site(FakeArchive(note, images=images), store)
    site.sync.poll_once()
    (kept,) = site.seen.notes("revocation", [str(images[0].StudyInstanceUID)]).values()
    assert "It names 1 of 3 images of the series." in kept
    assert images[0].SeriesInstanceUID in kept
