"""A folder of DICOM files behind dicomweb-client's file client."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicomweb_client.file import DICOMfileClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from segunlearn.dicom.folder_index import FolderIndex
from segunlearn.dicom.identifiers import validate_uid
from segunlearn.dicom.json_model import Json, to_json
from segunlearn.dicom.reading import read_dicom
from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
    UnsupportedSeriesError,
)

#: Subfolder that holds what was stored through us; nothing else in a studies folder is written.
RESULTS_FOLDER = "segunlearn-results"


class FolderClient(DICOMfileClient):
    """Search, retrieve and store DICOM files of a folder through the DICOMweb client protocol.

    dicomweb-client's own file client defines the protocol; the index and all methods that use it
    are replaced (``folder_index`` says why; moreover its retrieval fails for Implicit VR Little
    Endian). Errors are this package's, not ``requests.HTTPError``.

    Parameters
    ----------
    folder
        Studies; only ``segunlearn-results/`` in it is ever written.
    index_dir
        Folder of the index, outside ``folder``.
    results_dir
        Where stored instances go when ``folder`` cannot be written; None refuses to store then.
    """

    def __init__(self, folder: Path, *, index_dir: Path, results_dir: Path | None = None) -> None:
        folder = Path(folder).resolve()
        if not folder.is_dir():
            raise InvalidInputError(f"{folder}: no such folder of studies. Check the path.")
        self.folder = folder
        self.base_url = folder.as_uri()
        self.scheme, self.protocol, self.url_prefix = "file", None, str(folder)
        self.qido_url_prefix = self.wado_url_prefix = None
        self.stow_url_prefix = self.delete_url_prefix = None
        self._results: Path | None = folder / RESULTS_FOLDER
        roots = [folder]
        if not os.access(folder, os.W_OK):
            self._results = Path(results_dir).resolve() if results_dir is not None else None
            if self._results is not None:
                self._results.mkdir(parents=True, exist_ok=True)
                if not self._results.is_relative_to(folder):
                    roots.append(self._results)
        self._readonly = self._results is None
        self.index = FolderIndex(roots, index_dir)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    # --- QIDO-RS -------------------------------------------------------------------------------

    def search_for_studies(
        self,
        fuzzymatching: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        fields: Sequence[str] | None = None,
        search_filters: Mapping[str, Any] | None = None,
        get_remaining: bool = False,
    ) -> list[Json]:
        """Search for studies; all indexed attributes are returned, whatever ``fields`` says."""
        self.index.refresh()
        return self.index.query(
            "studies",
            search_filters,
            limit=None if get_remaining else limit,
            offset=offset,
            fuzzymatching=bool(fuzzymatching),
        )

    def search_for_series(
        self,
        study_instance_uid: str | None = None,
        fuzzymatching: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        fields: Sequence[str] | None = None,
        search_filters: Mapping[str, Any] | None = None,
        get_remaining: bool = False,
    ) -> list[Json]:
        """Search for series, of one study or of all."""
        self.index.refresh()
        return self.index.query(
            "series",
            _within(search_filters, StudyInstanceUID=study_instance_uid),
            limit=None if get_remaining else limit,
            offset=offset,
            fuzzymatching=bool(fuzzymatching),
        )

    def search_for_instances(
        self,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        fuzzymatching: bool | None = None,
        limit: int | None = None,
        offset: int | None = None,
        fields: Sequence[str] | None = None,
        search_filters: Mapping[str, Any] | None = None,
        get_remaining: bool = False,
    ) -> list[Json]:
        """Search for instances, of one study, of one series or of all."""
        self.index.refresh()
        return self.index.query(
            "instances",
            _within(
                search_filters,
                StudyInstanceUID=study_instance_uid,
                SeriesInstanceUID=series_instance_uid,
            ),
            limit=None if get_remaining else limit,
            offset=offset,
            fuzzymatching=bool(fuzzymatching),
        )

    # --- WADO-RS -------------------------------------------------------------------------------

    def iter_series(
        self, study_instance_uid: str, series_instance_uid: str, media_types: Any = None
    ) -> Iterator[Dataset]:
        """Read the instances of a series one after another, copies included."""
        for path in self.index.files(study_instance_uid, series_instance_uid):
            yield _read(path)

    def retrieve_series(
        self, study_instance_uid: str, series_instance_uid: str, media_types: Any = None
    ) -> list[Dataset]:
        """Read all instances of a series, copies included."""
        return list(self.iter_series(study_instance_uid, series_instance_uid))

    def iter_study(self, study_instance_uid: str, media_types: Any = None) -> Iterator[Dataset]:
        """Read the instances of a study one after another."""
        for series in self.search_for_series(study_instance_uid):
            yield from self.iter_series(study_instance_uid, series["0020000E"]["Value"][0])

    def retrieve_study(self, study_instance_uid: str, media_types: Any = None) -> list[Dataset]:
        """Read all instances of a study."""
        return list(self.iter_study(study_instance_uid))

    def retrieve_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: Any = None,
    ) -> Dataset:
        """Read one instance as it is stored."""
        return _read(self.path_of(study_instance_uid, series_instance_uid, sop_instance_uid))

    def path_of(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
    ) -> Path:
        """File of one instance.

        Raises
        ------
        NotFoundError
            The index has no such instance.
        """
        return self.index.files(study_instance_uid, series_instance_uid, sop_instance_uid)[0]

    def retrieve_instance_metadata(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
    ) -> Json:
        """Header of one instance in the DICOM JSON model, without bulk data."""
        path = self.path_of(study_instance_uid, series_instance_uid, sop_instance_uid)
        return _metadata(path)

    def retrieve_series_metadata(
        self, study_instance_uid: str, series_instance_uid: str
    ) -> list[Json]:
        """Headers of a series, each SOPInstanceUID once."""
        found: dict[str, Json] = {}
        for path in self.index.files(study_instance_uid, series_instance_uid):
            header = _metadata(path)
            found.setdefault(header["00080018"]["Value"][0], header)
        return list(found.values())

    def retrieve_study_metadata(self, study_instance_uid: str) -> list[Json]:
        """Headers of a study."""
        return [
            header
            for series in self.search_for_series(study_instance_uid)
            for header in self.retrieve_series_metadata(
                study_instance_uid, series["0020000E"]["Value"][0]
            )
        ]

    def iter_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: Any = None,
    ) -> Iterator[bytes]:
        """Yield stored frames (from 1) as they lie in the file, compressed or not."""
        dataset = self.retrieve_instance(study_instance_uid, series_instance_uid, sop_instance_uid)
        frames = stored_frames(dataset)
        for number in frame_numbers:
            if not 1 <= number <= len(frames):
                raise NotFoundError(
                    f"instance {sop_instance_uid} has no frame {number}, it has {len(frames)}."
                )
            yield frames[number - 1]

    def retrieve_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: Any = None,
    ) -> list[bytes]:
        """Return stored frames (from 1) as they lie in the file, compressed or not."""
        return list(
            self.iter_instance_frames(
                study_instance_uid, series_instance_uid, sop_instance_uid, frame_numbers
            )
        )

    # --- STOW-RS -------------------------------------------------------------------------------

    def store_instances(
        self,
        datasets: Sequence[Dataset],
        study_instance_uid: str | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Write instances below ``segunlearn-results/``; never over an existing instance.

        Raises
        ------
        ForbiddenError
            The folder cannot be written.
        ConflictError
            Another instance has the same SOPInstanceUID.
        """
        if self._results is None:
            raise ForbiddenError(
                "the studies folder is read-only, nothing can be stored in it. Give a folder for "
                "results, or the rights to write."
            )
        response = Dataset()
        response.ReferencedSOPSequence = []
        for dataset in datasets:
            uids = [
                validate_uid(dataset.get(k), what=k, strict=False)
                for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
            ]
            if study_instance_uid not in (None, uids[0]):
                raise ConflictError(f"an instance of study {uids[0]} was sent to another study.")
            if self.index.query("instances", {"SOPInstanceUID": uids[2]}):
                raise ConflictError(
                    f"instance {uids[2]} is stored already. A changed object needs a new "
                    "SOPInstanceUID."
                )
            path = self._results.joinpath(*uids[:2], f"{uids[2]}.dcm")
            _write(dataset, path)
            self.index.add(path)
            item = Dataset()
            item.ReferencedSOPClassUID = dataset.SOPClassUID
            item.ReferencedSOPInstanceUID = uids[2]
            response.ReferencedSOPSequence.append(item)
        return response

    def delete_instance(
        self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str
    ) -> None:
        """Delete an instance that was stored through this client; images are never deleted.

        Raises
        ------
        ForbiddenError
            The instance came with the studies.
        """
        paths = self.index.files(study_instance_uid, series_instance_uid, sop_instance_uid)
        for path in paths:
            if self._results is None or not path.is_relative_to(self._results):
                raise ForbiddenError(
                    f"instance {sop_instance_uid} came with the studies and is not deleted. "
                    "Delete the file yourself if that is meant."
                )
            path.unlink(missing_ok=True)
            self.index.remove(path)

    def delete_series(self, study_instance_uid: str, series_instance_uid: str) -> None:
        """Delete a series whose instances were all stored through this client."""
        for item in self.search_for_instances(study_instance_uid, series_instance_uid):
            uid = item["00080018"]["Value"][0]
            self.delete_instance(study_instance_uid, series_instance_uid, uid)

    def delete_study(self, study_instance_uid: str) -> None:
        """Refuse: a study holds images."""
        raise ForbiddenError("studies are not deleted. Delete the files yourself if that is meant.")


