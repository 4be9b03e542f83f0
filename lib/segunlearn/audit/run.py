"""One audit from end to end: measure every model, judge, draw the verdict, write it down.

Series and persons are replaced by pseudonyms before anything is measured: no identifier can reach
a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from torch import nn

from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.judge import judge
from segunlearn.audit.measurements import Measurements
from segunlearn.audit.policy import Finding, ReferenceKind, Verdict, verdict
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AuditSettings
from segunlearn.audit.sweep import Place
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import IntegrityError
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning.loop import Cancel, Report, never, no_report

#: Of the result's JSON; a reader refuses others.
FORMAT: Final = 1

_NOT_PROVED: Final = (
    "The figures are measurements on the models named here, not a mathematical bound: a stronger "
    "attack than those tried may find more.",
    "Whoever holds the model before and after can see which studies changed; no method prevents "
    "this. Old versions must be locked away or destroyed.",
    "Copies of the old model that left this installation are not covered.",
    "A later training that uses the studies again, or starts from an old version, undoes it.",
    "While the old weights or a sealed deposit exist, processing is restricted (GDPR Art. 18); "
    "only their destruction is erasure (Art. 17).",
)


@dataclass(frozen=True)
class Provenance:
    """Where the candidate comes from, as the ledger says; printed in the report.

    Parameters
    ----------
    method
        Name of the unlearning method, empty when not known.
    exact
        The ledger shows a training from random weights without S.
    parameters
        Settings of the method.
    cpu_seconds
        Its cost; None when not measured.
    read
        Studies the method was given, by set.
    """

    method: str = ""
    exact: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    cpu_seconds: float | None = None
    read: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditResult:
    """The outcome of an audit; ``to_json`` is the report in JSON.

    Parameters
    ----------
    verdict, findings
        What the candidate reached, and each measure.
    figures
        Of ``"candidate"``, ``"original"``, ``"reference-1"`` …
    digests
        SHA-256 of each model's weights file (as ``save_weights`` writes it).
    void
        Why the audit could not have found a leak; empty is good.
    notes
        What the reader must know of the reference and the power.
    sets
        Number of studies and persons of each set.
    settings, provenance, created, versions, cpu_seconds
        The record of the audit itself.
    places
        Where the studies may still be, of ``sweep.sweep``.
    cost
        CPU seconds of the references where known, and their ratio to the candidate's.
    class_mode
        Figures of a withdrawn structure.
    reversibility
        Of the restored model.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    figures: Mapping[str, ModelFigures]
    digests: Mapping[str, str]
    void: tuple[str, ...]
    notes: tuple[str, ...]
    sets: Mapping[str, Mapping[str, int]]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    created: str
    versions: Mapping[str, str]
    cpu_seconds: float
    places: tuple[Place, ...] = ()
    cost: Mapping[str, Any] | None = None
    class_mode: Mapping[str, Any] | None = None
    reversibility: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, sorted by meaning."""
        return {
            "format": FORMAT,
            "created": self.created,
            "verdict": self.verdict.to_json(),
            "findings": [f.to_json() for f in self.findings],
            "void": list(self.void),
            "notes": list(self.notes),
            "not_proved": list(_NOT_PROVED),
            "sets": {k: dict(v) for k, v in self.sets.items()},
            "digests": dict(self.digests),
            "provenance": dict(self.provenance),
            "figures": {k: v.to_json() for k, v in self.figures.items()},
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "cpu_seconds": self.cpu_seconds,
            "places": [p.to_json() for p in self.places],
            "cost": None if self.cost is None else dict(self.cost),
            "class_mode": None if self.class_mode is None else dict(self.class_mode),
            "reversibility": None if self.reversibility is None else dict(self.reversibility),
        }


def read_result(path: Path) -> dict[str, Any]:
    """Read an audit's JSON.

    Raises
    ------
    IntegrityError
        The file is missing, damaged, or of another format.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT or "verdict" not in data:
        raise IntegrityError(f"{path.name}: is no audit result of format {FORMAT}.")
    return data


