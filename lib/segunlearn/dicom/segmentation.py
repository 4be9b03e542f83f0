"""Label maps as DICOM SEG and back; see ``segmentation_writing`` and ``segmentation_reading``."""

from segunlearn.dicom.segmentation_reading import (
    Segment,
    SegmentationRecord,
    describe_segmentation,
    is_segmentation,
    read_segmentation,
    read_segments,
    references_series,
)
from segunlearn.dicom.segmentation_writing import Algorithm, write_segmentation

__all__ = [
    "Algorithm",
    "Segment",
    "SegmentationRecord",
    "describe_segmentation",
    "is_segmentation",
    "read_segmentation",
    "read_segments",
    "references_series",
    "write_segmentation",
]
