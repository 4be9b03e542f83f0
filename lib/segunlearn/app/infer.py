"""The inference task: an image in, the active version's mask out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from monailabel.config import settings
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from segunlearn.app.adapter_store import AdapterInfo
from segunlearn.app.models import ActiveModel
from segunlearn.app.requests import asked_site
from segunlearn.app.site_choice import AUTO, BASE, Aliases, SiteChoice, choose_site
from segunlearn.dicom.reading import read_dicom
from segunlearn.dicom.site import SiteKey
from segunlearn.errors import ForbiddenError, InvalidInputError, UnsupportedSeriesError
from segunlearn.records.versions import VersionInfo
from segunlearn.volumes import Volume, read_volume, write_volume

if TYPE_CHECKING:
    from segunlearn.inference import Segmenter

#: Endings of a mask that a client may ask for.
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")

_DTYPES: dict[str, type[np.generic]] = {
    "uint8": np.uint8, "int8": np.int8, "uint16": np.uint16, "int16": np.int16,
    "uint32": np.uint32, "int32": np.int32, "float32": np.float32, "float64": np.float64,
}  # fmt: skip


class SegmentationInferTask(InferTask):
    """Segment with the active version of a model.

    Parameters
    ----------
    model
        What is served.
    scratch
        Gives the folder of result files; the caller of the task deletes the file.
    label_values
        Value of each structure.
    before
        Opens the version that served before a forget request was fulfilled, given the request's
        id and who asks.
    """

    def __init__(
        self,
        model: ActiveModel,
        scratch: Callable[[], Path],
        label_values: Callable[[], Mapping[str, int]],
        before: Callable[[str, str], tuple[VersionInfo, Segmenter]],
    ) -> None:
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={},
            dimension=3,
            description=f"UNet {model.name!r}; segments the whole volume",
        )
        self._model, self._scratch, self._label_values = model, scratch, label_values
        self._before = before

    def is_valid(self) -> bool:
        """Be listed even before the first training; inference then says what to do."""
        return True

    def info(self) -> dict[str, Any]:
        """Return what clients show: labels with their values, and the version served."""
        active = self._model.registry.active()
        return {
            "type": self.type,
            "labels": dict(self._label_values()),
            "dimension": active.config["spatial_dims"] if active else self.dimension,
            "description": self.description,
            "config": self.config(),
            **self._model.summary(),
        }

    def config(self) -> dict[str, Any]:
        """Options that clients offer: the site, of which they take the first unless told."""
        served = self._model.adapters.in_service(self._model.registry.active())
        return {"site": [AUTO, BASE, *served]}

    def get_path(self, validate: bool = True) -> str | None:
        """Path of the active weights, None before the first training."""
        active = self._model.registry.active()
        return str(active.weights) if active else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]``, a path or a ``Volume`` of our own side.

        Parameters
        ----------
        request
            ``image``; ``header``: what its DICOM header says of the scanner; ``site``: see
            ``site_choice``; ``before``: a forget request, to see the mask that its studies had
            before it was fulfilled; ``cancel``: tells whether to stop, ``actor`` and ``roles``: who
            asks, all set by our side; ``result_extension`` (``.nii.gz``), ``result_dtype``,
            ``result_compress``.

        Returns
        -------
        str, dict
            The mask's file, and the parameters of the reply: ``label_names``, ``model``,
            ``version``, ``sha256``, ``adapter`` with the other words of ``SiteChoice.params``,
            ``latencies`` in seconds.

        Raises
        ------
        ConflictError
            Nothing was trained yet, the named site's adapter is of other weights, or what served
            before is not there (any more).
        ForbiddenError
            Only administrators see what served before.
        NotFoundError
            The named site has no adapter; or there is no such forget request.
        InvalidInputError
            An option is wrong, or the image cannot be read.
        """
        started = time.perf_counter()
        extension, wanted, compress = result_options(request)
        asked = asked_site(request)
        volume, header = request["image"], request.get("header")
        if header is None and isinstance(volume, Path) and volume.is_dir():
            header = header_of(volume)
        chosen: list[SiteChoice] = []

        def choose(info: VersionInfo) -> AdapterInfo | None:
            adapters = self._model.adapters
            aliases = Aliases.read(adapters.root.parent)
            chosen.append(choose_site(adapters, aliases, header, asked, info))
            return chosen[-1].adapter

        older = self._older(request)  # before a large image is read
        info = self._model.version() if older is None else older[0]
        voxel_type(wanted, len(info.config["labels"]))
        if older is None:
            choose(info)
        else:
            chosen.append(SiteChoice(None, "", "override", "what served before segments alone."))
        if not isinstance(volume, Volume):
            volume = read_image(Path(volume), str(request.get("modality") or "OT"))
        read = time.perf_counter()
        info, mask, waited = self._model.predict(volume, request.get("cancel"), choose, using=older)
        predicted = time.perf_counter()
        values = {n: i + 1 for i, n in enumerate(info.config["labels"])}
        dtype = voxel_type(wanted, len(values))  # of the version that segmented
        descriptor, name = tempfile.mkstemp(suffix=extension, prefix="mask-", dir=self._scratch())
        os.close(descriptor)
        write_mask(Volume(mask.array.astype(dtype), mask.affine), Path(name), compress)
        seconds = {
            "read": read - started,
            "wait": waited,
            **mask.seconds,
            "write": time.perf_counter() - predicted,
            "total": time.perf_counter() - started,
        }
        return name, {
            "label_names": values,
            "model": self._model.name,
            "version": info.version,
            "sha256": info.sha256,
            **chosen[-1].params(),
            "latencies": {k: round(v, 4) for k, v in seconds.items()},
        }

    def _older(self, request: Mapping[str, Any]) -> tuple[VersionInfo, Segmenter] | None:
        asked = request.get("before")
        if not asked:
            return None
        if asked_site(request) not in (AUTO, BASE):
            raise InvalidInputError("before and site: what served before segments alone.")
        if settings.MONAI_LABEL_AUTH_ROLE_ADMIN not in (request.get("roles") or ()):
            raise ForbiddenError(
                "what served before a forgetting is kept out of use, and only administrators may "
                "look at its masks; ask one."
            )
        return self._before(str(asked)[:100], str(request.get("actor") or ""))


