"""The PACS in the background: documents go out, and what others say comes in as proposals."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

from pydicom.dataset import Dataset

from segunlearn.app.patient_studies import PatientStudies
from segunlearn.app.pauses import pause_after
from segunlearn.dicom.archive import Archive, SeriesRecord
from segunlearn.dicom.identifiers import Pseudonyms, is_pattern, is_uid
from segunlearn.dicom.key_objects import Reference, references_of, word
from segunlearn.dicom.orthanc import OrthancChanges
from segunlearn.dicom.rejection import Proposal, deleted, measured, proposals_of
from segunlearn.dicom.retraction import RetractionNote, build_retractions
from segunlearn.errors import InvalidInputError, NotFoundError, SegUnlearnError, UnavailableError
from segunlearn.records.outbox import FIRST_PAUSE, Outbox, OutboxItem, PacsSeen

logger = logging.getLogger(__name__)

#: Modality of Key Object Selection documents.
KEY_OBJECTS = "KO"
#: Documents read, and studies looked for, in one poll; the next poll goes on.
DOCUMENTS_A_POLL = 200
STUDIES_A_POLL = 50
#: Poll after which documents that could not be read are given up: days, at one poll a minute.
LAST_POLL = 4096
#: Writes a proposal into the forget set, and says whether it is new; twice the same is once.
Propose = Callable[[Proposal], bool]
#: Longest pause after the PACS could not be reached, in seconds.
LONGEST_OUTAGE_PAUSE = 300.0


@dataclass(frozen=True)
class Sent:
    """Outcome of one pass: documents sent and failed, and whether the PACS could be reached."""

    sent: int
    failed: int
    reachable: bool


class PacsSync:
    """Sends what waits in the outbox and reads what is new in the PACS.

    Parameters
    ----------
    archive
        The PACS.
    outbox, seen
        What waits, and what was seen.
    propose
        Writes a proposal.
    secret
        Key of the site; the UIDs of our documents are derived from it.
    studies
        Studies that models were trained on; it is proposed to forget those that vanish.
    patients
        Studies of marked patients; None: those that the PACS lists.
    find_changes
        Looks for Orthanc's change counter, once; it saves searching while nothing changes.
    interval
        Seconds between two polls.
    """

    def __init__(
        self,
        archive: Archive,
        outbox: Outbox,
        seen: PacsSeen,
        propose: Propose,
        *,
        secret: bytes,
        studies: Callable[[], Iterable[str]] = tuple,
        patients: PatientStudies | None = None,
        find_changes: Callable[[], OrthancChanges | None] = lambda: None,
        interval: float = 60.0,
    ) -> None:
        if interval <= 0:
            raise InvalidInputError(f"the PACS is polled every {interval} s; give more than 0.")
        self._archive, self._outbox, self._seen = archive, outbox, seen
        self._propose, self._secret, self._studies = propose, secret, studies
        self._patients = patients
        self._find_changes, self._interval = find_changes, interval
        self._changes: OrthancChanges | None = None
        self._looked = False
        self._pseudonyms = Pseudonyms(secret)
        self._last_change: int | None = None
        self._due = 0.0
        self._next_study = 0
        self._pass = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    # -- out ------------------------------------------------------------------------------------

    def send_due(self, limit: int = 200) -> Sent:
        """Send the documents that are due; an outage ends the pass, and loses nothing."""
        sent = failed = 0
        with self._pass:
            while sent + failed < limit and (items := self._outbox.claim(min(20, limit))):
                for index, item in enumerate(items):
                    try:
                        self._send(item)
                    except UnavailableError as error:
                        self._outbox.failed(item, str(error), longest=LONGEST_OUTAGE_PAUSE)
                        for untried in items[index + 1 :]:
                            self._outbox.release(untried)
                        return Sent(sent, failed + 1, reachable=False)
                    except SegUnlearnError as error:
                        self._outbox.failed(item, str(error))
                        failed += 1
                    except Exception as error:  # noqa: BLE001 - one study must hold up no other
                        name = self._name(item.document_uid)
                        logger.error("document %s cannot be sent: %s", name, _where(error))
                        self._outbox.failed(item, _kind(error))
                        failed += 1
                    else:
                        self._outbox.sent(item)
                        sent += 1
        return Sent(sent, failed, reachable=True)

    def _send(self, item: OutboxItem) -> None:
        studies = self._contents(item.request_id, item.payload)
        documents = build_retractions(
            note_of(item),
            studies,
            secret=self._secret,
            document_uid=item.document_uid,
            instance_number=item.seq,
        )
        # known as ours before the PACS has them: a poll at this moment must not propose them
        self._seen.remember("document", {str(d.SOPInstanceUID): "ours" for d in documents})
        try:
            self._archive.store(documents)
        except UnavailableError:
            raise
        except SegUnlearnError:
            if not all(self._holds(document) for document in documents):
                raise

    def _holds(self, document: Dataset) -> bool:
        """Whether the PACS has a document already: an earlier attempt was cut off, or refused."""
        uid = str(document.SOPInstanceUID)
        study, series = str(document.StudyInstanceUID), str(document.SeriesInstanceUID)
        try:
            return any(str(i.SOPInstanceUID) == uid for i in self._archive.instances(study, series))
        except NotFoundError:
            return False

    def _contents(
        self, request_id: str, payload: Mapping[str, str]
    ) -> list[tuple[Dataset, list[Reference]]]:
        """Find header and instances of each study of a request, as the PACS has them now."""
        kind, target = payload["target_kind"], payload["target_id"]
        series = target if kind == "series" else ""
        if kind == "patient" and self._patients is not None:
            studies = self._patients.of(request_id, target, payload.get("issuer", ""))
        elif kind == "patient":
            studies = self._archive.studies_of_patient(target, payload.get("issuer", ""))
        elif kind == "series":
            studies = [self._archive.find_series(target).study_instance_uid]
        else:
            studies = [target]
        found = []
        for study in studies:
            references = references_of(self._archive.instances(study, series))
            if references:
                first = references[0]
                header = self._archive.header(
                    first.study_instance_uid, first.series_instance_uid, first.sop_instance_uid
                )
                found.append((header, references))
        if not found and kind == "patient" and is_pattern(target):
            raise NotFoundError(
                "the PACS cannot be asked for a PatientID with * or ?, and holds no study that a "
                "model knows of it. Mark the patient's studies by their StudyInstanceUID."
            )
        if not found:
            raise NotFoundError(
                f"the PACS holds no instances of this {kind}, so no document can point to them. "
                "It is sent when they arrive."
            )
        return found

    # -- in -------------------------------------------------------------------------------------

    def poll_once(self) -> list[Proposal]:
        """Look for new documents and vanished studies; return the proposals that are new.

        Studies that have come to marked patients are kept with their requests.

        Raises
        ------
        UnavailableError
            The PACS cannot be reached now.
        """
        with self._pass:
            last = self._changes.last() if self._changes is not None else None
            new: list[Proposal] = []
            began = time.monotonic()
            if began >= self._due and (last is None or last != self._last_change):
                found, complete = self._new_documents()
                new.extend(found)
                self._last_change = last if complete else None
                took = time.monotonic() - began  # long, where there are many key objects
                self._due = began + pause_after(took, 0.0)
            if not self._looked:  # the PACS has just answered, so this is no guess
                self._changes, self._looked = self._find_changes(), True
            new.extend(self._vanished())
            if self._patients is not None:
                self._patients.look()
        return new

    def _new_documents(self) -> tuple[list[Proposal], bool]:
        """Read what is new; False as well when something is to be read by a later poll.

        A series is done with when all that it counts was listed and read: an archive may tell of a
        document before it can give it. Until then it is asked at its 1st, 2nd, 4th, 8th … poll, so
        that one document that is broken neither burdens the archive nor hides the others.
        """
        new: list[Proposal] = []
        read, complete = 0, True
        for series in self._archive.iter_series(modalities=(KEY_OBJECTS,)):
            uid, number = series.series_instance_uid, series.number_of_instances
            count = str(number)
            note = self._seen.notes("series", [uid]).get(uid, "")
            if number is not None and note == count:
                continue
            polls = _polls(note, count) + 1
            waiting = {uid: f"{count} after {polls}"}
            if number is not None and polls.bit_count() > 1:
                self._seen.remember("series", waiting)
                complete = False
                continue
            if read >= DOCUMENTS_A_POLL:
                return new, False
            try:
                found, asked, done = self._documents_of(series, last=polls >= LAST_POLL)
            except UnavailableError:
                self._seen.remember("series", waiting)
                raise
            new.extend(found)
            read += asked
            complete = complete and done
            self._seen.remember("series", {uid: count} if done else waiting)
        return new, complete

    def _documents_of(
        self, series: SeriesRecord, *, last: bool
    ) -> tuple[list[Proposal], int, bool]:
        """Proposals, documents that were asked for, and whether the series is done with."""
        study, uid = series.study_instance_uid, series.series_instance_uid
        documents = self._listed(study, uid)
        known = self._seen.notes("document", documents)
        unread = [document for document in documents if document not in known]
        new: list[Proposal] = []
        missing: list[str] = []
        for document in unread:
            try:
                header = self._archive.header(study, uid, document)
                if "SOPClassUID" not in header:
                    raise NotFoundError("the archive has an empty header of it.")
                for proposal in proposals_of(header):
                    found = measured(proposal, self._archive)
                    if self._write(found):
                        new.append(found)
            except UnavailableError:
                raise
            except Exception as error:  # noqa: BLE001 - one document must hide no other
                how = "given up" if last else "passed over for now"
                why = error if isinstance(error, SegUnlearnError) else _where(error)
                logger.warning("document %s is %s: %s", self._name(document), how, why)
                missing.append(document)
                continue
            self._seen.remember("document", {document: "read"})
        if last:
            self._seen.remember("document", dict.fromkeys(missing, "unreadable"))
        whole = not missing and len(documents) >= (series.number_of_instances or 0)
        return new, len(unread), whole or last

    def _listed(self, study: str, series: str) -> list[str]:
        """Documents of a series, none while the archive does not list them."""
        try:
            found = [word(i, "SOPInstanceUID") for i in self._archive.instances(study, series)]
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - one series must hide no other
            why = error if isinstance(error, SegUnlearnError) else _where(error)
            logger.warning("documents of series %s are not listed: %s", self._name(series), why)
            return []
        return [uid for uid in found if uid]

    def _vanished(self) -> list[Proposal]:
        """Look for some of the studies of the models; the next poll looks for the next ones.

        A study counts as deleted when it was seen in this PACS before and two polls in a row did
        not find it: a search that fails half-way, or a restart, is not a deletion.
        """
        watched = sorted({s for s in self._studies() if is_uid(s, strict=False)})
        if not watched:
            return []
        start = self._next_study % len(watched)
        turn = list(islice((*watched[start:], *watched[:start]), STUDIES_A_POLL))
        self._next_study = start + len(turn)
        notes = self._seen.notes("study", turn)
        changed: dict[str, str] = {}
        new: list[Proposal] = []
        for study in turn:
            before = notes.get(study, "")
            if self._archive.has_study(study):
                after = "there"
            elif before in ("", "deleted"):
                after = before
            else:
                after = "deleted" if before == "missing" else "missing"
            if after == "deleted" and before != "deleted":
                proposal = deleted(study)
                if self._write(proposal):
                    new.append(proposal)
            if after != before:
                changed[study] = after
        self._seen.remember("study", changed)
        return new

    def _write(self, proposal: Proposal) -> bool:
        new = self._propose(proposal)
        if new:
            logger.info(
                "%s of study %s is proposed: %s",
                proposal.kind,
                self._name(proposal.study_uid),
                proposal.text,
            )
        return new

    def _name(self, uid: str) -> str:
        return self._pseudonyms.of(uid)

    # -- in the background ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; a second call does nothing."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="pacs-sync", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """Send at once, after a mark."""
        self._wake.set()

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop the thread; returns whether it ended in time (a request to the PACS may hang)."""
        self._stopping.set()
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
            return not thread.is_alive()
        return True

    def _run(self) -> None:
        outage, next_poll = 0.0, time.monotonic()
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if self._patients is not None:  # also where the PACS takes no documents
                    self._patients.look(new_only=True)
                reachable = self.send_due().reachable
                if reachable and time.monotonic() >= next_poll:
                    self.poll_once()
                    next_poll = time.monotonic() + self._interval
                waits = self._outbox.waits()
            except UnavailableError as error:
                logger.warning("the PACS is left alone for a while: %s", error)
                reachable = False
            except SegUnlearnError as error:
                logger.warning("the PACS cannot be followed: %s", error)
                reachable = False
            except Exception as error:  # noqa: BLE001 - without the thread documents wait forever
                logger.error("following the PACS failed: %s", _where(error))
                reachable = False
            if not reachable:
                outage = min(LONGEST_OUTAGE_PAUSE, max(FIRST_PAUSE, 2 * outage))
                self._stopping.wait(outage)
            else:
                outage = 0.0
                left = max(0.1, next_poll - time.monotonic())
                self._wake.wait(min(FIRST_PAUSE, left) if waits else left)


def _kind(error: Exception) -> str:
    """Name an error that nobody foresaw by its kind: its text may hold values of a header."""
    return f"unexpected error: {type(error).__name__}"


def _where(error: Exception) -> str:
    """Tell the log kind and line of an error: a traceback would hold values."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{place}"


def _polls(note: str, count: str) -> int:
    """Count the polls that a series waits for, by its note; 0 when it has grown since."""
    before, _, polls = note.partition(" after ")
    return int(polls) if before == count and polls else 0


def note_of(item: OutboxItem) -> RetractionNote:
    """Read what a document says from its row."""
    payload = item.payload
    return RetractionNote(
        request_id=item.request_id,
        state=payload["state"],
        target=payload["target_kind"],
        reason=payload["reason"],
        needed=payload["needed"],
        reached=payload["reached"],
        changed=datetime.fromisoformat(payload["changed"]),
        report_sha256=payload.get("report_sha256"),
    )
