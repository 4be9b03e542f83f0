"""Where studies lie: a DICOM archive, or a folder of NIfTI and NRRD files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monailabel.config import settings

from segunlearn.app.datastores.dicom import DicomDatastore, looks_like_dicom
from segunlearn.app.datastores.folder import FolderDatastore
from segunlearn.app.datastores.studies import StudiesDatastore
from segunlearn.app.options import AppOptions, Home
from segunlearn.cases import Case
from segunlearn.dicom.archive import Archive, open_archive
from segunlearn.errors import InvalidInputError
from segunlearn.volumes import SUFFIXES

__all__ = ["DicomDatastore", "FolderDatastore", "StudiesDatastore", "is_url", "open_datastore"]


def is_url(studies: str) -> bool:
    """Whether ``--studies`` names a DICOMweb server."""
    return studies.lower().startswith(("http://", "https://"))


def open_datastore(
    studies: str,
    options: AppOptions,
    home: Home,
    *,
    label_values: Callable[[], Mapping[str, int]],
    keep: Callable[[Sequence[Case]], list[Case]],
) -> StudiesDatastore:
    """Open what ``--studies`` names; nothing is listed or downloaded yet.

    Raises
    ------
    InvalidInputError
        It is neither a DICOMweb URL nor a folder.
    """
    if is_url(studies) or _kind(Path(studies), options) == "dicom":
        return DicomDatastore(
            _archive(studies, home),
            studies if is_url(studies) else Path(studies).name,
            home,
            modalities=options.modalities,
            filters=dict(options.filter),
            automatic=options.automatic_labels,
            refresh=options.refresh,
            label_values=label_values,
            keep=keep,
        )
    return FolderDatastore(
        Path(studies).resolve(),
        options.make_people,
        home,
        refresh=options.refresh,
        label_values=label_values,
        keep=keep,
    )


def _kind(folder: Path, options: AppOptions) -> str:
    if not folder.is_dir():
        raise InvalidInputError(
            f"--studies {folder}: neither a DICOMweb URL (http://…) nor a folder."
        )
    if options.kind != "auto":
        return options.kind
    for place in (folder, folder / "images", folder / "imagesTr"):
        if place.is_dir() and any(p.name.endswith(SUFFIXES) for p in place.iterdir()):
            return "files"
    return "dicom" if looks_like_dicom(folder) else "files"


def _archive(studies: str, home: Home) -> Archive:
    prefixes = {
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    return open_archive(
        studies.rstrip("/") if is_url(studies) else studies,
        index_dir=home.archive_index,
        results_dir=home.root / "results",
        user=settings.MONAI_LABEL_DICOMWEB_USERNAME or None,
        password=settings.MONAI_LABEL_DICOMWEB_PASSWORD or None,
        url_prefixes={k: v for k, v in prefixes.items() if v} or None,
    )
