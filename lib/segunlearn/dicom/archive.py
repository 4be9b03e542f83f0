"""Studies and series of an archive: a PACS over DICOMweb, or a folder of DICOM files."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from segunlearn.dicom.folder import FolderClient
from segunlearn.dicom.identifiers import is_pattern, validate_uid
from segunlearn.dicom.search import (
    SeriesRecord,
    count_instances,
    faults,
    parse,
    search,
    search_series,
    text,
)
from segunlearn.dicom.segmentation import (
    SegmentationRecord,
    describe_segmentation,
    read_segmentation,
    references_series,
)
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.dicom.web import web_client
from segunlearn.errors import NotFoundError, UnavailableError, UnsupportedSeriesError
from segunlearn.volumes import Volume

__all__ = ["MODALITIES", "Archive", "SegmentationRecord", "SeriesRecord", "open_archive"]

logger = logging.getLogger(__name__)

#: Modalities that are listed unless a filter says otherwise.
MODALITIES = ("CT", "MR")
#: Descriptions of segmentations kept in memory; an instance never changes (PS3.5 section 9).
_CACHED_RECORDS = 4096


def open_archive(
    studies: str | Path,
    *,
    index_dir: Path,
    results_dir: Path | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | tuple[float, float] = (5.0, 60.0),
    attempts: int = 3,
    ca_bundle: Path | None = None,
    url_prefixes: Mapping[str, str] | None = None,
) -> Archive:
    """Open a PACS or a folder of DICOM files.

    Parameters
    ----------
    studies
        DICOMweb base URL (``http(s)://host:port/dicom-web`` for Orthanc), or a folder.
    index_dir
        Folder for the index of a folder of files; never inside ``studies``.
    results_dir
        Where results go when the folder of studies is read-only.
    user, password, token
        HTTP basic or bearer authentication of the PACS.
    headers
        Further HTTP headers.
    timeout
        Seconds: one, or (to connect, between two bytes).
    attempts
        Tries of a request that fails to connect or is answered by 408, 429, 503 or 504.
    ca_bundle
        PEM file of the authorities that signed the PACS's certificate.
    url_prefixes
        ``{"qido": …, "wado": …, "stow": …}`` where a server keeps the services apart.

    Raises
    ------
    InvalidInputError
        Neither a DICOMweb URL nor a folder.
    """
    place = str(studies)
    if place.lower().startswith(("http://", "https://")):
        client = web_client(
            place,
            user=user,
            password=password,
            token=token,
            headers=headers,
            timeout=timeout,
            attempts=attempts,
            ca_bundle=ca_bundle,
            url_prefixes=url_prefixes,
        )
        return Archive(client)
    return Archive(FolderClient(Path(place), index_dir=index_dir, results_dir=results_dir))


class Archive:
    """Series, volumes and segmentations of an archive.

    Parameters
    ----------
    client
        Any client of dicomweb-client's protocol; see :func:`open_archive`.

    Notes
    -----
    Nothing is cached but what segmentations say of themselves, by SOPInstanceUID, so a label that
    was stored a moment ago, by whom ever, is seen at once. Safe to use from several threads.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._records: OrderedDict[str, tuple[SegmentationRecord, tuple[str, ...]]] = OrderedDict()
        self._members: OrderedDict[str, tuple[int, list[str]]] = OrderedDict()
        self._lock = threading.Lock()

    # --- search --------------------------------------------------------------------------------

    def iter_series(
        self,
        *,
        modalities: Sequence[str] = MODALITIES,
        filters: Mapping[str, str] | None = None,
        study: str = "",
    ) -> Iterator[SeriesRecord]:
        """Yield series page by page, each once.

        Parameters
        ----------
        modalities
            DICOM Modality values, searched one after another; empty for all.
        filters
            Further QIDO-RS matching keys by keyword, e.g. ``{"PatientID": "A*"}``.
        study
            StudyInstanceUID to search in; empty for the whole archive.
        """
        seen: set[str] = set()
        for modality in modalities or ("",):
            criteria = dict(filters or {})
            if modality:
                criteria["Modality"] = modality
            for record in self._pages(criteria, study):
                if record.series_instance_uid in seen:
                    continue
                if modality and record.modality not in ("", modality):
                    continue  # a server that does not know the matching key
                seen.add(record.series_instance_uid)
                yield record

    def list_series(
        self,
        *,
        modalities: Sequence[str] = MODALITIES,
        limit: int | None = None,
        offset: int = 0,
        filters: Mapping[str, str] | None = None,
    ) -> list[SeriesRecord]:
        """List one page of :meth:`iter_series`."""
        series = self.iter_series(modalities=modalities, filters=filters)
        return list(islice(series, offset, None if limit is None else offset + limit))

    def find_series(self, series_instance_uid: str) -> SeriesRecord:
        """Find a series by its UID.

        Raises
        ------
        NotFoundError
            The archive does not hold it.
        """
        uid = validate_uid(series_instance_uid, what="SeriesInstanceUID", strict=False)
        for record in self._pages({"SeriesInstanceUID": uid}):
            if record.series_instance_uid == uid:
                return record
        raise NotFoundError(
            f"series {uid} is not in the archive. Check the UID, and that the study was sent."
        )

    def series_of_study(self, study_instance_uid: str) -> list[SeriesRecord]:
        """List all series of a study, of every modality.

        Raises
        ------
        NotFoundError
            The archive holds no series of the study.
        """
        uid = validate_uid(study_instance_uid, what="StudyInstanceUID", strict=False)
        found = list(self._pages({}, study=uid))
        if not found:
            raise NotFoundError(
                f"study {uid} is not in the archive. Check the UID, and that the study was sent."
            )
        return found

    def studies_of_patient(self, patient_id: str, issuer: str = "") -> list[str]:
        """List StudyInstanceUIDs of a patient; the PatientID matches exactly, without wildcards.

        With an issuer, studies of other issuers are left out; those that name none are not. For an
        id that holds a wildcard nothing is asked, for all that matches it would be listed.
        """
        if not patient_id.strip() or is_pattern(patient_id):
            return []
        found: dict[str, None] = {}
        fields = ("PatientID", "IssuerOfPatientID")
        issuer = " ".join(issuer.split())
        for answer in search(self.client, "studies", {"PatientID": patient_id}, fields):
            named = " ".join(text(answer, "IssuerOfPatientID").split())
            same = not issuer or not named or issuer == named
            if same and text(answer, "PatientID") == patient_id.strip():
                found[text(answer, "StudyInstanceUID")] = None
        return list(found)

    def _pages(self, criteria: Mapping[str, str], study: str = "") -> Iterator[SeriesRecord]:
        yield from search_series(self.client, criteria, study)

    # --- retrieve ------------------------------------------------------------------------------

    def datasets(self, series_instance_uid: str) -> list[Dataset]:
        """Retrieve all instances of a series with their pixels, in the stored transfer syntax.

        Raises
        ------
        NotFoundError
            The archive does not hold the series.
        UnavailableError
            Fewer instances came than the archive counts: the transfer broke off, or the series is
            still being sent. A part of a series is never taken for the whole.
        """
        record = self.find_series(series_instance_uid)
        uids = (record.study_instance_uid, record.series_instance_uid)
        with faults(f"series {uids[1]}"):
            found = list(
                self.client.retrieve_series(*uids, media_types=(("application/dicom", "*"),))
            )
        came = {str(d.get("SOPInstanceUID", "")) for d in found}
        expected = {
            text(a, "SOPInstanceUID") for a in search(self.client, "instances", {}, (), *uids)
        } or came
        if not came or not expected <= came:
            raise UnavailableError(
                f"series {uids[1]}: {len(came & expected)} of {len(expected)} instances came from "
                "the archive. It may still be receiving the series; try again in a minute."
            )
        return found

    def headers(self, series_instance_uid: str) -> list[Dataset]:
        """Retrieve the headers of a series, without pixels."""
        record = self.find_series(series_instance_uid)
        uids = (record.study_instance_uid, record.series_instance_uid)
        with faults(f"series {uids[1]}"):
            answers = self.client.retrieve_series_metadata(*uids)
        return [parse(a) for a in answers]

    def instances(self, study_instance_uid: str, series_instance_uid: str = "") -> list[Dataset]:
        """List the instances of a study or of one of its series, as a search answers.

        Each has StudyInstanceUID, SeriesInstanceUID, SOPClassUID and SOPInstanceUID; Rows and
        Columns where the archive knows them. Empty when the archive holds none.
        """
        what = f"study {study_instance_uid}"
        fields = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "Rows", "Columns")
        series = [s for s in (series_instance_uid,) if s]
        if not series:  # not all servers search the instances of a whole study
            series = [r.series_instance_uid for r in self._pages({}, study=study_instance_uid)]
        found = []
        for uid in series:
            for answer in search(self.client, "instances", {}, fields, study_instance_uid, uid):
                if not text(answer, "SOPClassUID"):
                    raise UnavailableError(f"{what}: the archive lists an instance without class.")
                answer.StudyInstanceUID, answer.SeriesInstanceUID = study_instance_uid, uid
                found.append(answer)
        return found

    def count_instances(self, study_instance_uid: str, series_instance_uid: str) -> int:
        """Count the instances of a series as a search lists them; 0 where it lists none."""
        return count_instances(self.client, study_instance_uid, series_instance_uid)

    def state_of(self, study: str, series: str) -> str | None:
        """Digest of a series' files in a folder, another one when any changes; None for a PACS."""
        if not isinstance(self.client, FolderClient):
            return None
        return self.client.index.state(study, series)

    def header(self, study: str, series: str, instance: str) -> Dataset:
        """Retrieve the header of one instance by its three UIDs, without pixels."""
        with faults(f"instance {instance}"), suppress(IndexError):  # the first of no answers
            answer = self.client.retrieve_instance_metadata(study, series, instance)
            return parse(answer[0] if isinstance(answer, list) else answer)
        raise NotFoundError(f"instance {instance}: the archive has no header of it.")

    def has_study(self, study_instance_uid: str) -> bool:
        """Whether the archive lists the study now."""
        uid = validate_uid(study_instance_uid, what="StudyInstanceUID", strict=False)
        answers = search(self.client, "studies", {"StudyInstanceUID": uid}, ())
        return any(text(a, "StudyInstanceUID") == uid for a in answers)

    def load_volume(self, series_instance_uid: str) -> Volume:
        """Read a series as one volume.

        Raises
        ------
        UnsupportedSeriesError
            See :func:`segunlearn.dicom.series.volume_from_datasets`.
        """
        return volume_from_datasets(self.datasets(series_instance_uid))

    # --- segmentations -------------------------------------------------------------------------

    def store(self, datasets: Iterable[Dataset]) -> list[str]:
        """Send instances to the archive.

        Returns
        -------
        list of str
            SOPInstanceUIDs that were stored: all of them.

        Raises
        ------
        UnavailableError
            The archive refused an instance, or cannot be reached.
        """
        objects = list(datasets)
        if not objects:
            return []
        with faults("store"):
            response = self.client.store_instances(objects)
        failed = list(response.get("FailedSOPSequence") or [])
        if failed:
            reason = failed[0].get("FailureReason", "unknown")
            shown = f"{reason:04X}H" if isinstance(reason, int) else str(reason)
            raise UnavailableError(
                f"the archive refused {len(failed)} of {len(objects)} instances (failure reason "
                f"{shown}, PS3.18 table I.2-2). Look into the archive's log."
            )
        return [str(o.SOPInstanceUID) for o in objects]

    def segmentations_of(self, series_instance_uid: str) -> list[SegmentationRecord]:
        """List the SEGs that reference a series, the newest first."""
        record = self.find_series(series_instance_uid)
        found = self._segmentations(record.study_instance_uid)
        return found.get(record.series_instance_uid, [])

    def labelled_series(self) -> dict[str, list[SegmentationRecord]]:
        """List all SEGs of the archive by the series they reference, the newest first.

        Asks for the SEGs of the whole archive, not series by series. A SEG in another study than
        its image counts too.
        """
        return self._segmentations("")

    def _segmentations(self, study: str) -> dict[str, list[SegmentationRecord]]:
        return self.segmentations_in(self.iter_series(modalities=("SEG",), study=study))

    def segmentations_in(
        self, series: Iterable[SeriesRecord]
    ) -> dict[str, list[SegmentationRecord]]:
        """List the SEGs of such series by the series they reference, the newest first."""
        found: dict[str, list[SegmentationRecord]] = {}
        for one in series:
            for sop in self._instances(one):
                try:
                    described = self._describe(one.study_instance_uid, one.series_instance_uid, sop)
                except (UnsupportedSeriesError, NotFoundError) as error:
                    logger.warning("a segmentation is left out: %s", type(error).__name__)
                    continue
                for uid in described[1]:
                    found.setdefault(uid, []).append(described[0])
        for records in found.values():
            records.sort(key=lambda r: r.age, reverse=True)
        return found

    def _instances(self, series: SeriesRecord) -> list[str]:
        """SOPInstanceUIDs of a series of SEGs; asked for again when their number changes."""
        key, count = series.series_instance_uid, series.number_of_instances
        with self._lock:
            known = self._members.get(key)
        if known is not None and count is not None and known[0] == count:
            return known[1]
        uids = (series.study_instance_uid, key)
        answers = search(self.client, "instances", {}, (), *uids)
        found = [text(a, "SOPInstanceUID") for a in islice(answers, count or None)]
        if count is not None:
            with self._lock:
                self._members[key] = (count, found)
                while len(self._members) > _CACHED_RECORDS:
                    self._members.popitem(last=False)
        return found

    def _describe(
        self, study: str, series: str, sop: str
    ) -> tuple[SegmentationRecord, tuple[str, ...]]:
        with self._lock:
            if sop in self._records:
                return self._records[sop]
        header = self.header(study, series, sop)
        described = describe_segmentation(header), references_series(header)
        with self._lock:
            self._records[sop] = described
            while len(self._records) > _CACHED_RECORDS:
                self._records.popitem(last=False)
        return described

    def load_label(
        self,
        series_instance_uid: str,
        label_names: Mapping[int, str],
        *,
        author: str | None = None,
        reference: Volume | None = None,
    ) -> Volume | None:
        """Read the newest label of a series.

        Parameters
        ----------
        series_instance_uid
            The image.
        label_names
            Value in the result to segment name; segments of other names are left out, and SEGs
            that hold none of the names are passed over.
        author
            Take the newest SEG of this ContentCreatorName only.
        reference
            The image, where it is loaded already; saves retrieving it.

        Returns
        -------
        Volume or None
            int16, on the full grid of the image; None when there is no such SEG.
        """
        record = self.find_series(series_instance_uid)
        wanted = {name.strip().casefold() for name in label_names.values()}
        for candidate in self._segmentations(record.study_instance_uid).get(
            record.series_instance_uid, []
        ):
            if author is not None and candidate.author != author:
                continue
            if not wanted & {name.strip().casefold() for name in candidate.segments.values()}:
                continue
            grid = reference if reference is not None else self.headers(series_instance_uid)
            return self.read_label(
                candidate.study_instance_uid,
                candidate.series_instance_uid,
                candidate.sop_instance_uid,
                label_names,
                grid,
            )
        return None

    def read_label(
        self,
        study: str,
        series: str,
        instance: str,
        label_names: Mapping[int, str],
        grid: Volume | Sequence[Dataset],
    ) -> Volume:
        """Read one SEG by its three UIDs, onto the grid of its image; see ``load_label``."""
        with faults(f"segmentation {instance}"):
            dataset = self.client.retrieve_instance(
                study, series, instance, media_types=(("application/dicom", "*"),)
            )
        return read_segmentation(dataset, grid, label_names=label_names)[0]
