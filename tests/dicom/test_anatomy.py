from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from segunlearn.dicom.anatomy import PRIVATE_SCHEME, coded_label
from segunlearn.errors import LabelError


@pytest.mark.parametrize("name", ["Liver", "liver", " LIVER "])
def test_case_and_space_do_not_matter(name: str) -> None:
    label = coded_label(name)
    assert (label.kind.value, label.kind.scheme_designator) == ("10200004", "SCT")
    assert label.category == codes.SCT.AnatomicalStructure
    assert label.name == name.strip()


@pytest.mark.parametrize("name", ["right lung", "lung_right", "Lung-Right"])
def test_sides_become_modifiers(name: str) -> None:
    label = coded_label(name)
    assert label.kind == codes.SCT.Lung
    assert label.laterality == codes.SCT.Right


def test_left_ventricle_is_a_structure_of_its_own() -> None:
    label = coded_label("left ventricle")
    assert label.kind == codes.SCT.LeftVentricle
    assert label.laterality is None


def test_tumours_are_abnormal() -> None:
    assert coded_label("tumour").category == codes.SCT.MorphologicallyAbnormalStructure


def test_unknown_names_get_a_stable_private_code() -> None:
    one, two = coded_label("Segment of mine"), coded_label("segment_of_mine")
    assert one.kind.value == two.kind.value
    assert one.kind.scheme_designator == PRIVATE_SCHEME
    assert len(one.kind.value) <= 16
    assert coded_label("another").kind.value != one.kind.value


@pytest.mark.parametrize("name", ["", "  ", "a\\b", "a\nb", "x" * 65])
def test_unusable_names(name: str) -> None:
    with pytest.raises(LabelError, match="cannot name a segment"):
        coded_label(name)
