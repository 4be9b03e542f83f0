"""The forget set of the app that runs: records, studies and PACS put together."""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from segunlearn.app.audit_targets import taught_cases
from segunlearn.app.datastores import DicomDatastore, StudiesDatastore
from segunlearn.app.datastores.studies import FINAL, ImageRecord
from segunlearn.app.forgetting import UNKNOWN_ACTOR, Forgetting, Marked, marking, proposing
from segunlearn.app.marker import ForgetMarkerTask, has_forget_segment
from segunlearn.app.options import Home
from segunlearn.app.pacs_sync import PacsSync
from segunlearn.app.patient_studies import PatientStudies
from segunlearn.app.records import Records
from segunlearn.app.unlearn_settle import settle
from segunlearn.dicom.identifiers import load_or_create_key
from segunlearn.dicom.orthanc import OrthancChanges, find_orthanc
from segunlearn.errors import InvalidInputError, NotFoundError, SegUnlearnError, UnavailableError
from segunlearn.records.coverage import Subject
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import REASONS
from segunlearn.records.outbox import Outbox, PacsSeen
from segunlearn.records.targets import same_issuer, split_person

logger = logging.getLogger(__name__)

#: Age at which the list of studies is read again, and pause after it could not be, in seconds.
REFRESH_SECONDS = 5.0
PAUSE_SECONDS = 30.0
#: Questions to an archive by which one view of many studies is answered, and the age at which what
#: was asked for a view, or was not found, is asked again, in seconds.
QUESTIONS_A_VIEW = 50
VIEW_SECONDS = 60.0
#: Studies and series of an archive that are remembered.
REMEMBERED = 50_000
#: Reasons that clients list; the first is what they preselect, so it claims nothing.
MARKER_REASONS = ("other", *(reason for reason in REASONS if reason != "other"))
#: What is remembered of a target that was never asked for.
_NEVER: tuple[float, Subject | None] = (-math.inf, None)


