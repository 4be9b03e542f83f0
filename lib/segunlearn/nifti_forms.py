"""Where a NIfTI file says that its voxels lie, read as ITK and 3D Slicer read it.

A file holds two places, qform and sform, each with a code that says whether it counts. Readers that
choose differently put one image into two places. ITK 5.4 chooses thus:

======================================================  ====================================
file                                                    place
======================================================  ====================================
no code                                                 first voxel at 0, axes L, P, S
sform of the scanner (code 1), perpendicular            sform
sform with another code, no qform, perpendicular        sform
sform with another code, and a qform                    qform, unless both agree
sform that is sheared                                   qform; without one ITK refuses it
======================================================  ====================================

Voxel sizes are those of ``pixdim``, also where the columns of the sform are longer or shorter.
"""

from __future__ import annotations

from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from segunlearn.errors import GeometryError

#: NIFTI_XFORM_SCANNER_ANAT.
_SCANNER: Final = 1

#: Largest element by which the axes of a sform may miss a right angle, as in ITK.
_PERPENDICULAR: Final = 1e-4

#: Forms that differ by less (direction cosine, mm) count as equal.
_EQUAL: Final = 1e-3


def itk_affine(name: str, header: Any) -> npt.NDArray[np.float64] | None:
    """Voxel index to RAS, in the units of the file, as ITK 5.4 places a NIfTI file.

    Parameters
    ----------
    name
        Of the file, for the message.
    header
        nibabel's header of NIfTI-1 or NIfTI-2.

    Returns
    -------
    numpy.ndarray or None
        4x4; None where ITK reads no such file: its only form is sheared.
        Source: ``SetImageIOOrientationFromNIfTI`` of ITK, and tests against SimpleITK.

    Raises
    ------
    GeometryError
        Both forms start at one voxel and are mirrored, or turned by right angles, against each
        other: which of them ITK takes is chance (signs of a singular value decomposition).
    """
    sizes = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    qform, sform = int(header["qform_code"]) > 0, int(header["sform_code"]) > 0
    if not qform and not sform:
        return np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])
    if not sform:
        return _affine(*_qform(header), sizes)
    axes, origin = _sform(header)
    perpendicular = bool((np.abs(axes @ axes.T - np.eye(3)) <= _PERPENDICULAR).all())
    if perpendicular and (not qform or int(header["sform_code"]) == _SCANNER):
        return _affine(axes, origin, sizes)
    if not qform:
        return None
    q_axes, q_origin = _qform(header)
    turn = np.abs(q_axes.T @ axes)
    if (
        perpendicular
        and np.allclose(turn, np.rint(turn), rtol=0.0, atol=_EQUAL)
        and np.allclose(q_origin, origin, rtol=0.0, atol=_EQUAL)
        and not np.allclose(q_axes, axes, rtol=0.0, atol=_EQUAL)
    ):
        raise GeometryError(
            f"{name}: its two orientations, qform and sform, are mirrored or turned against each "
            "other, so left and right are not known. Write it again with the one that is right."
        )
    return _affine(q_axes, q_origin, sizes)


def _affine(
    axes: npt.NDArray[np.float64], origin: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = axes * sizes
    affine[:3, 3] = origin
    return affine


def _sform(header: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Directions of the axes as columns of length 1, and the first voxel."""
    matrix = np.array([header[f"srow_{c}"] for c in "xyz"], dtype=np.float64)
    lengths = np.linalg.norm(matrix[:, :3], axis=0)
    return matrix[:, :3] / np.where(lengths > 0, lengths, 1.0), matrix[:, 3]


def _qform(header: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Directions of the axes as columns of length 1, and the first voxel."""
    b, c, d = (float(header[f"quatern_{k}"]) for k in "bcd")
    square = 1.0 - (b * b + c * c + d * d)
    a = np.sqrt(square) if square >= 1e-7 else 0.0  # as nifticlib, which ITK reads with
    axes = np.asarray(nib.quaternions.quat2mat([a, b, c, d]))  # type: ignore[no-untyped-call]
    if float(header["pixdim"][0]) < 0:
        axes = axes * [1.0, 1.0, -1.0]
    return axes, np.array([float(header[f"qoffset_{c}"]) for c in "xyz"])
