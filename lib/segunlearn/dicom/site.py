"""Which scanner of which institution made an image: the key of a site's adapter."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from pydicom.dataset import Dataset

from segunlearn.dicom.frames import deep_value

#: Values that de-identification and empty forms leave behind; they name no site.
_PLACEHOLDERS = frozenset(
    {"", "anonymous", "anonymized", "anonymised", "anon", "deidentified", "de-identified"}
    | {"none", "unknown", "removed", "n/a", "na", "null", "xxx", "no institution name"}
)


@dataclass(frozen=True)
class SiteKey:
    """A scanner at an institution, as far as headers tell.

    Parameters
    ----------
    institution
        InstitutionName (0008,0080), normalised: NFKC, case folded, single spaces.
    manufacturer, model
        Manufacturer (0008,0070), ManufacturerModelName (0008,1090).
    station
        DeviceSerialNumber (0018,1000), or StationName (0008,1010).

    Notes
    -----
    Manufacturer and model alone name a kind of scanner, no site: images of many hospitals share
    them. So a header without institution and station gives an empty key.
    """

    institution: str = ""
    manufacturer: str = ""
    model: str = ""
    station: str = ""

    @classmethod
    def of(cls, dataset: Dataset) -> SiteKey:
        """Read the key from any instance of a series."""
        key = cls(
            institution=_value(dataset, "InstitutionName"),
            manufacturer=_value(dataset, "Manufacturer"),
            model=_value(dataset, "ManufacturerModelName"),
            station=_value(dataset, "DeviceSerialNumber") or _value(dataset, "StationName"),
        )
        return key if key.institution or key.station else cls()

    def __bool__(self) -> bool:
        return bool(self.institution or self.station)

    def __str__(self) -> str:
        """Parts joined by ``|``; empty for an unknown site."""
        if not self:
            return ""
        parts = (self.institution, self.manufacturer, self.model, self.station)
        return "|".join(part.replace("|", "/") for part in parts)


def normalise(text: str) -> str:
    r"""Fold what differs between headers of one site: Unicode form, case and spaces.

    Examples
    --------
    >>> normalise("  St.\u00a0Mary's   HOSPITAL "), normalise("ANONYMIZED")
    ("st. mary's hospital", '')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = re.sub(r"\s+", " ", folded.replace("\0", " ")).strip()
    return "" if folded.strip(" .-_*") in _PLACEHOLDERS else folded


def _value(dataset: Dataset, keyword: str) -> str:
    try:
        value = deep_value(dataset, 0, keyword)
    except Exception:  # noqa: BLE001 - a damaged header has no site
        return ""
    return normalise(str(value)) if value is not None else ""
