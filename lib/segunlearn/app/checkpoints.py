"""Weights beside the versions: whose images shaped them, and when they go.

A training that was killed or stopped leaves its checkpoint, so that the next one goes on from it.
It holds weights that saw studies. Beside it lies ``cases.json`` with the pseudonyms of what was
trained on; a mark deletes every checkpoint that saw its target. What a mark cannot meet (a training
under way, a mark made on another machine) goes when that training ends, when the next one starts,
or when the server starts. The references that audits train and keep go in the same way.

So do adapters of sites, which have the same note: an earlier adapter that never saw the target
serves then, else the base. An adapter holds whole tensors of its base, too, so it also goes when
the weights of its base are sealed or destroyed: it would give away what those knew.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from segunlearn.app.adapter_info import FILE
from segunlearn.app.adapter_store import SiteAdapters
from segunlearn.app.locks import audit_lock
from segunlearn.app.options import Home
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms, load_or_create_key
from segunlearn.errors import ConflictError, SegUnlearnError
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.records.forget_set import ForgetRequest, HistoryEntry, OnChange
from segunlearn.records.forget_states import LIVE
from segunlearn.records.runs import Runs
from segunlearn.records.targets import Target, same_issuer, split_person, unpad
from segunlearn.records.versions import VersionRegistry

logger = logging.getLogger(__name__)

#: Kinds of the runs that leave checkpoints in ``home/runs``, by what they make. A training goes on
#: from, or removes, what those beside it left: the others can still use theirs.
FAMILIES: Final = (("train", "meta_train"), ("replay",))
_TRAININGS: Final = tuple(kind for family in FAMILIES for kind in family)
#: Kinds of the runs that write weights there and never go on from them.
_PASSING: Final = ("forget_feature",)
#: Why the tensors of an adapter were destroyed.
MARKED = "a study of its support was marked for forgetting"
SEALED = "the version it was made for was sealed or destroyed"
_CASES = "cases.json"
#: No identifier: its pseudonym tells whether the site's key is still the same.
_KEY_PROBE = "cases of a training"


def note(folder: Path, cases: Sequence[Case], pseudonyms: Pseudonyms) -> None:
    """Write down what a training is about to read, before its first checkpoint.

    Parameters
    ----------
    folder
        Of the run, ``home/runs/<run_id>``.
    cases
        Of training and validation.
    pseudonyms
        Of the home.
    """
    write_json_durably(folder / _CASES, _described(cases, pseudonyms))


def is_of(folder: Path, cases: Sequence[Case], pseudonyms: Pseudonyms) -> bool:
    """Whether a run read just these series, studies and persons."""
    try:
        return bool(read_json(folder / _CASES) == _described(cases, pseudonyms))
    except SegUnlearnError:
        return False


def drop(home: Home, connection: Connection, targets: Iterable[Target]) -> list[str]:
    """Delete what ended trainings left, where it saw one of the targets or nobody can say.

    Adapters of sites go, too, see the module; and what no run goes on from, whoever is marked.

    Parameters
    ----------
    home
        Where the runs lie.
    connection
        An open connection of the store.
    targets
        Of live requests.

    Returns
    -------
    list of str
        Ids of the runs.

    Raises
    ------
    IntegrityError, UnavailableError
        The site's key cannot be read.
    OSError
        A folder cannot be deleted.
    """
    if not left_behind(home):
        return []
    run_ids = [p.name for p in _folders(home.runs)]
    dropped = []
    for run_id in Runs.ended(connection, _PASSING, run_ids):
        _remove(home.runs / run_id)
        logger.info("what run %s left is of no further use: deleted", run_id)
        dropped.append(run_id)
    pseudonyms = Pseudonyms(load_or_create_key(home.site_key))
    named = named_by((t for t in targets if t.kind != "structure"), pseudonyms)
    if named:
        for run_id in Runs.ended(connection, _TRAININGS, run_ids):
            if saw(home.runs / run_id, named, pseudonyms):
                _remove(home.runs / run_id)
                logger.info("the checkpoint of run %s saw what was marked: deleted", run_id)
                dropped.append(run_id)
        for folder in _folders(home.audits / "work"):
            if saw(folder, named, pseudonyms):
                _drop_references(home, folder)
    for store in adapters_in(home):
        _destroy_adapters(home, store, named, pseudonyms)
    return dropped


def _destroy_adapters(
    home: Home,
    store: SiteAdapters,
    named: Collection[tuple[str, str, str]],
    pseudonyms: Pseudonyms,
) -> None:
    try:
        versions = VersionRegistry(home.model(store.model)).versions()
    except SegUnlearnError as error:  # what is marked goes all the same
        logger.error("nobody can say which bases of site adapters are sealed: %s", error)
        versions = []
    open_bases = {v.sha256 for v in versions if v.weights_state == "here"}
    sealed = {v.sha256 for v in versions} - open_bases
    for folder in store.folders():
        marked = bool(named) and saw(folder, named, pseudonyms)
        try:
            info = store.at(folder)
            if info.here and (marked or info.base in sealed):
                store.destroy([info], MARKED if marked else SEALED)
                logger.info("site adapter %s knew what was marked or sealed: destroyed", info.name)
        except SegUnlearnError as error:  # it serves nobody; the others go all the same
            logger.error("site adapter %s/%s: %s", folder.parent.name, folder.name, error)
            if marked or sealed:
                (folder / FILE).unlink(missing_ok=True)


def adapters_in(home: Home) -> list[SiteAdapters]:
    """Site adapters of every model that has some."""
    return [SiteAdapters(folder) for folder in _folders(home.sites)]


def _drop_references(home: Home, folder: Path) -> None:
    """Delete what an audit keeps, unless it is under way."""
    try:
        with audit_lock(home, folder.name):
            _remove(folder)
    except ConflictError:
        logger.warning("an audit under way uses what was marked; its references go later")
    else:
        logger.info("the references of an audit saw what was marked: deleted")


def _remove(folder: Path) -> None:
    """Delete a folder; what its own run deletes meanwhile is gone as well."""

    def failed(_call: object, _path: str, found: tuple[type[BaseException], Any, Any]) -> None:
        if not isinstance(found[1], FileNotFoundError):
            raise found[1]

    shutil.rmtree(folder, onerror=failed)


def left_behind(home: Home) -> bool:
    """Whether there is anything that a mark may have to delete."""
    return any(_folders(f) for f in (home.runs, home.audits / "work", home.sites))


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []


def dropping(home: Home) -> OnChange:
    """Make the hook that deletes checkpoints in the moment of a mark.

    It never keeps a mark from being made: what it cannot delete is logged, and is tried again when
    a training or the server starts.
    """

    def tidy(connection: Connection, request: ForgetRequest, entry: HistoryEntry) -> None:
        if entry.from_state == entry.to_state or entry.to_state not in LIVE:
            return
        try:
            drop(home, connection, request.targets)
        except (SegUnlearnError, OSError) as error:
            logger.error("checkpoints could not be deleted at a mark: %s", error)

    return tidy


def _described(cases: Iterable[Case], pseudonyms: Pseudonyms) -> dict[str, Any]:
    """Describe cases without naming anybody; the patient's issuer stands apart, it may be unknown.

    See :mod:`segunlearn.records.targets` for how ids and issuers are compared.
    """
    series, study, patient = set(), set(), set()
    for case in cases:
        series.add(pseudonyms.of(unpad(case.series)))
        study.add(pseudonyms.of(unpad(case.study)))
        person, issuer = split_person(case.person)
        patient.add((pseudonyms.of(person), _issuer(issuer, pseudonyms)))
    return {
        "key": pseudonyms.of(_KEY_PROBE),
        "series": sorted(series),
        "study": sorted(study),
        "patient": [list(pair) for pair in sorted(patient)],
    }


def _issuer(issuer: str, pseudonyms: Pseudonyms) -> str:
    return pseudonyms.of(issuer) if issuer else ""


def named_by(targets: Iterable[Target], pseudonyms: Pseudonyms) -> set[tuple[str, str, str]]:
    """Name targets as ``saw`` looks for them: kind, pseudonym and the issuer's pseudonym."""
    return {(t.kind, pseudonyms.of(t.id), _issuer(t.issuer, pseudonyms)) for t in targets}


def saw(folder: Path, named: Collection[tuple[str, str, str]], pseudonyms: Pseudonyms) -> bool:
    """Whether a run read one of the targets; also when its list of cases is gone or damaged.

    Parameters
    ----------
    folder
        Where ``note`` wrote.
    named
        From ``named_by``.
    pseudonyms
        Of the home.
    """
    try:
        listed = read_json(folder / _CASES)
        if listed["key"] != pseudonyms.of(_KEY_PROBE):
            return True
        if any((kind, p, "") in named for kind in ("series", "study") for p in listed[kind]):
            return True
        patients: dict[str, list[str]] = {}
        for kind, pseudonym, issuer in named:
            if kind == "patient":
                patients.setdefault(pseudonym, []).append(issuer)
        return any(
            same_issuer(issuer, other)
            for person, issuer in listed["patient"]
            for other in patients.get(person, ())
        )
    except (SegUnlearnError, KeyError, TypeError, ValueError):
        return True
