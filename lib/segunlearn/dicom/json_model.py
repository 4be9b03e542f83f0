"""Datasets in the DICOM JSON model (PS3.18 annex F), with the values that the standard forbids.

pydicom's own ``to_json_dict`` either ends at the first value that it cannot write, or leaves out
all that the standard does not allow: numbers of more than 16 characters, as many programs write
positions, long accession numbers, UIDs with leading zeros. For that it makes all reading of the
process strict meanwhile, and two threads that do so at once can leave it strict for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

Json = dict[str, Any]


def to_json(
    dataset: Dataset,
    *,
    threshold: int = 1024,
    link: Callable[[DataElement], str] | None = None,
) -> Json:
    """Write a dataset as DICOM JSON; what cannot be written at all is left out.

    Parameters
    ----------
    dataset
        What is written; pixel data are not treated apart.
    threshold
        Characters of base64 above which a value is replaced by an address.
    link
        Gives the address; None: all values are written whole.
    """
    model: Json = {}
    for tag in dataset.keys():  # noqa: SIM118 - the elements are read one by one
        key = f"{tag:08X}"
        try:
            element = dataset[tag]
            if element.VR == "SQ":
                items = [to_json(item, threshold=threshold, link=link) for item in element.value]
                model[key] = {"vr": "SQ", "Value": items}
            else:
                model[key] = element.to_json_dict(link, threshold)
        except Exception as error:  # noqa: BLE001 - one bad value must not hide the others
            logger.info("attribute %s cannot be written as JSON: %s", key, type(error).__name__)
    return model