class StudiesCatalogue:
    """What the datastore knows of studies, series and patients.

    Of an archive only what is asked for is looked up; a folder is listed. What is known is looked
    up again after ``REFRESH_SECONDS``, for a view of many after ``VIEW_SECONDS``, and of those a
    view asks for ``QUESTIONS_A_VIEW`` at most. The studies are left alone for ``PAUSE_SECONDS``
    when they did not answer: a PACS that is down must not slow down every badge.
    """

    def __init__(self, datastore: Callable[[], StudiesDatastore]) -> None:
        self._datastore = datastore
        self._lock = threading.Lock()
        self._series: dict[str, Subject] = {}
        self._studies: dict[str, Subject] = {}
        self._remembered: dict[tuple[str, str], tuple[float, Subject | None]] = {}
        self._next = 0.0

    def subject(self, kind: str, target_id: str) -> Subject | None:
        """Study and person of a study or series of the studies; None when it is not known."""
        studies = self._datastore()
        if isinstance(studies, DicomDatastore):
            return self._asked(studies, kind, target_id)
        self._refresh()
        return (self._series if kind == "series" else self._studies).get(target_id)

    def subjects(self, targets: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Subject]:
        """Look up many by kind and id for a view of them, as far as they are known.

        What an archive has not listed yet is asked for little by little, the longest unasked first:
        anybody may ask for a view, and a series that is no image is in no list.
        """
        wanted, studies = list(dict.fromkeys(targets)), self._datastore()
        if not isinstance(studies, DicomDatastore):
            self._refresh()
            known = {"series": self._series, "study": self._studies}
            return {(k, i): known[k][i] for k, i in wanted if i in known[k]}
        found: dict[tuple[str, str], Subject] = {}
        for kind in ("study", "series"):
            listed = studies.listed(kind, [i for k, i in wanted if k == kind])
            found.update({(kind, i): _subject(kind, image) for i, image in listed.items()})
        with self._lock:
            before = {t: self._remembered.get(t, _NEVER) for t in wanted if t not in found}
        since = time.monotonic() - VIEW_SECONDS
        old = sorted((t for t, (at, _) in before.items() if at < since), key=lambda t: before[t][0])
        asked = {t: self._asked(studies, *t) for t in old[:QUESTIONS_A_VIEW]}
        for target, (_, subject) in before.items():
            subject = asked.get(target, subject)
            if subject is not None:
                found[target] = subject
        return found

    def _asked(self, studies: DicomDatastore, kind: str, target_id: str) -> Subject | None:
        with self._lock:
            at, known = self._remembered.get((kind, target_id), _NEVER)
        now = time.monotonic()
        if now < self._next or (known is not None and now - at < REFRESH_SECONDS):
            return known  # what was missing may have arrived: it is asked for again
        try:
            image = studies.record(target_id) if kind == "series" else studies.study_of(target_id)
        except UnavailableError as error:
            self._next = time.monotonic() + PAUSE_SECONDS
            logger.warning("the archive cannot be asked now: %s", error)
            return known
        except SegUnlearnError:
            image = None  # there is no such series
        found = _subject(kind, image) if image is not None else None
        with self._lock:
            self._remembered.pop((kind, target_id), None)
            self._remembered[kind, target_id] = (time.monotonic(), found)
            while len(self._remembered) > REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
        return found

    def holds(self, kind: str, target_id: str) -> bool | None:
        """Whether the studies hold a study or series; None when that cannot be said now.

        Raises
        ------
        InvalidInputError
            They hold it, and nobody knows whom it shows.
        """
        if kind == "structure":
            return None  # models that are to come may know it
        studies = self._datastore()
        try:
            if isinstance(studies, DicomDatastore):
                return _archived(studies, kind, target_id)
        except NotFoundError:
            return False
        except SegUnlearnError:
            return None
        if why := studies.left_out().get(target_id):
            raise InvalidInputError(why)
        return self.subject(kind, target_id) is not None

    def studies(self, patient_id: str, issuer: str) -> list[str] | None:
        """Studies that stand under a PatientID now; None when that cannot be said.

        An issuer that the studies do not name may be any; see ``records.targets``.
        """
        studies = self._datastore()
        if isinstance(studies, DicomDatastore):
            try:
                return studies.studies_of_patient(patient_id, issuer)
            except SegUnlearnError as error:
                logger.warning(
                    "the studies of a marked patient cannot be listed now; the next look into the "
                    "archive does: %s", error,
                )  # fmt: skip
                return None
        self._refresh()
        own = ((study, *split_person(s.person)) for study, s in self._studies.items())
        return [s for s, p, i in own if p == patient_id and same_issuer(i, issuer)]

    def issuers(self, patient_id: str) -> set[str]:
        """Issuers of a PatientID among the studies, the empty one for studies without."""
        wanted, _ = split_person(patient_id)
        studies = self._datastore()
        if isinstance(studies, DicomDatastore):
            try:
                return {split_person(person)[1] for person in studies.persons_numbered(wanted)}
            except SegUnlearnError as error:
                logger.warning("the archive cannot be asked now: %s", error)
                return set()
        self._refresh()
        persons = {split_person(subject.person) for subject in self._studies.values()}
        return {issuer for patient, issuer in persons if patient == wanted}

    def _refresh(self) -> None:
        if not self._lock.acquire(
            blocking=not self._series
        ):  # only the first reading is waited for
            return
        try:
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + PAUSE_SECONDS
            studies = self._datastore()
            records = [studies.record(image_id) for image_id in studies.list_images()]
            self._series = {r.id: Subject(r.id, r.study, r.person) for r in records}
            self._studies = {r.study: Subject(study=r.study, person=r.person) for r in records}
            self._next = time.monotonic() + REFRESH_SECONDS
        except SegUnlearnError as error:
            logger.warning("the list of studies cannot be read now: %s", error)
        finally:
            self._lock.release()


def _subject(kind: str, image: ImageRecord) -> Subject:
    series = image.id if kind == "series" else ""
    return Subject(series=series, study=image.study, person=image.person)


def _archived(studies: DicomDatastore, kind: str, target_id: str) -> bool:
    if kind == "study":
        return studies.archive.has_study(target_id)
    return bool(studies.archive.find_series(target_id))