def result_options(request: Mapping[str, Any]) -> tuple[str, type[np.generic] | None, bool]:
    """Read ending, voxel type (None: whichever fits) and compression that a client asks for.

    Raises
    ------
    InvalidInputError
        One of them is not known.
    """
    extension = request.get("result_extension") or ".nii.gz"
    dtype = request.get("result_dtype") or None
    if extension not in EXTENSIONS:
        raise InvalidInputError(
            f"result_extension {str(extension)!r:.40}: use one of {', '.join(EXTENSIONS)}."
        )
    if dtype is not None and (not isinstance(dtype, str) or dtype not in _DTYPES):
        raise InvalidInputError(
            f"result_dtype {str(dtype)!r:.40}: use one of {', '.join(_DTYPES)}."
        )
    compress = request.get("result_compress", True)
    wanted = _DTYPES[dtype] if dtype else None
    return extension, wanted, str(compress).lower() not in ("false", "0", "no")


def voxel_type(wanted: type[np.generic] | None, structures: int) -> type[np.generic]:
    """Choose the voxel type of a mask with values from 0 to ``structures``.

    Raises
    ------
    InvalidInputError
        The wanted one does not hold so many values.
    """
    if wanted is None:
        return np.uint8 if structures <= np.iinfo(np.uint8).max else np.uint16
    if issubclass(wanted, np.integer) and structures > np.iinfo(wanted).max:
        raise InvalidInputError(
            f"result_dtype {wanted.__name__} holds {np.iinfo(wanted).max} structures at most, and "
            f"the model has {structures}. Use uint16, or leave it out."
        )
    return wanted


def header_of(folder: Path) -> SiteKey | None:
    """Read what the first DICOM file of an upload says of its scanner, None without any."""
    for file in _files_of(folder):
        try:
            return SiteKey.read(read_dicom(file, header_only=True))
        except (InvalidInputError, OSError):
            continue
    return None


def read_image(path: Path, modality: str = "OT") -> Volume:
    """Read a volume file, or a folder with the files of one DICOM series.

    Raises
    ------
    InvalidInputError, UnsupportedSeriesError
        It is no volume.
    """
    if not path.is_dir():
        return read_volume(path, modality=modality)
    from segunlearn.dicom.series import volume_from_datasets

    datasets = [read_dicom(file) for file in _files_of(path)]
    if not datasets:
        raise UnsupportedSeriesError("the upload holds no DICOM files.")
    return volume_from_datasets(datasets)


def _files_of(upload: Path) -> list[Path]:
    return sorted(p for p in upload.iterdir() if p.is_file() and p.name != "meta.info")


def write_mask(mask: Volume, path: Path, compress: bool = True) -> None:
    """Write a mask quickly; uncompressed NRRD for viewers that cannot inflate it."""
    if path.suffix != ".nrrd":
        write_volume(mask, path)
        return
    import nrrd

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ mask.affine
    directions: npt.NDArray[np.float64] = lps[:3, :3].T
    header = {
        "space": "left-posterior-superior",
        "space directions": directions,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }
    nrrd.write(str(path), mask.array, header, compression_level=1)
