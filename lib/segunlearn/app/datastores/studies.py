"""What every datastore of ours shares: ids that must be in the index, checked labels, notes."""

from __future__ import annotations

import io
import logging
import tempfile
import time
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore

from segunlearn.app.datastores.index import CachedIndex
from segunlearn.app.datastores.infos import Infos, check_name, check_tag
from segunlearn.app.datastores.labels import names_in, on_grid_of, renumber
from segunlearn.app.options import Home
from segunlearn.cases import Case
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import NotFoundError, SegUnlearnError, UnavailableError
from segunlearn.volumes import Volume, read_volume

logger = logging.getLogger(__name__)

#: Seconds that an answer waits for a list that is still being read.
PATIENCE = 2.0
#: Tag of labels that a person has finished; only these are trained on.
FINAL = "final"
#: Tag of labels that the model made.
ORIGINAL = "original"


@dataclass(frozen=True)
class ImageRecord:
    """One image of the index.

    Parameters
    ----------
    id
        What clients call it: SeriesInstanceUID, or the file's stem.
    study, person, modality, site
        As in ``Case``.
    info
        What viewers show beside it (names of DICOM keywords where it is DICOM).
    """

    id: str
    study: str
    person: str
    modality: str = "OT"
    site: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelRecord:
    """One label of the index; ``version`` changes whenever its content does."""

    id: str
    tag: str
    version: str
    info: Mapping[str, Any] = field(default_factory=dict)


#: Labels of the index: tag -> image id -> label.
Labels = Mapping[str, Mapping[str, LabelRecord]]


@dataclass(frozen=True)
class Selection:
    """Cases ready to be read, and why others of the same request are not among them."""

    cases: list[Case]
    skipped: dict[str, str]


