"""What an audit is about: the two versions, what was to be forgotten, and whom it is held against.

Everything comes from the ledger, the forget set and the labelled cases; nothing is read from
images here. Sets are divided by person, and two persons are one where their PatientIDs agree and
an issuer is unknown (``segunlearn.records.targets``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from segunlearn.app.audit_targets import (
    NO_TARGETS,
    TAUGHT,
    Named,
    People,
    Targets,
    cases_of,
    find_original,
    lineage_of,
    taught_cases,
    version_of,
)
from segunlearn.app.records import Records
from segunlearn.app.structures import untaught
from segunlearn.audit.policy import Level
from segunlearn.audit.run import Provenance
from segunlearn.cases import Case
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import (
    IntegrityError,
    InvalidInputError,
    LabelError,
    UnsupportedNetworkError,
)
from segunlearn.networks import ModelConfig
from segunlearn.records.forget_requests import ForgetRequest
from segunlearn.records.forget_states import highest
from segunlearn.records.ledger import Ledger, LedgerCase, LedgerRow
from segunlearn.records.targets import is_of_dicom, person_name, split_person, unpad
from segunlearn.records.versions import VersionInfo, VersionRegistry

#: Share of the unseen people that the distillation attack may use as images without labels.
CALIBRATION_SHARE: Final = 0.3
#: Fewer unseen people than this are refused: two to compare with, one for the attack.
LEAST_UNSEEN: Final = 3

#: Parts of the configuration that two versions may differ in and still be compared.
_FREE: Final = ("modalities", "overlap", "dropout", "name")


@dataclass(frozen=True)
class Choice:
    """Who is in which set, and what is known of the versions.

    Parameters
    ----------
    candidate, original
        The version after and before.
    config
        Of both.
    forget, retain, calibration, test
        S, R, C and T: labelled cases.
    requests
        Forget requests that named S; empty where it was named by identifiers.
    needed
        Assurance level.
    provenance
        Of the candidate, as the ledger says.
    row
        Of the ledger, of the original's own training.
    swept
        Cases that the artefact sweep looks for: what any version of any model saw of S's targets.
    changed
        Image and label digests of S in the ledger, by series.
    notes
        What the reader of the report must know of the choice.
    untaught
        Structures that no training behind the original was taught: background here too.
    """

    candidate: VersionInfo
    original: VersionInfo
    config: ModelConfig
    forget: tuple[Case, ...]
    retain: tuple[Case, ...]
    calibration: tuple[Case, ...]
    test: tuple[Case, ...]
    requests: tuple[ForgetRequest, ...]
    needed: Level
    provenance: Provenance
    row: LedgerRow
    swept: tuple[LedgerCase, ...]
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    untaught: frozenset[str] = frozenset()


def choose(
    records: Records,
    registry: VersionRegistry,
    cases: Sequence[Case],
    *,
    candidate: str = "",
    original: str = "",
    targets: Targets = NO_TARGETS,
    level: Level | None = None,
    replayed: Sequence[LedgerCase] = (),
) -> Choice:
    """Choose versions and sets.

    Parameters
    ----------
    records, registry
        Of the home.
    cases
        Every labelled case at hand, also those marked for forgetting.
    candidate
        Version or SHA-256; by default the active version.
    original
        By default the candidate's parent, else the newest earlier version that saw S.
    targets
        S.
    level
        Assurance level that is needed; by default the highest of the requests', else
        ``"unlearned"``.
    replayed
        Whose images shaped a generator that will shape the candidate: it will have seen them.

    Raises
    ------
    NotFoundError
        A version is not in the registry, or not in the ledger; no such request.
    StudyNotInLedgerError
        The original never saw S.
    UnsupportedNetworkError
        The versions have different networks.
    LabelError
        A forgotten series has no label here.
    InvalidInputError
        Sets are empty, too few people are unseen, or cases and ledger disagree on persons.
    """
    after = version_of(registry, candidate)
    seen_by_candidate = [*lineage_of(records.ledger, after), *replayed]
    requests = tuple(records.forget_set.get(r) for r in targets.requests)
    before, lineage, forgotten, requests, named = find_original(
        records, registry, after, original, targets, requests
    )
    config = _same_network(before, after)
    given = [replace(c, person=person_name(*split_person(c.person))) for c in cases]
    ready = _as_recorded(given, [*lineage, *seen_by_candidate])
    _check_persons(ready, [*lineage, *seen_by_candidate])
    changed = sum(a.person != b.person for a, b in zip(given, ready, strict=True))
    found = _sets(
        records, ready, before, after, config, lineage, seen_by_candidate, forgotten, requests,
        named, level, targets.back, bool(replayed),
    )  # fmt: skip
    if not changed:
        return found
    note = (
        f"{changed} images stand under another PatientID than in the ledger: each counts as the "
        "person recorded there."
    )
    return replace(found, notes=(*found.notes, note))


def divide(persons: Iterable[str], pseudonyms: Pseudonyms) -> tuple[set[str], set[str]]:
    """Divide unseen people into C and T by a keyed hash: nobody chooses, and it can be repeated.

    Returns
    -------
    calibration, test
        About ``CALIBRATION_SHARE``, and the others. Persons whose PatientIDs agree stay together.
    """
    groups: dict[str, set[str]] = {}
    for person in persons:
        groups.setdefault(split_person(person)[0], set()).add(person)
    order = sorted(groups, key=lambda patient: pseudonyms.of(f"calibration/{patient}"))
    count = max(1, round(CALIBRATION_SHARE * len(order)))
    return (
        {p for patient in order[:count] for p in groups[patient]},
        {p for patient in order[count:] for p in groups[patient]},
    )


def seconds_of(row: LedgerRow) -> float:
    """Wall time of a recorded run."""
    begun, ended = (datetime.fromisoformat(t) for t in (row.started, row.ended))
    return max(0.0, (ended - begun).total_seconds())


def settings_of(ledger: Ledger, row: LedgerRow) -> dict[str, Any]:
    """Find the settings of the longest training in the chain of parents; empty without any."""
    best: dict[str, Any] = {}
    for made_by in ledger.with_parents(row):
        settings = made_by.parameters.get("settings")
        trained = made_by.kind == "train" or made_by.parameters.get("method") == "retrain"
        if trained and isinstance(settings, dict):
            best = max(best, settings, key=lambda s: int(s.get("epochs", 0)))
    return best


def views_of(settings: Mapping[str, Any]) -> int:
    """Patches a training of these settings draws of each study; 0 of none."""
    return int(settings.get("epochs", 0)) * int(settings.get("samples_per_case", 1))


def _same_network(before: VersionInfo, after: VersionInfo) -> ModelConfig:
    one, two = ModelConfig.from_json(before.config), ModelConfig.from_json(after.config)
    left, right = one.to_json(), two.to_json()
    different = [k for k in left if k not in _FREE and left[k] != right[k]]
    if different:
        raise UnsupportedNetworkError(
            f"{before.version} and {after.version} have different networks "
            f"({', '.join(different)}): their figures cannot be compared. Train the candidate with "
            "the original's network (segunlearn train --again)."
        )
    return two


def _as_recorded(cases: Sequence[Case], recorded: Sequence[LedgerCase]) -> list[Case]:
    """Give images of DICOM whose PatientID an archive changed the person that was recorded.

    Of the new number's other images, too: whoever was trained on is nobody unseen. Of files a wrong
    person is somebody's slip, and refused.
    """
    known = {c.series: c.person for c in recorded}
    changed = {
        c.person: known[s]
        for c in cases
        if (s := unpad(c.series)) in known and is_of_dicom(s) and c.person not in People([known[s]])
    }
    return [
        replace(c, person=known.get(unpad(c.series), changed[c.person]))
        if c.person in changed and is_of_dicom(unpad(c.series))
        else c
        for c in cases
    ]


def _check_persons(cases: Sequence[Case], recorded: Sequence[LedgerCase]) -> None:
    """Refuse cases that show other people than the ledger says: sets would overlap by person."""
    series = [c.series for c in cases]
    if len(set(series)) != len(series):
        raise InvalidInputError("a series is given twice among the labelled cases; give it once.")
    known = {c.series: c.person for c in recorded}
    wrong = [
        c for c in cases if unpad(c.series) in known and c.person not in People([known[c.series]])
    ]
    if wrong:
        raise InvalidInputError(
            f"{len(wrong)} of the labelled images show other persons than the ledger recorded: "
            "forgotten people could be counted as unseen. Give the same --people or "
            "--person-regex as for the training."
        )


def _sets(
    records: Records,
    cases: Sequence[Case],
    before: VersionInfo,
    after: VersionInfo,
    config: ModelConfig,
    lineage: Sequence[LedgerCase],
    seen_by_candidate: Sequence[LedgerCase],
    forgotten: Sequence[LedgerCase],
    requests: tuple[ForgetRequest, ...],
    named: Sequence[Named],
    level: Level | None,
    back: Collection[str],
    replays: bool,
) -> Choice:
    labelled = {unpad(c.series): c for c in cases if c.label is not None}
    lacking = [c for c in forgotten if c.series not in labelled]
    if lacking:
        raise LabelError(
            f"{len(lacking)} of the {len(forgotten)} forgotten series have no labelled image here "
            f"(first {records.pseudonyms.of(lacking[0].series)}): what a model remembers of them "
            "cannot be measured. Give the data they were trained from."
        )
    gone = {c.series for c in forgotten}
    again = [c for c in cases_of(named, seen_by_candidate) if c.series not in gone]
    whole = [*forgotten, *again, *taught_cases(records.ledger, named)]
    copies = _copies(whole, lineage, seen_by_candidate)
    s_people = People(c.person for c in forgotten)
    forget = tuple(labelled[s] for s in sorted(gone))
    others = [c for c in labelled.values() if c.series not in gone and c.person not in s_people]
    free = records.without_forgotten(others, besides=back)
    taught = {c.series for c in lineage if c.role in TAUGHT}
    seen = People(c.person for c in [*lineage, *seen_by_candidate])
    retain = tuple(c for c in free if unpad(c.series) in taught)
    unseen = [c for c in free if c.person not in seen]
    calibration, test = divide((c.person for c in unseen), records.pseudonyms)
    if not retain:
        raise InvalidInputError(
            f"none of the other people that {before.version} was trained on is labelled here: no "
            "never-seen reference could be trained. Give the data it was trained from."
        )
    if len({split_person(p)[0] for p in calibration | test}) < LEAST_UNSEEN:
        raise InvalidInputError(
            f"{len(calibration | test)} labelled people were never seen by {before.version}"
            + (" or the generator that is to be replayed" if replays else "")
            + ("" if replays or after.version == before.version else f" or {after.version}")
            + f"; an audit compares the forgotten with at least {LEAST_UNSEEN} such. "
            + (
                "Train the generator again on images of others (segunlearn replay train), or "
                "annotate studies of more people."
                if replays
                else "Annotate studies of more people, and keep some out of training (train "
                "--holdout)."
            )
        )
    notes = _notes(
        lineage, labelled, len(others) - len(free), gone, s_people, seen_by_candidate, again, copies
    )
    return Choice(
        candidate=after,
        original=before,
        config=config,
        forget=forget,
        retain=retain,
        calibration=tuple(c for c in unseen if c.person in calibration),
        test=tuple(c for c in unseen if c.person in test),
        requests=requests,
        needed=level or highest([r.needed for r in requests] or ["unlearned"]),
        provenance=_provenance(records.ledger, after, seen_by_candidate, [*whole, *copies]),
        row=_row_of(records.ledger, before),
        swept=tuple(whole),
        changed={c.series: (c.image_digest, c.label_digest) for c in forgotten},
        notes=notes,
        untaught=untaught(records, before),
    )


def _copies(
    forgotten: Sequence[LedgerCase],
    lineage: Sequence[LedgerCase],
    seen_by_candidate: Sequence[LedgerCase],
) -> list[LedgerCase]:
    """Cases that the candidate saw under another name: the ledger has their image as one of S."""
    gone, recorded = {c.series for c in forgotten}, [*forgotten, *lineage, *seen_by_candidate]
    images = {c.image_digest for c in recorded if c.series in gone} - {""}
    names = {c.series for c in recorded if c.image_digest in images} - gone
    return [c for c in seen_by_candidate if c.series in names]


def _row_of(ledger: Ledger, info: VersionInfo) -> LedgerRow:
    row = ledger.row(info.run_id)
    if row.version_sha256 != info.sha256:
        raise IntegrityError(
            f"{info.version}: the ledger says that run {info.run_id[:12]} made other weights. Run "
            "'segunlearn ledger verify', and do not trust the version."
        )
    return row


def _provenance(
    ledger: Ledger,
    info: VersionInfo,
    lineage: Sequence[LedgerCase],
    forgotten: Sequence[LedgerCase],
) -> Provenance:
    row = _row_of(ledger, info)
    gone = {c.series for c in forgotten} | {c.study for c in forgotten}
    taught = [c for c in lineage if c.role in TAUGHT]
    exact = (
        row.kind in ("train", "unlearn")
        and row.outcome == "done"
        and row.parent_sha256 is None
        and not any(c.series in gone or c.study in gone for c in lineage)
    )
    read: dict[str, int] = {}
    for case in ledger.cases_of(row.run_id):
        read[case.role] = read.get(case.role, 0) + 1
    method = str(row.parameters.get("method") or "")
    cost = row.parameters.get("cpu_seconds")
    settings = row.parameters.get("settings")
    return Provenance(
        method=method or ("trained again from random weights" if exact else row.kind),
        exact=exact and bool(taught),
        parameters=settings if isinstance(settings, dict) else {},
        cpu_seconds=float(cost) if isinstance(cost, int | float) else None,
        read=read,
    )


def _notes(
    lineage: Sequence[LedgerCase],
    labelled: dict[str, Case],
    marked: int,
    gone: set[str],
    s_people: People,
    seen_by_candidate: Sequence[LedgerCase],
    again: Sequence[LedgerCase],
    copies: Sequence[LedgerCase],
) -> tuple[str, ...]:
    notes = []
    taught = {c.series: c.person for c in lineage if c.role in TAUGHT}
    lacking = [s for s, p in taught.items() if p not in s_people and s not in labelled]
    if lacking:
        notes.append(
            f"{len(lacking)} retained series have no labelled image here; they are not in the sets."
        )
    if marked:
        notes.append(f"{marked} series of other people are marked for forgetting: left out.")
    taught_again = {c.series for c in again if c.role in TAUGHT}
    if taught_again:
        notes.append(
            f"The model was itself trained on {len(taught_again)} other series that were to be "
            "forgotten too, and that the version before had not seen: what it knows of them was "
            "not measured, and it cannot be called retrained."
        )
    if copies:
        notes.append(
            f"The model was trained on {len({c.series for c in copies})} image(s) that are those "
            "to be forgotten under another name: it cannot be called retrained."
        )
    still = {c.series for c in seen_by_candidate if c.role in TAUGHT} - gone - taught_again
    more = [c for c in seen_by_candidate if c.series in still and c.person in s_people]
    if more:
        people = len({c.person for c in more})
        notes.append(
            f"The model was trained on other studies of {people} of the forgotten person(s), which "
            "were not to be forgotten. It may know these persons from there."
        )
    return tuple(notes)