def run_audit(
    candidate: nn.Module,
    original: nn.Module,
    references: Sequence[nn.Module],
    sets: AuditSets,
    settings: AuditSettings | None = None,
    *,
    run_dir: Path,
    pseudonyms: Pseudonyms,
    kind: ReferenceKind = "full",
    provenance: Provenance | None = None,
    places: Sequence[Place] = (),
    reference_cost: Mapping[str, float] | None = None,
    withdrawn: str | None = None,
    restored: nn.Module | None = None,
    report: Report = no_report,
    cancel: Cancel = never,
) -> AuditResult:
    """Audit a candidate.

    Parameters
    ----------
    candidate, original
        The model after and before; left untouched.
    references
        Models that never saw S, of the kind ``kind``. None at all: a short one is trained on R.
    sets
        With their real identifiers; they are pseudonymised here.
    settings
        None takes the defaults.
    run_dir
        Of this audit; an audit that was stopped goes on from what is there.
    pseudonyms
        Of the site.
    provenance
        Of the candidate.
    places
        Of ``sweep.sweep``: where the studies may still be.
    reference_cost
        CPU seconds of a ``"full"``, ``"early_stopped"`` and ``"short"`` training without S, where
        known.
    withdrawn
        Class mode: the structure that was withdrawn. ``references`` were trained without it, and
        the labels of all sets still hold it.
    restored
        The model after a restore, to be held against the original.
    report, cancel
        Progress in measures done, and whether to stop.

    Returns
    -------
    AuditResult
        Also written to ``run_dir/audit.json``.

    Raises
    ------
    InvalidInputError
        Empty or overlapping sets, or an attack that is none.
    CancelledError
        ``cancel`` said so; what was measured stays.
    """
    settings, provenance = settings or AuditSettings(), provenance or Provenance()
    started = time.process_time()
    hidden = sets.pseudonymised(pseudonyms)
    run_dir.mkdir(parents=True, exist_ok=True)
    measured = Measurements(run_dir, hidden, settings, report, cancel)
    if not references:
        kind, references = "short", [measured.short_reference()]
    models = {"candidate": candidate, "original": original}
    models |= {f"reference-{i + 1}": r for i, r in enumerate(references)}
    figures = measured.all(models)
    theirs = [figures[f"reference-{i + 1}"] for i in range(len(references))]

    def judged(figures_of: ModelFigures, against: Sequence[ModelFigures]) -> list[Finding]:
        return judge(
            figures_of, figures["original"], against, kind, settings.policy, settings.relearning
        )

    findings = judged(figures["candidate"], theirs)
    void = _void(judged(figures["original"], theirs), theirs, judged)
    result = AuditResult(
        verdict=verdict(
            findings,
            settings.policy,
            needed=settings.needed,
            reference=kind,
            exact=provenance.exact,
            void=void,
        ),
        findings=tuple(findings),
        figures=figures,
        digests=measured.digests,
        void=void,
        notes=_notes(kind, len(references), hidden),
        sets={
            name: {"studies": len(studies), "persons": len({s.person for s in studies})}
            for name, studies in hidden.by_name().items()
        },
        settings=settings.to_json(),
        provenance=asdict(provenance),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={p: version(p) for p in ("segunlearn", "torch", "monai")},
        cpu_seconds=time.process_time() - started,
        places=tuple(places),
    )
    write_json_durably(run_dir / "audit.json", result.to_json())
    return result


def _void(
    original: Sequence[Finding],
    references: Sequence[ModelFigures],
    judged: Callable[[ModelFigures, Sequence[ModelFigures]], list[Finding]],
) -> tuple[str, ...]:
    """Check the audit itself: the original must be refused, a left-out reference must pass."""
    void = []
    if not any(f.outcome == "fail" for f in original):
        void.append(
            "The original model passes every measure: its memory of these studies cannot be seen, "
            "so nothing can be shown to have gone."
        )
    if len(references) > 2:
        for i, left_out in enumerate(references):
            others = [*references[:i], *references[i + 1 :]]
            failed = [f.name for f in judged(left_out, others) if f.outcome == "fail"]
            if failed:
                void.append(
                    f"A model that never saw the studies fails {', '.join(failed)}: these bars "
                    "are below the noise of training here."
                )
    return tuple(void)


def _notes(kind: ReferenceKind, references: int, sets: AuditSets) -> tuple[str, ...]:
    notes = []
    if kind == "short":
        notes.append(
            "No retrained model was there. The reference is a model trained for a short time on "
            "the retained studies alone. It never saw the forgotten ones, but is weaker on "
            "everybody: levels are not compared, only the lead over unseen people."
        )
    else:
        notes.append(f"Fully retrained models without the studies, as reference: {references}.")
    if references == 1:
        notes.append("With one reference the run-to-run noise of training is not known.")
    persons = len({s.person for s in sets.forget})
    notes.append(
        f"Forgotten persons: {persons}; unseen persons they are compared with: "
        f"{len({s.person for s in sets.test})}."
    )
    return tuple(notes)