class ForgetService:
    """Forget set, ledger, outbox and the PACS of one app.

    Parameters
    ----------
    records, home
        The app's.
    datastore
        Gives the studies.
    active_version
        SHA-256 of the weights that are served, None before the first training.
    pacs_url
        DICOMweb URL of the PACS, empty where the studies are a folder.
    interval
        Seconds between two looks into the PACS.
    """

    def __init__(
        self,
        records: Records,
        home: Home,
        datastore: Callable[[], StudiesDatastore],
        active_version: Callable[[], str | None],
        *,
        pacs_url: str = "",
        interval: float = 60.0,
    ) -> None:
        self._records, self._home, self._datastore = records, home, datastore
        self._active_version = active_version
        self._pacs_url, self._interval = pacs_url, interval
        self._catalogue = StudiesCatalogue(datastore)
        self._sync: PacsSync | None = None
        #: Called after every change of a request; the server's app sets it.
        self.after_change: Callable[[], None] | None = None
        self._lock = threading.Lock()

    @property
    def forgetting(self) -> Forgetting:
        """What the routes need; made anew at each call, it holds no state of its own."""
        store = self._records.store
        return Forgetting(
            forget_set=self._records.forget_set,
            ledger=self._records.ledger,
            runs=self._records.runs_unchecked,
            outbox=Outbox(store) if self._pacs_url else None,
            seen=PacsSeen(store) if self._pacs_url else None,
            sync=self._sync,
            catalogue=self._catalogue,
            opaque=not isinstance(self._datastore(), DicomDatastore),
            after=self.after_change,
        )

    def marker(
        self, scratch: Callable[[], Path], saved_label: Callable[[str], Path | None] | None = None
    ) -> ForgetMarkerTask:
        """Make the model with which stock clients mark the loaded image."""
        mark = marking(lambda: self.forgetting)
        return ForgetMarkerTask(mark, MARKER_REASONS, scratch, saved_label or self._saved_label)

    def mark_from_label(self, image_id: str, label_info: Any, actor: str) -> Marked | None:
        """Mark the study of a submitted label that has a segment named FORGET.

        Call it after the label was saved: a FORGET segment that holds voxels was refused there.
        """
        if not has_forget_segment(label_info):
            return None
        mark = marking(lambda: self.forgetting)
        return mark(image_id, "forget", MARKER_REASONS[0], actor or UNKNOWN_ACTOR, False)

    def start(self) -> None:
        """Tidy up what marks and killed runs left, and follow the PACS; in the server, once."""
        settle(self._home, self._records)
        self._records.drop_marked_checkpoints()
        studies = self._datastore()
        if not self._pacs_url or not isinstance(studies, DicomDatastore):
            return
        with self._lock:
            if self._sync is None:
                store = self._records.store
                seen = PacsSeen(store)
                self._sync = PacsSync(
                    studies.archive,
                    Outbox(store),
                    seen,
                    proposing(self._records.forget_set, seen),
                    secret=load_or_create_key(self._home.site_key),
                    studies=self._studies_of_model,
                    patients=PatientStudies(
                        self._records.forget_set, studies.studies_of_patient, self._came
                    ),
                    find_changes=lambda: self._changes(studies),
                    interval=self._interval,
                )
                atexit.register(self.stop)
            self._sync.start()

    def stop(self) -> None:
        """Stop following the PACS; what waits is sent after the next start."""
        with self._lock:
            if self._sync is not None:
                self._sync.stop(timeout=2.0)

    def _came(self, request: ForgetRequest, studies: list[str]) -> None:
        """Delete weights that saw what has come to a marked patient, as a mark does."""
        self._records.drop_marked_checkpoints()
        known = taught_cases(self._records.ledger, [("study", study) for study in studies])
        if known and request.state in ("fulfilled", "purged"):
            logger.warning(
                "a model was taught %d series that have come to the patient of forget request %s, "
                "which is %s. Mark and unlearn their studies.",
                len(known), request.request_id, request.state,
            )  # fmt: skip
        if self.after_change is not None:
            self.after_change()

    def _studies_of_model(self) -> Iterable[str]:
        version = self._active_version()
        if version is None:
            return ()
        try:
            return [study.study for study in self._records.ledger.studies_of(version)]
        except NotFoundError:  # weights that came from elsewhere
            return ()

    def _changes(self, studies: DicomDatastore) -> OrthancChanges | None:
        session = getattr(studies.archive.client, "_session", None)
        return find_orthanc(self._pacs_url, session)

    def _saved_label(self, image_id: str) -> Path | None:
        studies = self._datastore()
        try:
            return Path(studies.get_label_uri(image_id, FINAL))
        except SegUnlearnError:
            return None
