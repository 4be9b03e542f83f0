"""Cases: persons are never guessed and never shared between sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segunlearn.cases import Case, People, cases_from_folder, persons_of, split_by_person
from segunlearn.errors import InvalidInputError
from segunlearn.volumes import Volume, write_volume


def case(series: str, person: str) -> Case:
    return Case(series, series, person, Path(f"{series}.nii.gz"))


@given(
    st.lists(st.integers(0, 30), min_size=3, max_size=60),
    st.sampled_from([(0.8, 0.2), (0.6, 0.2, 0.2), (0.5, 0.0, 0.5), (1.0,)]),
    st.integers(0, 5),
)
def test_sets_share_no_person_and_lose_no_case(
    persons: list[int], fractions: tuple[float, ...], seed: int
) -> None:
    cases = [case(f"s{i}", f"p{p}") for i, p in enumerate(persons)]
    if len(set(persons)) < sum(f > 0 for f in fractions):
        with pytest.raises(InvalidInputError, match="persons cannot be divided"):
            split_by_person(cases, fractions, seed)
        return

    sets = split_by_person(cases, fractions, seed)

    assert sorted(c.series for s in sets for c in s) == sorted(c.series for c in cases)
    for i, one in enumerate(sets):
        assert bool(one) == (fractions[i] > 0)
        for other in sets[i + 1 :]:
            assert not set(persons_of(one)) & set(persons_of(other))
    assert sets == split_by_person(cases, fractions, seed)


def test_one_number_is_one_side_whoever_issued_it() -> None:
    """Where an issuer is not known the person may be the same: then they are never divided."""
    numbers = [f"{n}{issuer}" for n in range(10) for issuer in ("", "^^^A", "^^^B")]
    cases = [Case(person, person, person, Path(person)) for person in numbers]
    for seed in range(5):
        one, other = split_by_person(cases, (0.5, 0.5), seed)
        sides = [{c.person.partition("^^^")[0] for c in part} for part in (one, other)]
        assert not sides[0] & sides[1]
        assert [len(part) for part in (one, other)] == [15, 15]


def test_shares_must_add_up() -> None:
    with pytest.raises(InvalidInputError, match="add up"):
        split_by_person([case("a", "a")], (0.5, 0.1), 0)


def test_both_sides_of_a_head_are_one_person() -> None:
    people = People()
    assert people.of("hippocampus_001")[0] == people.of("hippocampus_002")[0]
    assert people.of("hippocampus_002")[0] != people.of("hippocampus_003")[0]
    assert people.of("other") == ("other", "other")
    assert not people.known


def test_a_rule_that_does_not_cover_a_file_is_an_error(tmp_path: Path) -> None:
    people = People(regex=r"^p(\d+)_")
    assert people.of("p12_left") == ("12", "p12_left")
    with pytest.raises(InvalidInputError, match="does not match"):
        people.of("x1")
    with pytest.raises(InvalidInputError, match="no group"):
        People(regex=r"p\d+")
    with pytest.raises(InvalidInputError, match="not valid"):
        People(regex=r"p(\d+")

    table = tmp_path / "people.csv"
    table.write_text("file,person,study\na.nii.gz,anna,one\n")
    assert People(table=table).of("a") == ("anna", "one")
    assert People(table=table).series_of("a") == "a"
    with pytest.raises(InvalidInputError, match="no row"):
        People(table=table).of("b")
    table.write_text("name,who\n")
    with pytest.raises(InvalidInputError, match="first line"):
        People(table=table)


def test_a_person_is_one_however_the_people_file_is_spaced(tmp_path: Path) -> None:
    """Else "4711" and " 4711" would be two people, one trained on and one validated on."""
    table = tmp_path / "people.csv"
    table.write_text("file,person,study\na, 4711,one \nb,4711 ,one\n c,47  11,\n")
    people = People(table=table)
    assert people.of("a") == people.of("b") == ("4711", "one")
    assert people.of("c") == ("47 11", "c")


def test_a_people_file_without_studies_leaves_them_their_names(tmp_path: Path) -> None:
    """A study that was marked, or trained on, before the file came is the same one after it."""
    table = tmp_path / "people.csv"
    table.write_text("file,person\na.nii.gz,anna\nimages/b.nii.gz,bert\n")
    for stem in ("a", "b"):
        assert People(table=table).of(stem)[1] == People().of(stem)[1] == stem


def test_a_file_cannot_be_two_people(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("file,person\na.nii.gz,anna\na.nrrd,anna\n")
    assert People(table=table).of("a")[0] == "anna"
    table.write_text("file,person\na.nii.gz,anna\nb,bert\na,bert\n")
    with pytest.raises(InvalidInputError, match=r"line 4 .*'a'.* line 2"):
        People(table=table)


def test_a_people_file_of_another_program_is_read_or_refused(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("file,person\na.nii.gz,Zoë\n", encoding="utf-8-sig")  # as Excel writes it
    assert People(table=table).of("a")[0] == "Zoë"
    for content, reason in (
        ("file,person\na.nii.gz,Zoë\n".encode("latin-1"), "UTF-8"),
        (b"file,person\na.nii.gz\n", "line 2"),
        (b"file,person\na.nii.gz,\n", "line 2"),
        (b"file,person\n ,anna\n", "line 2"),
        (b"", "first line"),
        (b"file,person\na," + b"x" * 200_000, "cannot be read"),
    ):
        table.write_bytes(content)
        with pytest.raises(InvalidInputError, match=reason):
            People(table=table)


def test_a_people_file_is_outdated_once_it_is_another(tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("file,person\na,anna\n")
    people = People(table=table)
    assert not people.outdated
    assert not People().outdated
    table.write_text("file,person\na,anna\nb,bert\n")
    assert people.outdated
    assert not People(table=table).outdated
    table.unlink()
    assert people.outdated


def test_a_people_file_that_the_disk_does_not_give_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"cannot be read \(Input/output error\)"):
        People(table=Path("/proc/self/mem"))


def test_files_made_from_dicom_are_known_by_their_series(tmp_path: Path) -> None:
    """So that a study marked in the archive is found in what was trained from files."""
    for name in ("images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_volume(Volume(np.zeros((2, 2, 2), np.int16), np.eye(4)), path)
    table = tmp_path / "people.csv"
    table.write_text("file,person,study,series\na,anna,2.25.1,2.25.2\nb,bert,2.25.3,\n")
    cases = cases_from_folder(tmp_path, People(table=table))
    assert [(c.study, c.series) for c in cases] == [("2.25.1", "2.25.2"), ("2.25.3", "b")]
    table.write_text("file,person,series\na,anna,2.25.2\nb,bert,2.25.2\n")
    with pytest.raises(InvalidInputError, match="one series to two files"):
        cases_from_folder(tmp_path, People(table=table))


def test_a_folder_pairs_images_and_labels_by_name(tmp_path: Path) -> None:
    for name in ("images/a.nii.gz", "images/b.nrrd", "labels/a.nrrd", "images/.hidden.nii"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_volume(Volume(np.zeros((2, 2, 2), np.int16), np.eye(4)), path)

    told: list[str] = []
    assert [c.series for c in cases_from_folder(tmp_path, say=told.append)] == ["a"]
    assert told == ["1 image has no label map of the same name in labels/: left out (b)."]
    both = cases_from_folder(tmp_path, labelled=False)
    assert [(c.series, c.label is None) for c in both] == [("a", False), ("b", True)]

    for name in ("images/c.NII.GZ", "images/notes.txt", "labels/b_seg.nrrd", "labels/c.nii"):
        (tmp_path / name).touch()
    told.clear()
    assert len(cases_from_folder(tmp_path, labelled=False, say=told.append)) == 2
    assert told == [
        "2 files in images/ end in none of .nii.gz, .nii, .nrrd: left out (c.NII.GZ, notes.txt).",
        "2 label maps have no image of the same name in images/: left out (b_seg, c).",
    ]

    with pytest.raises(InvalidInputError, match="no folder 'images'"):
        cases_from_folder(tmp_path / "images")
    (tmp_path / "labels/a.nrrd").unlink()
    with pytest.raises(InvalidInputError, match="none with a label"):
        cases_from_folder(tmp_path)
