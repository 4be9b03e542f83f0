"""Studies in a DICOM archive: a PACS over DICOMweb, or a folder of DICOM files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from segunlearn.app.datastores.converted import Converted
from segunlearn.app.datastores.files import labels_in
from segunlearn.app.datastores.finished import finished_label, rank
from segunlearn.app.datastores.index import Remembered
from segunlearn.app.datastores.listing import SeriesList
from segunlearn.app.datastores.studies import (
    FINAL,
    ImageRecord,
    LabelRecord,
    Labels,
    StudiesDatastore,
)
from segunlearn.app.locks import exclusive
from segunlearn.app.options import Home
from segunlearn.cases import Case, unknown_person
from segunlearn.dicom.archive import Archive
from segunlearn.dicom.identifiers import is_pattern, is_uid
from segunlearn.dicom.search import SeriesRecord, text
from segunlearn.dicom.segmentation_writing import Algorithm, write_segmentation
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
    UnsupportedSeriesError,
)
from segunlearn.records.targets import person_name, same_issuer, split_person
from segunlearn.volumes import SUFFIXES, Volume, read_volume, write_volume

#: Pause before an archive is asked again for an image that a SEG names and that is not there.
_MISSING_SECONDS: Final = 60.0

#: Label names and SEGs of a study with their numbers of instances: changes when the SEGs do.
_StudyKey = tuple[tuple[str, int | None], ...]


class DicomDatastore(StudiesDatastore):
    """Series of a DICOM archive; an image's id is its SeriesInstanceUID.

    Finished labels are DICOM SEG in the archive and nowhere else: what lies in the cache is made
    again from them. Labels of other tags lie under the home.

    Parameters
    ----------
    archive
        The PACS or folder.
    title
        Name shown to people.
    modalities, filters
        Which series are listed.
    automatic
        SEGs that a machine made alone are finished labels where there are no others.
    home, refresh, label_values, keep
        See ``StudiesDatastore``.
    """

    def __init__(
        self,
        archive: Archive,
        title: str,
        home: Home,
        *,
        modalities: Sequence[str],
        filters: Mapping[str, str],
        automatic: bool,
        refresh: float,
        label_values: Callable[[], Mapping[str, int]],
        keep: Callable[[Sequence[Case]], list[Case]],
    ) -> None:
        super().__init__(title, home, refresh=refresh, label_values=label_values, keep=keep)
        self.archive = archive
        self._modalities, self._filters = tuple(modalities), dict(filters)
        self._automatic = automatic
        self._refresh = refresh
        self._series = SeriesList(self._read_series, refresh)
        self._asked: Remembered[SeriesRecord] = Remembered(refresh)
        self._counted: Remembered[int] = Remembered(refresh)
        self._images = Converted(home.cache / "images")
        self._segmented: dict[str, tuple[_StudyKey, float, dict[str, LabelRecord]]] = {}

    # -- index ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the lists again at their next use."""
        super().refresh()
        self._series.invalidate()
        self._asked.clear()
        self._counted.clear()

    def _read_series(self) -> Iterator[SeriesRecord]:
        return self.archive.iter_series(modalities=self._modalities, filters=self._filters)

    def _all_images(self) -> Mapping[str, ImageRecord]:
        return _Records(self._series.get(), self._record)

    def _images_so_far(self, seconds: float) -> tuple[Mapping[str, ImageRecord], bool]:
        rows, whole = self._series.so_far(seconds)
        return _Records(rows, self._record), whole and not self._series.cut

    def _first_images(self, count: int) -> Mapping[str, ImageRecord]:
        return _Records(self._series.first(count), self._record)

    def _images_named(self, image_ids: Iterable[str]) -> dict[str, ImageRecord]:
        """Look in the list as far as it was read, and ask the archive for the others one by one."""
        if self._series.quick:
            return super()._images_named(image_ids)
        found = {}
        for image_id in image_ids:
            if not is_uid(image_id, strict=False):
                continue  # a file that somebody put among the labels
            listed = self._series.peek(image_id)
            with suppress(NotFoundError):
                found[image_id] = self._record(listed) if listed else self.record(image_id)
        return found

    def _find(self, image_id: str) -> ImageRecord | None:
        """Find one image; waits for no list. A large list is older than ``refresh`` seconds."""
        if self._series.quick:
            listed = self._series.get().get(image_id)
            if listed is not None:
                return self._record(listed)
        found = self._series.peek(image_id, self._refresh) or self._asked.get(image_id)
        if found is None and is_uid(image_id, strict=False):
            try:
                found = self._ask_for(image_id)
            except UnavailableError:
                found = self._series.peek(image_id)  # the archive is away: what is known of it
                if found is None:
                    raise
        return self._record(found) if found is not None else None

    def _ask_for(self, uid: str) -> SeriesRecord | None:
        """Ask the archive for one series; None when it is not among those that are listed."""
        wanted = {**self._filters, "SeriesInstanceUID": uid}
        series = self.archive.iter_series(
            modalities=self._modalities if self._filters else (), filters=wanted
        )
        found = next((s for s in series if s.series_instance_uid == uid), None)
        if found is None or found.modality not in self._modalities:
            return None
        self._asked.put(uid, found)
        if self._series.quick:
            self._series.invalidate()  # it has just arrived
        return found

    def study_of(self, study_instance_uid: str) -> ImageRecord | None:
        """Return an image of a study, of whatever modality where none is listed; None: no such.

        Raises
        ------
        UnavailableError
            The archive cannot be reached.
        """
        with suppress(UnavailableError):
            self._series.so_far(0.0)  # who marks or looks at marks soon asks for more
        found = self._series.of_study(study_instance_uid)
        if found is None and is_uid(study_instance_uid, strict=False):
            series = self.archive.iter_series(modalities=(), study=study_instance_uid)
            found = next(series, None)
        return self._record(found) if found is not None else None

    def listed(self, kind: str, uids: Iterable[str]) -> dict[str, ImageRecord]:
        """Images of studies or series by their UID, as far as the list was read; asks for none."""
        with suppress(SegUnlearnError):
            self._series.so_far(0.0)  # so that more is known the next time
        find = self._series.peek if kind == "series" else self._series.of_study
        found = {uid: find(uid) for uid in uids}
        return {uid: self._record(series) for uid, series in found.items() if series is not None}

    def persons_numbered(self, patient_id: str) -> set[str]:
        """Return the persons of a PatientID, told apart by issuer, as the archive knows them.

        None for an id that holds a wildcard; see ``Archive.studies_of_patient``.

        Raises
        ------
        UnavailableError
            The archive cannot be reached.
        """
        if is_pattern(patient_id):
            return set()
        series = self.archive.iter_series(
            modalities=self._modalities, filters={"PatientID": patient_id}
        )
        persons = {self._record(s).person for s in series}
        return {p for p in persons if split_person(p)[0] == patient_id}

    def studies_of_patient(self, patient_id: str, issuer: str) -> list[str]:
        """List the studies of a patient as the archive knows them; see ``Archive``.

        Without those of another issuer, where only a header that was read before names it.

        Raises
        ------
        UnavailableError
            The archive cannot be reached.
        """
        found = self.archive.studies_of_patient(patient_id, issuer)
        listed = [self._series.of_study(study) for study in found]
        others = set()
        for image in (self._record(series) for series in listed if series is not None):
            patient, own_issuer = split_person(image.person)
            if patient == patient_id and not same_issuer(own_issuer, issuer):
                others.add(image.study)
        return [study for study in found if study not in others]

    def _record(self, series: SeriesRecord) -> ImageRecord:
        uid = series.series_instance_uid
        note = self._images.note(uid)
        info = {
            "name": series.patient_id or uid,
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": series.study_instance_uid,
            "PatientID": series.patient_id,
            "Modality": series.modality,
            "StudyDate": series.study_date,
            "SeriesDescription": series.series_description,
            "instances": series.number_of_instances,
        }
        return ImageRecord(
            id=uid,
            study=series.study_instance_uid,
            person=_person(series, str(note.get("issuer", ""))),
            modality=series.modality,
            site=str(note.get("site", "")),
            info=info,
        )

    def _read_labels(self) -> Labels:
        found: dict[str, dict[str, LabelRecord]] = {FINAL: self._read_segmented()}
        if self.home.labels.is_dir():
            for tag in sorted(p for p in self.home.labels.iterdir() if p.is_dir()):
                if labels := labels_in(tag, tag.name):
                    found.setdefault(tag.name, {}).update(labels)
        return found

    def _read_segmented(self) -> dict[str, LabelRecord]:
        """Series with a SEG that names a structure of the model; asks only where SEGs changed."""
        values = self._label_values()
        names = tuple(sorted((n, v) for n, v in values.items()))
        segs: dict[str, list[SeriesRecord]] = {}
        for series in self.archive.iter_series(modalities=("SEG",)):
            segs.setdefault(series.study_instance_uid, []).append(series)
        labels: dict[str, LabelRecord] = {}
        segmented: dict[str, tuple[_StudyKey, float, dict[str, LabelRecord]]] = {}
        for study, members in segs.items():
            counts = [(m.series_instance_uid, m.number_of_instances) for m in members]
            key, now = (*names, *sorted(counts, key=str)), time.monotonic()
            known = self._segmented.get(study)
            countable = all(count is not None for _, count in counts)
            if known is None or known[0] != key or not countable or now > known[1]:
                found, complete = self._segmentations_in(study, members, values)
                known = (key, inf if complete else now + _MISSING_SECONDS, found)
            segmented[study] = known
            for uid, label in known[2].items():  # the one that counts, of whatever study
                if uid not in labels or rank(labels[uid]) < rank(label):
                    labels[uid] = label
        self._segmented = segmented
        return labels

    def _segmentations_in(
        self, study: str, segs: Sequence[SeriesRecord], values: Mapping[str, int]
    ) -> tuple[dict[str, LabelRecord], bool]:
        """Labels of a study's listed series; whether all series that its SEGs name are there."""
        wanted = {name.strip().casefold() for name in values}
        segmentations = self.archive.segmentations_in(segs)
        listed = {uid for uid in segmentations if self._series.peek(uid) is not None}
        missing = segmentations.keys() - listed
        if missing:
            there = {
                s.series_instance_uid: s.modality
                for s in self.archive.iter_series(modalities=(), study=study)
            }
            fitting = {uid for uid in missing if there.get(uid) in self._modalities}
            if fitting and self._filters:
                fitting &= {
                    s.series_instance_uid
                    for s in self.archive.iter_series(
                        modalities=self._modalities, filters=self._filters, study=study
                    )
                }
            listed |= fitting
            missing -= there.keys()
        found = {}
        for uid in segmentations.keys() & listed:
            label = finished_label(uid, segmentations[uid], wanted, automatic=self._automatic)
            if label is not None:
                found[uid] = label
        return found, not missing

    # -- images --------------------------------------------------------------------------------

    def image_file(self, record: ImageRecord) -> Path:
        """File of the converted series, which need not exist yet."""
        return self._images.file(record.id)

    def _fetch_image(self, record: ImageRecord) -> Path:
        made_of = self._state_of(record)
        if self._images.is_whole(record.id, made_of):
            return self.image_file(record)
        with exclusive(self.home.locks, f"image-{record.id}"):
            if self._images.is_whole(record.id, made_of):
                return self.image_file(record)
            headers = self.archive.headers(record.id)
            volume = self.archive.load_volume(record.id)
            volume = Volume(_compact(volume.array), volume.affine, volume.modality)
            note = {
                **made_of,
                "site": str(SiteKey.of(headers[0]) if headers else ""),
                "header": str(SiteKey.read(headers[0]) if headers else ""),
                "issuer": text(headers[0], "IssuerOfPatientID") if headers else "",
            }
            return self._images.put(record.id, volume, note)

    def _state_of(self, record: ImageRecord) -> dict[str, Any]:
        """Tell a series as it is now from what it was: by its files, in a PACS by their number."""
        return {
            "instances": self._instances_of(record),
            "files": self.archive.state_of(record.study, record.id),
        }

    def _instances_of(self, record: ImageRecord) -> int | None:
        """Count a series' instances; None where the archive does not tell, nor lists them now.

        Archives that tell are not asked again, others once in ``refresh`` seconds.
        """
        told: int | None = record.info.get("instances")
        if told is not None:
            return told
        count = self._counted.get(record.id)
        if count is None:
            count = 0
            with suppress(SegUnlearnError):  # what was converted is served while it is away
                count = self.archive.count_instances(record.study, record.id)
            self._counted.put(record.id, count)
        return count or None

    def header_of(self, image_id: str) -> SiteKey | None:
        """Return what a series' header says of its scanner."""
        note = self._images.note(self.record(image_id).id)
        if "header" in note:
            return SiteKey.parse(str(note["header"]))
        headers = self.archive.headers(image_id)
        return SiteKey.read(headers[0]) if headers else None

    def case_of(self, record: ImageRecord, label: Path | None = None) -> Case:
        """Say who is shown; a header that was read since the list was knows issuer and site."""
        case = super().case_of(record, label)
        if label is None:
            return case
        note = self._images.note(record.id)
        case = replace(case, site=case.site or str(note.get("site", "")))
        if split_person(case.person)[1]:
            return case
        issuer = str(note.get("issuer", ""))
        known = bool(record.info.get("PatientID"))
        return replace(case, person=person_name(case.person, issuer)) if known else case

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Refuse: images come into an archive as DICOM.

        Raises
        ------
        InvalidInputError
            Always.
        """
        raise InvalidInputError(
            "these studies are a DICOM archive: send images to it as DICOM (STOW-RS or C-STORE). "
            "To segment a single file, upload it to /infer or /session."
        )

    def remove_image(self, image_id: str) -> None:
        """Refuse: nothing of ours deletes images from an archive.

        Raises
        ------
        ForbiddenError
            Always.
        """
        self.record(image_id)
        raise ForbiddenError(
            "images of an archive are not deleted from here; delete them in the PACS. To keep a "
            "study out of training, mark it for forgetting."
        )

    # -- labels --------------------------------------------------------------------------------

    def structures(self) -> tuple[str, ...]:
        """Segment names of the finished labels, by segment number and name; without case one."""
        found = set()
        for record in self._label_index.get().get(FINAL, {}).values():
            found |= {(int(k), str(v)) for k, v in record.info["segments"].items()}
        names: dict[str, str] = {}
        for _, name in sorted(found):
            names.setdefault(name.strip().casefold(), name)
        return tuple(self.values()) or tuple(names.values())

    def as_segmentation(
        self,
        image_id: str,
        mask: Volume,
        names: Mapping[int, str],
        params: Mapping[str, Any],
        user: str | None,
    ) -> Dataset:
        """Wrap a mask of the model as DICOM SEG; it is not stored.

        Parameters
        ----------
        image_id
            The series.
        mask
            Label map on its grid.
        names
            Structure of each value.
        params
            Of the inference: which model and version made the mask.
        user
            Who asked, None when nobody is known.
        """
        return self._written(
            image_id,
            mask,
            dict(names),
            author=user or "",
            algorithm=Algorithm(
                name=f"SegUnlearn {params['model']}",
                version=f"{params['version']} {params['sha256'][:12]}",
                parameters={"site adapter": params["adapter"], "site rule": params["site_rule"]},
            ),
        )

    def _fetch_label(self, record: LabelRecord, values: Mapping[str, int]) -> Path:
        if record.tag != FINAL:
            return Path(record.info["path"])
        values = dict(values) or self._values_in(record)
        image = self.record(record.id)  # as it is now: it may have grown
        segmentation = record.info["study_instance_uid"], record.info["series_instance_uid"]
        made_of = {
            **self._state_of(image),
            "sop_instance_uid": record.version,
            "segmentation": self.archive.state_of(*segmentation),
            "values": values,
        }
        labels = self._labels_with(values)
        if labels.is_whole(record.id, made_of):
            return labels.file(record.id)
        with exclusive(self.home.locks, f"label-{record.id}"):
            if labels.is_whole(record.id, made_of):
                return labels.file(record.id)
            reference = read_volume(self._fetch_image(image), modality=image.modality)
            named = {name.strip().casefold() for name in record.info["segments"].values()}
            if named.isdisjoint(name.strip().casefold() for name in values):
                raise NotFoundError(
                    f"series {record.id}: its SEG holds none of {', '.join(values)}."
                )
            label = self.archive.read_label(
                *segmentation,  # not always of the image's study
                record.version,
                {v: n for n, v in values.items()},
                reference,
            )
            labels.drop_note(record.id)
            return labels.put(record.id, label, made_of)

    def _labels_with(self, values: Mapping[str, int]) -> Converted:
        """Keep labels of other values elsewhere: a training may be about to read those."""
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        return Converted(self.home.cache / "labels" / digest)

    @staticmethod
    def _values_in(record: LabelRecord) -> dict[str, int]:
        return {name: int(value) for value, name in record.info["segments"].items()}

    def _store_label(
        self, record: ImageRecord, tag: str, label: Volume, names: dict[int, str], author: str
    ) -> None:
        if tag != FINAL:
            write_volume(label, self.home.labels / tag / f"{record.id}.nii.gz")
            return
        self.archive.store([self._written(record.id, label, names, author=author)])

    def _written(
        self,
        image_id: str,
        mask: Volume,
        names: dict[int, str],
        *,
        author: str,
        algorithm: Algorithm | None = None,
    ) -> Dataset:
        """Write a SEG; the images are fetched only where copies are to be told by their pixels."""
        write = partial(
            write_segmentation, label_names=names, author=_author(author), algorithm=algorithm
        )
        try:
            return write(mask, self.archive.headers(image_id))
        except UnsupportedSeriesError:
            return write(mask, self.archive.datasets(image_id))

    def _drop_label(self, record: LabelRecord) -> None:
        if record.tag == FINAL:
            raise ConflictError(
                "finished labels are DICOM SEG objects of the archive and are not deleted from "
                "here. Save a corrected label: the newest one counts; or delete it in the PACS."
            )
        Path(record.info["path"]).unlink(missing_ok=True)


class _Records(Mapping[str, ImageRecord]):
    """Images of a list of series, each made when it is looked at."""

    def __init__(
        self, rows: Mapping[str, SeriesRecord], make: Callable[[SeriesRecord], ImageRecord]
    ) -> None:
        self._rows, self._make = rows, make

    def __getitem__(self, image_id: str) -> ImageRecord:
        return self._make(self._rows[image_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows


def _person(series: SeriesRecord, issuer: str) -> str:
    """Name the patient of a series; ``issuer`` is that of its header, where it was read."""
    patient, own_issuer = split_person(series.patient_id)
    if not patient:
        return unknown_person(series.study_instance_uid)
    return person_name(patient, own_issuer or series.issuer_of_patient_id or issuer)


def looks_like_dicom(folder: Path, files: int = 2000) -> bool:
    """Whether one of the first files of a folder is DICOM (PS3.10: ``DICM`` at byte 128)."""
    seen = 0
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith(".") or path.name.endswith(SUFFIXES):
            continue
        if path.name.upper() == "DICOMDIR":
            return True
        try:
            with path.open("rb") as file:
                file.seek(128)
                if file.read(4) == b"DICM":
                    return True
        except OSError:
            continue
        seen += 1
        if seen >= files:
            break
    return False


def _compact(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return whole numbers as int16, which reads and packs faster, without loss."""
    if np.issubdtype(array.dtype, np.integer):
        return array
    low, high = array.min(initial=0), array.max(initial=0)
    if low < -32768 or high > 32767 or not np.array_equal(array, np.rint(array)):
        return array
    return array.astype(np.int16)


def _author(user: str) -> str:
    """Name of whoever signed in, without the signs that separate values and parts of names."""
    shown = "".join(c if c.isprintable() else " " for c in user)
    return shown.replace("\\", "/").replace("=", "-")[:63].strip()
