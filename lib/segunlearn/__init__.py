"""SegUnlearn: segmentation for hospitals that can take a study back out of the model."""

__version__ = "0.1.0.dev0"
