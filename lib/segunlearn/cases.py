"""Cases: an image with its label, and the person, study and series it belongs to."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segunlearn.errors import InvalidInputError
from segunlearn.volumes import SUFFIXES, strip_suffix

_UNKNOWN = "unknown-"


@dataclass(frozen=True)
class Case:
    """One image, and who it shows.

    Parameters
    ----------
    series
        SeriesInstanceUID, or the file's name without ending for folders of files. Unique.
    study
        StudyInstanceUID, or what the sidecar says, or the same as ``series``.
    person
        PatientID, with its issuer as ``PatientID^^^Issuer`` where that is known, or the person
        that a regex or CSV gives. Sets are always split by person.
    image, label
        NIfTI or NRRD files on the same grid; ``label`` is None for unlabelled images.
    modality
        DICOM Modality (0008,0060).
    site
        Site key of the scanner (``segunlearn.dicom.site``), empty when unknown.
    fitted
        Whether the weights that a training starts from were fitted to the person, who then cannot
        validate it.
    """

    series: str
    study: str
    person: str
    image: Path
    label: Path | None = None
    modality: str = "OT"
    site: str = ""
    fitted: bool = False


class People:
    """Who is shown in a file: a rule from file stem to (person, study).

    Parameters
    ----------
    regex
        Its first group is the person; searched in the file's stem.
    table
        CSV with the columns ``file``, ``person`` and optionally ``study`` and ``series``: of files
        that were made from DICOM the UIDs, by which the ledger then knows them. A file without
        them keeps its stem for both, as without a table.

    Notes
    -----
    Without either, ``hippocampus_NNN`` (Medical Segmentation Decathlon task 4) is person
    ``(NNN + 1) // 2``, because neighbouring crops are very probably the two sides of one head;
    any other file is a person of its own, and siblings cannot be known.
    """

    _HIPPOCAMPUS = re.compile(r"^hippocampus_(\d+)$")

    def __init__(self, regex: str | None = None, table: Path | None = None) -> None:
        if regex is not None and table is not None:
            raise InvalidInputError("give people either by a regex or by a CSV file, not by both.")
        try:
            self._regex = re.compile(regex) if regex is not None else None
        except re.error as error:
            raise InvalidInputError(f"the person regex {regex!r} is not valid: {error}.") from error
        if self._regex is not None and self._regex.groups < 1:
            raise InvalidInputError(
                f"the person regex {regex!r} has no group; put the person in parentheses, "
                r"for example 'patient(\d+)_'."
            )
        self._file, self._stamp = table, _stamp(table)  # before reading: a change meanwhile counts
        self._table = self._read_table(table) if table is not None else None

    @staticmethod
    def _read_table(path: Path) -> dict[str, tuple[str, str, str]]:
        if not Path(path).is_file():
            raise InvalidInputError(f"{path}: no such people file.")
        try:
            with Path(path).open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns = set(reader.fieldnames or ())
                rows = [(reader.line_num, row) for row in reader]
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{path}: is not UTF-8; save it as CSV in UTF-8.") from error
        except csv.Error as error:
            raise InvalidInputError(f"{path}: cannot be read as CSV ({error}).") from error
        except OSError as error:
            raise InvalidInputError(f"{path}: cannot be read ({error.strerror}).") from error
        if not {"file", "person"} <= columns:
            raise InvalidInputError(f"{path}: the first line must name 'file' and 'person'.")
        table: dict[str, tuple[str, str, str]] = {}
        first: dict[str, int] = {}
        for line, row in rows:
            name, person, study, series = (
                (row.get(k) or "").strip() for k in ("file", "person", "study", "series")
            )
            person = " ".join(person.split())  # with another space it would be somebody else
            if not name or not person:
                raise InvalidInputError(f"{path}: line {line} lacks a file or a person; add it.")
            stem = strip_suffix(Path(name))
            named = person, study or stem, series or stem
            if table.setdefault(stem, named) != named:
                raise InvalidInputError(
                    f"{path}: line {line} says of {stem!r} something else than line {first[stem]}; "
                    "keep one."
                )
            first.setdefault(stem, line)
        return table

    @property
    def known(self) -> bool:
        """Whether a rule was given, so that siblings of a file can be found."""
        return self._regex is not None or self._table is not None

    @property
    def outdated(self) -> bool:
        """Whether the table's file was changed, replaced or removed since it was read."""
        return self._stamp != _stamp(self._file)

    def of(self, stem: str) -> tuple[str, str]:
        """(person, study) of a file stem.

        Raises
        ------
        InvalidInputError
            A rule was given and does not cover the file: guessing would mix people up.
        """
        if self._table is not None:
            if stem not in self._table:
                raise InvalidInputError(f"the people file has no row for {stem!r}; add one.")
            return self._table[stem][:2]
        if self._regex is not None:
            match = self._regex.search(stem)
            if match is None or match.group(1) is None:
                raise InvalidInputError(
                    f"the person regex {self._regex.pattern!r} does not match {stem!r}."
                )
            return match.group(1), stem
        match = self._HIPPOCAMPUS.match(stem)
        if match is not None:
            return f"hippocampus-{(int(match.group(1)) + 1) // 2:03d}", stem
        return stem, stem

    @property
    def names_series(self) -> bool:
        """Whether files are known by the series that they were made from."""
        return any(series != stem for stem, (_, _, series) in (self._table or {}).items())

    def series_of(self, stem: str) -> str:
        """Series of a file stem: what the table says, else the stem itself."""
        row = (self._table or {}).get(stem)
        return row[2] if row is not None else stem


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Tell one state of a file from another; None: there is none."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found is not None else None


