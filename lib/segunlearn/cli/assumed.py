"""How it is told that a modality was assumed; see ``ModalityOption``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from segunlearn.cli.common import warn
from segunlearn.records.runs import Progress

if TYPE_CHECKING:  # it loads torch
    from segunlearn.transforms import Assumption


def assumed_sentence(assumed: Assumption) -> str:
    """Tell which modality was assumed for an image, why, and what to do when it is wrong."""
    other = "MR" if assumed.modality == "CT" else "CT"
    return (
        f"assumed {assumed.modality}: {100 * assumed.share:.1f} % of the voxels lie below -100, "
        f"and CT has 1 % or more. If it is {other}, say --modality {other}."
    )


def assumed_for_images(ct: int, mr: int) -> list[str]:
    """Tell which modalities were assumed for several images; nothing where none was."""
    if ct + mr == 0:
        return []
    if ct == 0:
        return [
            f"assumed MR for all {mr} images: in none of them 1 % of the voxels lie below -100. "
            "If they are CT, say --modality CT."
        ]
    others = f", and MR for {mr}" if mr else ""
    return [
        f"assumed CT for {ct} of {ct + mr} images, in which 1 % of the voxels or more lie below "
        f"-100{others}. If they are MR, as signed MR can be, say --modality MR."
    ]


def with_assumed(
    show: Callable[[Progress], None], warnings: list[str], *, quiet: bool
) -> Callable[[Progress], None]:
    """Tell which modalities were assumed as soon as a run says so: before its hours of work.

    Parameters
    ----------
    show
        Shows the progress.
    warnings
        Gets each sentence once.
    quiet
        Print none of them.
    """
    from segunlearn.training import ASSUMED

    def told(progress: Progress) -> None:
        ct, mr = (int(progress.metrics.get(ASSUMED[kind], 0)) for kind in ("CT", "MR"))
        new = [s for s in assumed_for_images(ct, mr) if s not in warnings]
        warnings.extend(new)
        warn([] if quiet else new)
        show(progress)

    return told