class StudiesDatastore(Datastore):
    """Base of the datastores; knows MONAI Label's interface, not where images lie.

    Parameters
    ----------
    title
        Name shown to people.
    home
        Folders for notes, locks and caches.
    refresh
        Seconds after which the list of images is read again.
    label_values
        Value of each structure of the model, empty while none is known.
    keep
        Drops the cases that a live forget request names.
    """

    def __init__(
        self,
        title: str,
        home: Home,
        *,
        refresh: float,
        label_values: Callable[[], Mapping[str, int]],
        keep: Callable[[Sequence[Case]], list[Case]],
    ) -> None:
        self._title = title
        self.home = home
        self.infos = Infos(home.infos, home.locks)
        self._label_values = label_values
        self._keep = keep
        self._label_index: CachedIndex[Labels] = CachedIndex(self._read_labels, refresh)

    # -- where images and labels lie: what a subclass says ------------------------------------

    def refresh(self) -> None:
        """Read the lists again at their next use."""
        self._label_index.invalidate()

    @abstractmethod
    def _find(self, image_id: str) -> ImageRecord | None:
        """Find an image by its id, one that has just arrived too; None when there is none."""

    @abstractmethod
    def _all_images(self) -> Mapping[str, ImageRecord]:
        """Return the whole list of images; may wait for it."""

    @abstractmethod
    def _read_labels(self) -> Labels:
        """Read the list of labels."""

    @abstractmethod
    def image_file(self, record: ImageRecord) -> Path:
        """File of an image, which need not exist yet."""

    @abstractmethod
    def _fetch_image(self, record: ImageRecord) -> Path:
        """File of an image, made now if it does not exist."""

    @abstractmethod
    def _fetch_label(self, record: LabelRecord, values: Mapping[str, int]) -> Path:
        """File of a label on the grid of its image, made now if it does not exist."""

    @abstractmethod
    def structures(self) -> tuple[str, ...]:
        """Names that the finished labels give their structures, for a first training."""

    @abstractmethod
    def _store_label(
        self, record: ImageRecord, tag: str, label: Volume, names: dict[int, str], author: str
    ) -> None:
        """Keep a label for good."""

    @abstractmethod
    def _drop_label(self, record: LabelRecord) -> None:
        """Remove a label."""

    def named_values(self) -> dict[str, int]:
        """Value of each structure as the studies themselves say, empty when they do not."""
        return {}

    def values(self) -> dict[str, int]:
        """Value of each structure in label maps: the model's, else as the studies say."""
        return dict(self._label_values()) or self.named_values()

    def _first_values(
        self, record: ImageRecord, tag: str, label: Volume, label_info: Any
    ) -> dict[str, int]:
        """Value of each structure of a label before anything settles it; empty: as it came."""
        return {}

    def left_out(self) -> Mapping[str, str]:
        """Images that are there and in no list, by id, with the reason."""
        return {}

    def _trouble(self) -> dict[str, Any]:
        """Say in ``status`` what is wrong with the list."""
        return {}

    def _images_so_far(self, seconds: float) -> tuple[Mapping[str, ImageRecord], bool]:
        """Return what is listed after so many seconds at most, and whether that is everything."""
        return self._all_images(), True

    def _first_images(self, count: int) -> Mapping[str, ImageRecord]:
        """Return the list when it holds so many images, or everything there is."""
        return self._all_images()

    def _images_named(self, image_ids: Iterable[str]) -> dict[str, ImageRecord]:
        """Return those of the images that there are."""
        images = self._all_images()
        return {i: images[i] for i in image_ids if i in images}

    # -- index ---------------------------------------------------------------------------------

    def record(self, image_id: str) -> ImageRecord:
        """One image by its id.

        Raises
        ------
        NotFoundError
            There is no such image: ids are never used as paths.
        """
        found = self._find(image_id)
        if found is None:
            check_name(image_id)
            raise NotFoundError(
                f"there is no image {image_id!r:.80} among the studies. GET "
                "/datastore/?output=all lists them."
            )
        return found

    def label_record(self, image_id: str, tag: str) -> LabelRecord:
        """One label by image and tag.

        Raises
        ------
        NotFoundError
            There is no such image, or it has no label of this tag.
        """
        self.record(image_id)
        found = self._label_index.get().get(check_tag(tag), {}).get(image_id)
        if found is None:
            raise NotFoundError(f"image {image_id!r:.80} has no label tagged {tag!r:.70}.")
        return found

    def header_of(self, image_id: str) -> SiteKey | None:
        """Return what an image's DICOM header says of its scanner; None where it has none.

        Raises
        ------
        NotFoundError
            There is no such image.
        UnavailableError
            The archive cannot be reached.
        """
        self.record(image_id)
        return None

    def case_of(self, record: ImageRecord, label: Path | None = None) -> Case:
        """Say who is shown; the image's file need not exist yet."""
        return Case(
            series=record.id,
            study=record.study,
            person=record.person,
            image=self.image_file(record),
            label=label,
            modality=record.modality,
            site=record.site,
        )

    def trainable(
        self,
        tag: str = FINAL,
        *,
        values: Mapping[str, int] | None = None,
        progress: Callable[[int, int], None] | None = None,
        only: Collection[str] | None = None,
    ) -> Selection:
        """Labelled cases with their files at hand, without those marked for forgetting.

        Parameters
        ----------
        tag
            Of the labels.
        values
            Value of each structure in the label files; by default the model's.
        progress
            Called with the cases fetched and their total.
        only
            Ids of the images that are wanted; None: all.

        Raises
        ------
        UnavailableError
            The archive or the store cannot be reached.
        """
        values = self.values() if values is None else dict(values)
        labels = self._label_index.get().get(tag, {})
        wanted = labels.keys() if only is None else labels.keys() & set(only)
        known = [self.case_of(r) for r in self._images_named(sorted(wanted)).values()]
        nobody = "nobody knows whom it shows; GET /datastore/ says more."  # no name: it is logged
        cases, skipped = [], dict.fromkeys(sorted(wanted & self.left_out().keys()), nobody)
        kept = self._keep(known)
        for number, case in enumerate(kept, start=1):
            try:
                record = self.record(case.series)  # as it is now: it may have grown
                self._fetch_image(record)
                label = self._fetch_label(labels[case.series], values)
                cases.append(self.case_of(record, label))
            except UnavailableError:
                raise
            except SegUnlearnError as error:
                skipped[case.series] = str(error)
            if progress is not None:
                progress(number, len(kept))
        return Selection(cases, skipped)

    def without_forgotten(self, image_ids: Iterable[str]) -> list[str]:
        """Image ids without those that a live forget request names, sorted."""
        named = self._images_named(sorted(set(image_ids)))
        known = [self.case_of(record) for record in named.values()]
        return [case.series for case in self._keep(known)]

    def sizes(self, image_ids: Iterable[str]) -> dict[str, int]:
        """Instances of each image as they were last listed; 0 where there are none to count."""
        named = self._images_named(image_ids)
        return {i: int(record.info.get("instances") or 0) for i, record in named.items()}

    # -- monailabel.interfaces.datastore.Datastore ---------------------------------------------

    def name(self) -> str:
        """Name shown to people."""
        return self._title

    def set_name(self, name: str) -> None:
        """Change the name until the next start."""
        self._title = str(name)

    def description(self) -> str:
        """Say what kind of studies these are."""
        return str(type(self).__doc__).splitlines()[0]

    def set_description(self, description: str) -> None:
        """Do nothing: the description says what the studies are."""

    def datalist(self) -> list[dict[str, Any]]:
        """Finished labels with their images, without studies marked for forgetting."""
        return [{"image": str(c.image), "label": str(c.label)} for c in self.trainable().cases]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tags of an image's labels; a label's id is its image's id."""
        self.record(image_id)
        return {tag: image_id for tag, ids in self._label_index.get().items() if image_id in ids}

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Id of the label with this tag, empty when there is none."""
        return self.get_labels_by_image_id(image_id).get(check_tag(tag), "")

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """Content of the image's file."""
        return io.BytesIO(Path(self.get_image_uri(image_id)).read_bytes())

    def get_image_uri(self, image_id: str) -> str:
        """Path of the image's file, made when it is DICOM."""
        return str(self._fetch_image(self.record(image_id)))

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """Content of the label's file."""
        return io.BytesIO(Path(self.get_label_uri(label_id, label_tag)).read_bytes())

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of the label's file."""
        record = self.label_record(label_id, label_tag)
        return str(self._fetch_label(record, self.values()))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return notes on the image, and what its source says of it."""
        record = self.record(image_id)
        return {**self.infos.image(image_id), **record.info}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return notes on the label, and what its source says of it."""
        record = self.label_record(label_id, label_tag)
        return {**self.infos.label(label_id, record.tag), **record.info}

    def get_labeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Images with a finished label, or with a label of the tag."""
        tagged = self._label_index.get().get(check_tag(label_tag or FINAL), {})
        return sorted(self._images_named(tagged))

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: list[str] | None = None
    ) -> list[str]:
        """Images without a finished label, or without a label of the tag."""
        tagged = self._label_index.get().get(check_tag(label_tag or FINAL), {})
        return sorted(i for i in self._all_images() if i not in tagged)

    def candidates(self, label_tag: str | None = None) -> list[str]:
        """Images without a finished label, or a label of the tag, as far as they are listed now."""
        tagged = self._label_index.get().get(check_tag(label_tag or FINAL), {})
        images, _ = self._images_so_far(PATIENCE)
        return [i for i in images if i not in tagged]

    def list_images(self) -> list[str]:
        """All images."""
        return sorted(self._all_images())

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Check a label map against its image and the model's structures, and keep it.

        Raises
        ------
        NotFoundError
            There is no such image.
        InvalidInputError, LabelError, GeometryError
            The file is no label map of this image.
        """
        record, tag, info = self.record(image_id), check_tag(label_tag), dict(label_info or {})
        label = read_volume(Path(label_filename), label=True)
        image = read_volume(self._fetch_image(record), modality=record.modality)
        label = on_grid_of(image, label)
        values = self.values() or self._first_values(record, tag, label, info.get("label_info"))
        label = renumber(label, info.get("label_info"), values)
        kind = np.uint8 if label.array.max(initial=0) <= 255 else np.uint16
        label = Volume(label.array.astype(kind), label.affine, label.modality)
        present = [int(v) for v in np.unique(label.array) if v]
        names = {v: n for n, v in values.items()}
        if values:
            info["label_info"] = [{"name": n, "idx": v} for n, v in values.items()]
        else:  # nothing was trained yet: the client's names, where it gave some
            given = names_in(present, info.get("label_info"))
            names = {v: given.get(v, f"label_{v}") for v in present}
        author = str(info.get("user") or info.get("client_id") or "")
        info["ts"] = int(time.time())
        self.infos.check_label(image_id, tag, info)
        self._store_label(record, tag, label, names, author)
        self._label_index.invalidate()
        self.infos.update_label(image_id, tag, info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label and the notes on it."""
        record = self.label_record(label_id, label_tag)
        self._drop_label(record)
        self._label_index.invalidate()
        self.infos.remove_label(label_id, record.tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merge into the notes on an image."""
        self.infos.update_image(self.record(image_id).id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merge into the notes on a label."""
        record = self.label_record(label_id, label_tag)
        self.infos.update_label(label_id, record.tag, info)

    def status(self) -> dict[str, Any]:
        """Numbers of images and labels; says why they are missing while the archive is away.

        While a long list is read, the numbers are those so far, and ``listing`` is true.
        ``skipped`` counts images that are in no list, ``detail`` says why.
        """
        until = time.monotonic() + PATIENCE
        try:
            images, whole = self._images_so_far(PATIENCE)
            labels = self._label_index.within(max(0.0, until - time.monotonic()))
        except UnavailableError as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "detail": str(error)}
        tags = {
            tag: sum(i in images for i in ids) if whole else len(ids)
            for tag, ids in (labels or {}).items()
            if ids
        }
        found = {"total": len(images), "completed": tags.get(FINAL, 0), "label_tags": tags}
        found |= self._trouble()
        return found if whole and labels is not None else {**found, "listing": True}

    def json(self, limit: int | None = None, offset: int = 0) -> dict[str, Any]:
        """Images and labels, in the shape of MONAI Label's ``datastore_v2.json``.

        Parameters
        ----------
        limit
            Images in the answer at most, in the order in which they are listed; None: all, by name.
            ``listing`` is true while labels are still looked for.
        offset
            Images that are passed over; with ``limit`` alone.
        """
        labels: Labels | None
        if limit is None:
            images, labels = self._all_images(), self._label_index.get()
            names = sorted(images)
        else:
            images = self._first_images(offset + limit)
            labels = self._label_index.within(PATIENCE)
            names = list(islice(images, offset, offset + limit))
        objects = {}
        for image_id in names:
            tagged = {
                tag: {
                    "ext": ".nii.gz",
                    "info": {**self.infos.label(image_id, tag), **ids[image_id].info},
                }
                for tag, ids in (labels or {}).items()
                if image_id in ids
            }
            info = {**self.infos.image(image_id), **images[image_id].info}
            objects[image_id] = {"image": {"ext": ".nii.gz", "info": info}, "labels": tagged}
        found = {"name": self.name(), "description": self.description(), "objects": objects}
        return found if labels is not None else {**found, "listing": True}

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """ZIP of images and finished labels; the caller deletes the file.

        Raises
        ------
        NotFoundError
            No image has a finished label.
        """
        cases = self.trainable().cases
        if not cases:
            raise NotFoundError("no image has a finished label yet, so there is nothing to pack.")
        if limit_cases is not None and limit_cases > 0:
            cases = cases[:limit_cases]
        with tempfile.NamedTemporaryFile(
            dir=self.home.scratch(), suffix=".zip", delete=False
        ) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for case in cases:
                    assert case.label is not None
                    archive.write(case.image, f"images/{case.image.name}")
                    archive.write(case.label, f"labels/{case.label.name}")
            return file.name
