"""Studies in a folder of NIfTI or NRRD files."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segunlearn.app.datastores.files import labels_in, volumes_in
from segunlearn.app.datastores.index import CachedIndex
from segunlearn.app.datastores.infos import check_name, check_tag
from segunlearn.app.datastores.labels import values_in
from segunlearn.app.datastores.naming import NamedLabel, agreed_names, values_for
from segunlearn.app.datastores.studies import (
    FINAL,
    ImageRecord,
    LabelRecord,
    Labels,
    StudiesDatastore,
)
from segunlearn.app.locks import exclusive
from segunlearn.app.options import Home
from segunlearn.cases import Case, People
from segunlearn.errors import ConflictError, ForbiddenError, InvalidInputError
from segunlearn.replacing import replacing
from segunlearn.volumes import SUFFIXES, Volume, read_volume, strip_suffix, write_volume

logger = logging.getLogger(__name__)

#: Folder names of the Medical Segmentation Decathlon, images first.
_DECATHLON = (("images", "labels"), ("imagesTr", "labelsTr"))


@dataclass(frozen=True)
class _Listed:
    """Images of the folder, those of nobody known with the reason, and what is wrong with it all.

    The last is empty while the people file is as it was read.
    """

    records: Mapping[str, ImageRecord]
    left_out: Mapping[str, str]
    fault: str


class FolderDatastore(StudiesDatastore):
    """Images are files: directly in the folder, or in ``images/`` with labels in ``labels/``.

    Labels lie in ``labels/<tag>/<image>.nii.gz``, as MONAI Label's own datastore keeps them; files
    directly in ``labels/`` count as finished labels until a person saves a newer one. Folders that
    cannot be written to keep their new labels under the home.

    Parameters
    ----------
    folder
        The studies.
    make_people
        Makes the rule that tells who is shown in a file; called again when its table has changed.
        While it cannot be made, the last one holds. A file that it does not cover is in no list.
    home, refresh, label_values, keep
        See ``StudiesDatastore``.

    Raises
    ------
    InvalidInputError
        The rule cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        make_people: Callable[[], People],
        home: Home,
        *,
        refresh: float,
        label_values: Callable[[], Mapping[str, int]],
        keep: Callable[[Sequence[Case]], list[Case]],
    ) -> None:
        super().__init__(folder.name, home, refresh=refresh, label_values=label_values, keep=keep)
        self._images: CachedIndex[_Listed] = CachedIndex(self._read_images, refresh)
        self._folder, self._make_people, self._people = folder, make_people, make_people()
        images, labels = next(
            ((folder / i, folder / j) for i, j in _DECATHLON if (folder / i).is_dir()),
            (folder, folder / "labels"),
        )
        self._told: set[str] = set()
        self.read_only = not os.access(folder, os.W_OK)
        spare = home.labels / "of-folder"
        self._image_folders = [images] if not self.read_only else [images, home.root / "images"]
        self._label_folders = [labels] if not self.read_only else [spare, labels]

    def _find(self, image_id: str) -> ImageRecord | None:
        found = self._images.get().records.get(image_id)
        if found is None:
            check_name(image_id)
            self._images.invalidate()
            found = self._images.get().records.get(image_id)
        if found is None and image_id in self.left_out():
            raise InvalidInputError(self.left_out()[image_id])
        return found

    def refresh(self) -> None:
        """Read the lists again at their next use."""
        super().refresh()
        self._images.invalidate()

    def _all_images(self) -> Mapping[str, ImageRecord]:
        return self._images.get().records

    def left_out(self) -> Mapping[str, str]:
        """Images of nobody known, by id, with the reason."""
        return self._images.get().left_out

    def _trouble(self) -> dict[str, Any]:
        listed = self._images.get()
        if not listed.left_out:
            return {"detail": listed.fault} if listed.fault else {}
        count, why = len(listed.left_out), next(iter(listed.left_out.values()))
        return {"skipped": count, "detail": f"{count} left out: {why}"}

    def _read_images(self) -> _Listed:
        people, fault = self._people_now()
        records, left_out = {}, {}
        for stem, path in self._image_files().items():
            try:
                person, study = people.of(stem)
            except InvalidInputError as error:
                left_out[stem] = f"{error} {fault}".strip()
                continue
            info = {"name": path.name, "path": str(path), "ts": int(path.stat().st_mtime)}
            records[stem] = ImageRecord(stem, study, person, info=info)
        trouble = {*left_out, fault} - {""}
        if trouble - self._told:  # names of files may be of patients, and are not logged
            what = f"{len(left_out)} images of nobody known are left out"
            what = "the people file has changed and cannot be read" if fault else what
            logger.warning("%s; GET /datastore/ says why", what)
        self._told = trouble
        return _Listed(records, left_out, fault)

    def _people_now(self) -> tuple[People, str]:
        """Return the rule, and what keeps a table that has changed from being read."""
        if not self._people.outdated:
            return self._people, ""
        try:
            self._people = self._make_people()
        except InvalidInputError as error:
            return self._people, f"The people file was not read again since it changed: {error}"
        return self._people, ""

    def _image_files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for folder in self._image_folders:
            for path in volumes_in(folder):
                stem = strip_suffix(path)
                if stem in files:
                    raise InvalidInputError(
                        f"{folder.name}: two files are named {stem!r}; keep one of them."
                    )
                files[stem] = path
        return files

    def _read_labels(self) -> Labels:
        found: dict[str, dict[str, LabelRecord]] = {}
        for folder in reversed(self._label_folders):
            tags = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
            # Decathlon: finished labels without a tag
            for tag, place in ((FINAL, folder), *((p.name, p) for p in tags)):
                if labels := labels_in(place, tag):
                    found.setdefault(tag, {}).update(labels)
        return found

    def image_file(self, record: ImageRecord) -> Path:
        """File of an image."""
        return Path(record.info["path"])

    def _fetch_image(self, record: ImageRecord) -> Path:
        return self.image_file(record)

    def _fetch_label(self, record: LabelRecord, values: Mapping[str, int]) -> Path:
        return Path(record.info["path"])

    def named_values(self) -> dict[str, int]:
        """Structures of ``dataset.json`` (Decathlon)."""
        return {n: i + 1 for i, n in enumerate(_decathlon_names(self._folder / "dataset.json"))}

    def structures(self) -> tuple[str, ...]:
        """Names of ``dataset.json`` (Decathlon), else those given with the finished labels.

        ``label_1`` and on, as many as are used, where none was given.

        Raises
        ------
        InvalidInputError
            The labels do not agree on what their values mean.
        """
        found = []
        for image_id, record in self._label_index.get().get(FINAL, {}).items():
            label = read_volume(Path(record.info["path"]), label=True)
            note = self.infos.label(image_id, FINAL).get("label_info")
            found.append(NamedLabel.read(image_id, values_in(label), note))
        return agreed_names(found, self.values())

    def _first_values(
        self, record: ImageRecord, tag: str, label: Volume, label_info: Any
    ) -> dict[str, int]:
        """Take up the numbers of the finished labels that are there; other tags keep their own."""
        if tag != FINAL or not label_info:
            return {}
        others = self._read_labels().get(FINAL, {}).keys() - {record.id}
        notes = [self.infos.label(i, FINAL).get("label_info") for i in others]
        return values_for(values_in(label), label_info, notes)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]
    ) -> str:
        """Check a label map and keep it; one at a time, while labels give out the numbers.

        Raises
        ------
        NotFoundError, InvalidInputError, LabelError, GeometryError
            See ``StudiesDatastore``.
        """
        if self.values():
            return super().save_label(image_id, label_filename, label_tag, label_info)
        with exclusive(self.home.locks, "first-labels"):
            return super().save_label(image_id, label_filename, label_tag, label_info)

    def _store_label(
        self, record: ImageRecord, tag: str, label: Volume, names: dict[int, str], author: str
    ) -> None:
        folder = self._label_folders[0] / tag
        with exclusive(self.home.locks, f"label-{record.id}"):
            write_volume(label, folder / f"{record.id}.nii.gz")
            for suffix in (".nii", ".nrrd"):  # the same label from another tool
                (folder / f"{record.id}{suffix}").unlink(missing_ok=True)

    def _drop_label(self, record: LabelRecord) -> None:
        path = Path(record.info["path"])
        if path.parent.name != record.tag or not os.access(path.parent, os.W_OK):
            raise ConflictError(
                f"the label of {record.id!r} belongs to the data set and was not saved here; "
                "remove the file yourself if you mean it."
            )
        path.unlink(missing_ok=True)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copy a volume into the folder.

        Raises
        ------
        InvalidInputError
            The name cannot be a file name, or the file is no volume.
        ConflictError
            There is an image of this name with other content.
        """
        source = Path(image_filename)
        stem = check_name(image_id or strip_suffix(source))
        suffix = next((s for s in SUFFIXES if source.name.endswith(s)), None)
        if suffix is None:
            raise InvalidInputError(f"{source.name}: upload one of {', '.join(SUFFIXES)}.")
        read_volume(source)
        self._people_now()[0].of(stem)
        target = self._image_folders[-1] / f"{stem}{suffix}"
        with exclusive(self.home.locks, f"image-{stem}"):
            present = self._image_files().get(stem)
            if present is not None:
                if present.read_bytes() == source.read_bytes():
                    return stem
                raise ConflictError(f"there is another image named {stem!r}; choose a new name.")
            self.infos.check_image(stem, image_info or {})
            with replacing(target, suffix) as part:
                shutil.copyfile(source, part)
        self._images.invalidate()
        if image_info:
            self.infos.update_image(stem, image_info)
        return stem

    def remove_image(self, image_id: str) -> None:
        """Delete an image with its labels.

        Raises
        ------
        ForbiddenError
            The folder cannot be written to.
        """
        record = self.record(image_id)
        path = self.image_file(record)
        if not os.access(path.parent, os.W_OK):
            raise ForbiddenError(f"{image_id!r}: the folder of studies is read-only.")
        for tag in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, check_tag(tag))
        path.unlink(missing_ok=True)
        self.infos.remove_image(image_id)
        self._images.invalidate()


def _decathlon_names(path: Path) -> tuple[str, ...]:
    """Structures of a Decathlon ``dataset.json`` in the order of their values, if they are 1..n."""
    try:
        labels = {int(k): str(v) for k, v in json.loads(path.read_text())["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    values = sorted(v for v in labels if v > 0)
    return tuple(labels[v] for v in values) if values == list(range(1, len(values) + 1)) else ()
