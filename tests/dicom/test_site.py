from __future__ import annotations

import pytest
from pydicom.dataset import Dataset

from segunlearn.dicom.site import SiteKey


def header(**values: str) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def test_spelling_does_not_make_another_site() -> None:
    one = SiteKey.of(
        header(InstitutionName="St.  Mary’s", Manufacturer="SIEMENS", DeviceSerialNumber="42")
    )
    other = SiteKey.of(
        header(InstitutionName=" st. mary’s ", Manufacturer="Siemens", DeviceSerialNumber="４２")
    )
    assert one == other
    assert str(one) == "st. mary’s|siemens||42"


def test_scanners_of_one_institution_differ() -> None:
    keys = {SiteKey.of(header(InstitutionName="a", StationName=s)) for s in ("CT1", "CT2", "ct1")}
    assert len(keys) == 2


@pytest.mark.parametrize("institution", ["", "ANONYMIZED", "***", "Removed", "n/a", "-"])
def test_a_de_identified_header_has_no_site(institution: str) -> None:
    key = SiteKey.of(header(InstitutionName=institution, Manufacturer="GE"))
    assert key == SiteKey()
    assert not key
    assert str(key) == ""


def test_a_bar_in_a_name_cannot_pretend_to_be_two_parts() -> None:
    assert str(SiteKey(institution="a|b", station="c")) == "a/b|||c"


@pytest.mark.parametrize("bar", ["|", "\uff5c"])
def test_a_key_is_read_as_it_was_written(bar: str) -> None:
    """A converted series keeps its key as text; it must not become another site by that."""
    key = SiteKey.read(header(InstitutionName=f"North{bar}South", StationName="1"))
    assert SiteKey.parse(str(key)) == key == SiteKey("north/south", station="1")


def test_values_from_functional_groups() -> None:
    ds, item, inner = header(InstitutionName="x"), Dataset(), Dataset()
    inner.StationName = "enhanced"
    item.ReferencedImageSequence = [inner]
    ds.PerFrameFunctionalGroupsSequence = [item]
    assert SiteKey.of(ds).station == "enhanced"


def test_rungs_go_from_the_scanner_to_the_kind_of_scanner() -> None:
    full = SiteKey("a", "siemens", "avanto", "42")
    assert [(rule, str(key)) for rule, key in full.rungs()] == [
        ("scanner", "a||avanto|42"), ("institution", "a||avanto|"), ("model", "|siemens|avanto|"),
    ]  # fmt: skip
    assert SiteKey(station="42", model="avanto").rungs() == []  # a station's name is no place
    ds = header(Manufacturer="Siemens", ManufacturerModelName="Avanto")
    assert SiteKey.of(ds) == SiteKey()
    assert [rule for rule, _ in SiteKey.read(ds).rungs()] == ["model"]
    assert SiteKey.parse(str(full)) == full
