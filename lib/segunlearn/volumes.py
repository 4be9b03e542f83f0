"""A volume: voxels with their place in the patient, and its files (NIfTI, NRRD)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from segunlearn.errors import GeometryError, InvalidInputError
from segunlearn.nifti_forms import itk_affine
from segunlearn.replacing import replacing
from segunlearn.volume_bounds import check_claim, check_nrrd

#: File endings that are read and written, longest first.
SUFFIXES = (".nii.gz", ".nii", ".nrrd")

#: Millimetres of the spatial unit in NIfTI's ``xyzt_units``: metres, micrometres. Others count as
#: millimetres, as in ITK.
_MM = {1: 1e3, 3: 1e-3}

#: A stack that leans less than this (tangent), or is shifted less than this in all (mm), counts as
#: upright for readers that know no shear.
LEAN, LEAN_MM = 0.01, 0.05

#: Largest difference between two affines (mm per voxel, mm) that still counts as the same grid.
GRID_TOLERANCE_MM = 1e-3


@dataclass(frozen=True)
class Volume:
    """Voxels on a grid.

    Parameters
    ----------
    array
        ``(X, Y, Z)``, or ``(X, Y, Z, C)`` for several channels. Images hold intensities (HU for
        CT), label maps hold integers with 0 as background.
    affine
        4x4, float64: voxel index to millimetres in **RAS** (nibabel's convention; DICOM is LPS).
    modality
        DICOM Modality (0008,0060), ``"OT"`` when it is not known.
    """

    array: npt.NDArray[np.generic]
    affine: npt.NDArray[np.float64]
    modality: str = "OT"

    def __post_init__(self) -> None:
        if self.array.ndim not in (3, 4):
            raise InvalidInputError(
                f"a volume needs 3 axes (X, Y, Z) or 4 (X, Y, Z, C), this array has "
                f"{self.array.ndim}; load 2D images as (X, Y, 1)."
            )
        if self.affine.shape != (4, 4):
            raise InvalidInputError(f"an affine is 4x4, this one is {self.affine.shape}.")
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9 or not np.isfinite(self.affine).all():
            raise GeometryError(
                "the affine is singular or not finite: the voxels have no place in the patient. "
                "Check spacing and orientation of the file."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along X, Y, Z."""
        x, y, z = self.array.shape[:3]
        return (x, y, z)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each array axis, in mm."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return (float(x), float(y), float(z))

    def same_grid(self, other: Volume) -> bool:
        """Whether both volumes have the same shape and affine (see ``GRID_TOLERANCE_MM``)."""
        return self.shape == other.shape and bool(
            np.allclose(self.affine, other.affine, rtol=0.0, atol=GRID_TOLERANCE_MM)
        )

    def upright(self) -> npt.NDArray[np.float64]:
        """Affine of the same stack with its slices straight above each other.

        As ITK and 3D Slicer read a series whose positions are rounded, or whose stack leans by a
        hundredth of a degree: the first slice stays where it is. A stack that leans more than
        ``LEAN`` keeps its own affine.
        """
        return _upright(self.affine, self.shape[2])

    def digest(self) -> str:
        """SHA-256 over shape, affine (rounded to 1e-4) and voxels, hexadecimal.

        Integer voxels are digested as int32 and others as float32, so that a label map has the
        same digest whether it came from NIfTI or from DICOM SEG.
        """
        dtype = "<i4" if np.issubdtype(self.array.dtype, np.integer) else "<f4"
        affine = np.round(self.affine, 4) + 0.0  # -0.0 and 0.0 are one value
        sha = hashlib.sha256(repr(self.array.shape).encode())
        sha.update(affine.astype("<f8").tobytes())
        sha.update(np.ascontiguousarray(self.array, dtype=dtype).tobytes())
        return sha.hexdigest()


def _upright(affine: npt.NDArray[np.float64], slices: int) -> npt.NDArray[np.float64]:
    x, y, z = affine[:3, :3].T
    normal = np.cross(x, y)
    normal /= np.linalg.norm(normal)
    along = float(z @ normal)
    aside = float(np.linalg.norm(z - along * normal))
    if aside > LEAN * abs(along) and aside * slices > LEAN_MM:
        return affine
    straight = affine.copy()
    straight[:3, 2] = along * normal
    return straight


def strip_suffix(path: Path) -> str:
    """File name without its volume ending, e.g. ``hippocampus_001`` of ``….nii.gz``."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path, *, label: bool = False, modality: str = "OT") -> Volume:
    """Read a NIfTI or NRRD file.

    Parameters
    ----------
    path
        A file ending in ``.nii``, ``.nii.gz`` or ``.nrrd``.
    label
        Read integers: fractional voxel values are then an error.
    modality
        DICOM Modality of the image; files do not carry it.

    Returns
    -------
    Volume
        float32 voxels (after the header's slope and intercept), int16 for labels.

    Raises
    ------
    InvalidInputError
        The file is missing, damaged, of another kind, not finite, or a label with fractions.
    GeometryError
        See ``segunlearn.nifti_forms.itk_affine``.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"{path.name}: no such file. Check the path.")
    try:
        if path.name.endswith((".nii", ".nii.gz")):
            image = nib.load(path)
            _check_nifti(path, image)
            array = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
            affine = _nifti_affine(path, image)
        elif path.name.endswith(".nrrd"):
            array, affine = _read_nrrd(path)
        else:
            raise InvalidInputError(
                f"{path.name}: not a volume this program reads. Use one of {', '.join(SUFFIXES)}."
            )
    except InvalidInputError:
        raise
    except Exception as error:  # nibabel, nrrd and gzip raise a dozen kinds
        raise InvalidInputError(f"{path.name}: the file cannot be read ({error}).") from error
    if array.dtype.fields is not None or np.iscomplexobj(array):
        raise InvalidInputError(f"{path.name}: voxels are {array.dtype}; use plain numbers.")
    if not np.isfinite(array).all():
        raise InvalidInputError(f"{path.name}: holds NaN or infinite voxels. Repair the file.")
    if array.ndim == 2:
        array = array[:, :, np.newaxis]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if label:
        rounded = np.rint(array)
        if not np.array_equal(rounded, array):
            raise InvalidInputError(
                f"{path.name}: a label map must hold whole numbers, this one has fractions. "
                "Resample labels with nearest-neighbour interpolation."
            )
        if array.size and not -32768 <= rounded.min() <= rounded.max() <= 32767:
            raise InvalidInputError(
                f"{path.name}: a label map holds values from -32768 to 32767, this one goes from "
                f"{rounded.min():g} to {rounded.max():g}. Number the structures from 1 on."
            )
        array = rounded.astype(np.int16)
    else:
        array = array.astype(np.float32)
    return Volume(array=array, affine=affine, modality=modality)


def _check_nifti(path: Path, image: Any) -> None:
    itemsize = image.header.get_data_dtype().itemsize
    packed = path.name.endswith(".gz")
    check_claim(path.name, image.shape, itemsize, path.stat().st_size, packed)


def _nifti_affine(path: Path, image: Any) -> npt.NDArray[np.float64]:
    """Voxel index to mm in RAS: the file's sform, unless ITK puts the image elsewhere."""
    mm = np.diag([_MM.get(int(image.header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    affine = np.asarray(mm @ image.affine, dtype=np.float64)
    itk = itk_affine(path.name, image.header)
    if itk is None:
        return affine
    itk = mm @ itk
    slices = image.shape[2] if len(image.shape) > 2 else 1
    with np.errstate(all="ignore"):  # a sform may be empty, beside a qform that counts
        near = (affine, _upright(affine, slices))
    agree = (np.allclose(own, itk, rtol=0.0, atol=GRID_TOLERANCE_MM) for own in near)
    return affine if any(agree) else itk


def _read_nrrd(path: Path) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.float64]]:
    import nrrd

    with path.open("rb") as file:
        header = nrrd.read_header(file)
        check_nrrd(path, header, file)
        array = nrrd.read_data(header, file)
    units = {str(u).strip('" ') for u in header.get("space units", ())} - {"", "mm"}
    if units:
        raise InvalidInputError(
            f"{path.name}: its grid is in {', '.join(sorted(units))}. Write it in mm."
        )
    directions = header.get("space directions")
    if directions is None:
        directions = np.diag(np.asarray(header.get("spacings", [1.0] * array.ndim), dtype=float))
    directions = np.asarray(directions, dtype=np.float64)
    spatial = ~np.isnan(directions).any(axis=1)
    if spatial.sum() != 3:
        raise InvalidInputError(f"{path.name}: NRRD needs three spatial axes, has {spatial.sum()}.")
    if array.ndim == 4 and not spatial[0]:
        array = np.moveaxis(array, 0, -1)
    affine = np.eye(4)
    affine[:3, :3] = directions[spatial].T
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64)
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space in ("left-posterior-superior", "lps"):
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    elif space not in ("right-anterior-superior", "ras"):
        raise InvalidInputError(f"{path.name}: NRRD space {space!r} is not LPS or RAS.")
    return array, affine


def write_volume(volume: Volume, path: Path) -> None:
    """Write a NIfTI or NRRD file, chosen by the ending; written beside, flushed, renamed.

    Raises
    ------
    InvalidInputError
        The ending is not one of ``SUFFIXES``.
    """
    path = Path(path)
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), None)
    if suffix is None:
        raise InvalidInputError(f"{path.name}: the ending must be one of {', '.join(SUFFIXES)}.")
    with replacing(path, suffix) as part:
        _write(volume, part)


def _write(volume: Volume, path: Path) -> None:
    if path.suffix == ".nrrd":
        import nrrd

        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
        header = {
            "space": "left-posterior-superior",
            "space directions": lps[:3, :3].T,
            "space origin": lps[:3, 3],
            "kinds": ["domain"] * 3,
            "encoding": "gzip",
        }
        nrrd.write(str(path), volume.array, header)
    else:
        image = nib.Nifti1Image(volume.array, volume.affine)  # type: ignore[no-untyped-call]
        image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
        upright = volume.upright()
        if np.abs(upright - volume.affine).max() > 1e-6:
            # ITK reads no sheared sform, however slightly; then it takes the qform
            image.set_qform(upright, code=1)  # type: ignore[no-untyped-call]
        nib.save(image, path)
