"""Which of the segmentations of a series is its finished label."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from segunlearn.app.datastores.studies import FINAL, LabelRecord
from segunlearn.dicom.dates import instant
from segunlearn.dicom.segmentation import SegmentationRecord

logger = logging.getLogger(__name__)


def finished_label(
    image_id: str,
    segmentations: Sequence[SegmentationRecord],
    wanted: Collection[str],
    *,
    automatic: bool,
) -> LabelRecord | None:
    """Choose the newest segmentation that a person had a hand in.

    Parameters
    ----------
    image_id
        SeriesInstanceUID of the image.
    segmentations
        Those that reference it, the newest first.
    wanted
        Structures of the model, in small letters; empty: all.
    automatic
        One that a machine made alone counts where there is no other. Else it is passed over: what
        models say must not become training data unseen.

    Returns
    -------
    LabelRecord or None
        None: no segmentation counts.
    """
    spare: SegmentationRecord | None = None
    for seg in segmentations:
        fitting = {
            number
            for number, name in seg.segments.items()
            if not wanted or name.strip().casefold() in wanted
        }
        if wanted and not fitting:
            continue
        if not fitting or not fitting <= seg.automatic:
            return _record(image_id, seg, automatic=False)
        spare = spare or seg
    if spare is not None and not automatic:
        logger.info(
            "series %s: a segmentation that a machine made alone (SegmentAlgorithmType AUTOMATIC) "
            "is no finished label; --conf automatic_labels true takes such ones.",
            image_id,
        )
    return _record(image_id, spare, automatic=True) if spare is not None and automatic else None


def rank(label: LabelRecord) -> tuple[bool, str, str]:
    """Sort finished labels of one series: what a person made, then the newest, is last."""
    return not label.info["automatic"], instant(label.info["created"]), label.version


def _record(image_id: str, seg: SegmentationRecord, *, automatic: bool) -> LabelRecord:
    info: dict[str, Any] = {
        "name": image_id,
        "study_instance_uid": seg.study_instance_uid,
        "series_instance_uid": seg.series_instance_uid,
        "sop_instance_uid": seg.sop_instance_uid,
        "created": str(seg.created),
        "author": seg.author,
        "automatic": automatic,
        "segments": {str(k): v for k, v in seg.segments.items()},
    }
    return LabelRecord(image_id, FINAL, seg.sop_instance_uid, info)
