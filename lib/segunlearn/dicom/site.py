"""Which scanner of which institution made an image: the key of a site's adapter."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import asdict, dataclass
from typing import Literal

from pydicom.dataset import Dataset

from segunlearn.dicom.frames import deep_value

#: How much of a header agrees: one scanner, a model of an institution, or a model anywhere.
Rule = Literal["scanner", "institution", "model"]

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
        key = cls.read(dataset)
        return key if key else cls()

    @classmethod
    def read(cls, dataset: Dataset) -> SiteKey:
        """Read what a header says, also where it names a kind of scanner and no site."""
        return cls(
            institution=_value(dataset, "InstitutionName"),
            manufacturer=_value(dataset, "Manufacturer"),
            model=_value(dataset, "ManufacturerModelName"),
            station=_value(dataset, "DeviceSerialNumber") or _value(dataset, "StationName"),
        )

    @classmethod
    def parse(cls, text: str) -> SiteKey:
        """Read what ``str`` wrote; another text is a site's name and stands as institution.

        Examples
        --------
        >>> SiteKey.parse("a|siemens|avanto|42").station, SiteKey.parse("North  Wing")
        ('42', SiteKey(institution='north wing', manufacturer='', model='', station=''))
        """
        parts = text.split("|")
        return cls(*map(normalise, parts)) if len(parts) == 4 else cls(normalise(text))

    def rungs(self) -> list[tuple[Rule, SiteKey]]:
        """Keys from the narrowest to the widest that this header can be known by.

        The scanner needs institution and station; a wider key leaves the station out; the widest
        is a model of a manufacturer, wherever it stands. Empty when the header tells too little.
        """
        found: list[tuple[Rule, SiteKey]] = []
        if self.institution and self.station:
            key = SiteKey(self.institution, model=self.model, station=self.station)
            found.append(("scanner", key))
        if self.institution:
            found.append(("institution", SiteKey(self.institution, model=self.model)))
        if self.manufacturer and self.model:
            found.append(("model", SiteKey(manufacturer=self.manufacturer, model=self.model)))
        return found

    def is_of(self, wider: SiteKey) -> bool:
        """Whether every part that a wider key names is the same here."""
        return all(v in ("", getattr(self, k)) for k, v in asdict(wider).items())

    def __bool__(self) -> bool:
        return bool(self.institution or self.station)

    def __str__(self) -> str:
        """Parts joined by ``|``; empty when nothing is known."""
        parts = (self.institution, self.manufacturer, self.model, self.station)
        return "|".join(part.replace("|", "/") for part in parts) if any(parts) else ""


def normalise(text: str) -> str:
    r"""Fold what differs between headers of one site: Unicode form, case and spaces.

    Examples
    --------
    >>> normalise("  St.\u00a0Mary's   HOSPITAL "), normalise("ANONYMIZED")
    ("st. mary's hospital", '')
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("|", "/")
    folded = re.sub(r"\s+", " ", folded.replace("\0", " ")).strip()
    return "" if folded.strip(" .-_*") in _PLACEHOLDERS else folded


def _value(dataset: Dataset, keyword: str) -> str:
    try:
        value = deep_value(dataset, 0, keyword)
    except Exception:  # noqa: BLE001 - a damaged header has no site
        return ""
    return normalise(str(value)) if value is not None else ""