def stored_frames(dataset: Dataset) -> list[bytes]:
    """Frames of an instance as stored: native bytes, or one compressed stream a frame.

    Raises
    ------
    UnsupportedSeriesError
        There are no pixel data, or they end too early.
    """
    if "PixelData" not in dataset:
        raise UnsupportedSeriesError("the instance has no pixel data. Choose an image.")
    name = "the instance"
    try:
        name = f"instance {dataset.get('SOPInstanceUID', '')}"
        count = int(dataset.get("NumberOfFrames", 1) or 1)
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return list(generate_frames(dataset.PixelData, number_of_frames=count))
        bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
        bits *= int(dataset.BitsAllocated)
        pixels: bytes = dataset.PixelData
    except Exception as error:
        raise UnsupportedSeriesError(f"{name} has damaged pixel data ({error}).") from error
    if bits % 8:
        raise UnsupportedSeriesError(f"{name} has frames of {bits} bits; read the whole instance.")
    size = bits // 8
    if len(pixels) < size * count:
        raise UnsupportedSeriesError(f"{name} has too few pixel data. Send it again.")
    return [pixels[i * size : (i + 1) * size] for i in range(count)]


def _within(filters: Mapping[str, Any] | None, **uids: str | None) -> dict[str, Any]:
    return {**(filters or {}), **{k: v for k, v in uids.items() if v is not None}}


def _read(path: Path) -> Dataset:
    try:
        dataset = read_dicom(path, force=True)
    except OSError as error:
        raise UnavailableError(f"{path.name} cannot be read ({error.strerror}).") from error
    except InvalidInputError as error:
        raise UnsupportedSeriesError(
            f"{path.name} is damaged ({error}). Copy it from the archive again."
        ) from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0] is not False
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    return dataset


def _metadata(path: Path) -> Json:
    dataset = _read(path)
    for element in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if element in dataset:
            del dataset[element]
    return to_json(dataset)


def _write(dataset: Dataset, path: Path) -> None:
    """Write beside, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    try:
        with part.open("wb") as file:
            dataset.save_as(file, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UnavailableError(
            f"an instance cannot be stored ({error.strerror or error}). Check disk space and "
            "rights."
        ) from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidInputError(f"an instance cannot be encoded ({error}).") from error
    finally:
        part.unlink(missing_ok=True)