def cases_from_folder(
    folder: Path,
    people: People | None = None,
    *,
    modality: str = "OT",
    labelled: bool = True,
    say: Callable[[str], object] | None = None,
) -> list[Case]:
    """Read a folder with ``images/`` and ``labels/`` (Medical Segmentation Decathlon manner).

    ``imagesTr``/``labelsTr`` are accepted too. Files pair by their name; the endings may differ.
    ``say`` is told which files are left out.

    Raises
    ------
    InvalidInputError
        No images, two images of one name or series, or no labelled image although ``labelled``.
    """
    folder, people = Path(folder), people or People()
    images = next((folder / n for n in ("images", "imagesTr") if (folder / n).is_dir()), None)
    if images is None:
        raise InvalidInputError(
            f"{folder}: no folder 'images' in it. Put images into images/ and label maps of the "
            "same file names into labels/."
        )
    labels = next((folder / n for n in ("labels", "labelsTr") if (folder / n).is_dir()), None)
    label_files = {strip_suffix(p): p for p in _volume_files(labels)} if labels else {}
    cases: dict[str, Case] = {}
    for path in _volume_files(images):
        stem = strip_suffix(path)
        if stem in cases:
            raise InvalidInputError(f"{images}: two files are named {stem!r}; keep one.")
        person, study = people.of(stem)
        series = people.series_of(stem)
        cases[stem] = Case(series, study, person, path, label_files.get(stem), modality)
    if len({c.series for c in cases.values()}) != len(cases):
        raise InvalidInputError(f"{folder}: the people file gives one series to two files.")
    found = [c for c in cases.values() if c.label is not None or not labelled]
    if not found:
        raise InvalidInputError(
            f"{folder}: {len(cases)} images, none with a label map of the same name in labels/."
        )
    if say is not None:
        for sentence in _left_out(images, cases, label_files, labelled):
            say(sentence)
    return found


def _left_out(
    images: Path, cases: Mapping[str, Case], labels: Iterable[str], labelled: bool
) -> Iterator[str]:
    """Name the files that are in no case; most are typing errors in a name."""
    files = [p.name for p in images.iterdir() if p.is_file() and not p.name.startswith(".")]
    odd = [name for name in files if not name.endswith(SUFFIXES)]
    unlabelled = [stem for stem, case in cases.items() if labelled and case.label is None]
    for names, one, several, why in (
        (odd, "file in images/ ends", "files in images/ end", f"in none of {', '.join(SUFFIXES)}"),
        (unlabelled, "image has", "images have", "no label map of the same name in labels/"),
        (set(labels) - set(cases), "label map has", "label maps have",
         "no image of the same name in images/"),
    ):  # fmt: skip
        if names:
            shown = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
            what = one if len(names) == 1 else several
            yield f"{len(names)} {what} {why}: left out ({shown})."


def _volume_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and not p.name.startswith(".") and p.name.endswith(SUFFIXES)
    )


def split_by_person(
    cases: Sequence[Case], fractions: Sequence[float], seed: int
) -> list[list[Case]]:
    """Divide cases into sets that share no person, and no PatientID whoever issued it.

    Parameters
    ----------
    cases
        Any order; the result depends only on their persons and the seed.
    fractions
        Share of *persons* of each set, adding up to 1. Every set with a positive share gets at
        least one person.
    seed
        Of ``numpy.random.default_rng``.

    Raises
    ------
    InvalidInputError
        Shares do not add up to 1, or there are fewer persons than sets.
    """
    if abs(sum(fractions) - 1.0) > 1e-6 or min(fractions, default=-1.0) < 0.0:
        raise InvalidInputError(f"shares must be >= 0 and add up to 1, got {list(fractions)}.")
    persons = sorted({number_of(c.person) for c in cases})
    wanted = [i for i, f in enumerate(fractions) if f > 0]
    if len(persons) < len(wanted):
        raise InvalidInputError(
            f"{len(persons)} persons cannot be divided into {len(wanted)} sets; "
            "sets never share a person. Annotate studies of more patients."
        )
    order = [persons[i] for i in np.random.default_rng(seed).permutation(len(persons))]
    counts = [round(f * len(persons)) if f > 0 else 0 for f in fractions]
    for i in wanted:
        counts[i] = max(1, counts[i])
    while sum(counts) != len(persons):
        step = 1 if sum(counts) < len(persons) else -1
        counts[int(np.argmax(counts))] += step
    bounds = np.cumsum([0, *counts])
    groups = [set(order[a:b]) for a, b in itertools.pairwise(bounds)]
    return [[c for c in cases if number_of(c.person) in group] for group in groups]


def unknown_person(study: str) -> str:
    """Name whom no header names: a person of its own for each study, so nobody is mixed up."""
    return f"{_UNKNOWN}{study}"


def unknown_people(cases: Iterable[Case]) -> int:
    """Count the studies of people whom no header names; several may show one person."""
    return len({c.person for c in cases if c.person.startswith(_UNKNOWN)})


def number_of(person: str) -> str:
    """Person without the issuer: who shares it may be the same, where an issuer is not known."""
    return person.partition("^^^")[0]


def persons_of(cases: Iterable[Case]) -> list[str]:
    """Sorted persons of the cases, each once."""
    return sorted({c.person for c in cases})
