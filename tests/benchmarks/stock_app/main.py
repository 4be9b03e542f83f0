"""An app as MONAI Label's samples are written: its own classes, the same network, no code of ours.

``SEGUNLEARN_STOCK`` names a folder with the TorchScript network, ``model.ts``, and ``config.json``.
"""

import json
import os
from pathlib import Path

from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    NormalizeIntensityd,
    SqueezeDimd,
    ToNumpyd,
)
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferType
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.transform.writer import Writer

FOLDER = Path(os.environ["SEGUNLEARN_STOCK"])
CONFIG = json.loads((FOLDER / "config.json").read_text())


class Segmentation(BasicInferTask):
    """One network on the whole volume."""

    def __init__(self):
        super().__init__(
            path=str(FOLDER / "model.ts"), network=None, type=InferType.SEGMENTATION, dimension=3,
            labels={n: i + 1 for i, n in enumerate(CONFIG["labels"])}, description="stock",
        )  # fmt: skip

    def pre_transforms(self, data=None):
        """Read and normalise."""
        return [
            LoadImaged(keys="image"), EnsureTyped(keys="image"), EnsureChannelFirstd(keys="image"),
            NormalizeIntensityd(keys="image", nonzero=True),
        ]  # fmt: skip

    def inferer(self, data=None):
        """Blend windows of the network's size."""
        return SlidingWindowInferer(CONFIG["patch_size"], 4, CONFIG["overlap"], mode="gaussian")

    def post_transforms(self, data=None):
        """Choose the likeliest class."""
        return [
            Activationsd(keys="pred", softmax=True), AsDiscreted(keys="pred", argmax=True),
            SqueezeDimd(keys="pred", dim=0), ToNumpyd(keys="pred"),
        ]  # fmt: skip

    def writer(self, data, extension=None, dtype=None):
        """Write with nibabel, which is the quicker way."""
        return Writer(label="pred", nibabel=True)(data)


class StockApp(MONAILabelApp):
    """Inference alone."""

    def __init__(self, app_dir, studies, conf):
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="stock")

    def init_infers(self):
        """One model."""
        return {"segmentation": Segmentation()}

    def init_trainers(self):
        """None."""
        return {}

    def init_strategies(self):
        """None."""
        return {}
