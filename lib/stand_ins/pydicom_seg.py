"""Stand-in for the package ``pydicom-seg``, which does not work with pydicom 3.

MONAI Label 0.8.5 imports the name in ``monailabel/datastore/utils/convert.py`` and uses it only
to write and read DICOM SEG. SegUnlearn does both with highdicom
(``segunlearn.dicom.segmentation``), so nothing here is ever called; every use is an error.
"""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"pydicom_seg.{name} is not available: SegUnlearn replaces pydicom-seg by highdicom. "
        "Use segunlearn.dicom.segmentation to read or write DICOM SEG."
    )
