"""One audit from end to end: measure every model, judge, draw the verdict, write it down.

Series and persons are replaced by pseudonyms before anything is measured: no identifier can reach
a file.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from torch import nn

from segunlearn.audit.class_mode import compare_classes
from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.judge import judge
from segunlearn.audit.measurements import Measurements
from segunlearn.audit.notes import NOT_PROVED, advice, notes, void
from segunlearn.audit.policy import Finding, Outcome, ReferenceKind, Verdict, verdict
from segunlearn.audit.reversibility import LOGIT_BAR
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AuditSettings
from segunlearn.audit.sweep import Place
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.errors import IntegrityError
from segunlearn.records.durable import read_json, write_json_durably
from segunlearn.unlearning.loop import Cancel, Report, never, no_report

#: Of the result's JSON; a reader refuses others.
FORMAT: Final = 1


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
    advice
        What to do next.
    peak_memory_mib
        Largest memory of the process until the audit ended.
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
    advice: tuple[str, ...] = ()
    peak_memory_mib: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, sorted by meaning."""
        return {
            "format": FORMAT,
            "created": self.created,
            "verdict": self.verdict.to_json(),
            "findings": [f.to_json() for f in self.findings],
            "void": list(self.void),
            "notes": list(self.notes),
            "not_proved": list(NOT_PROVED),
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
            "advice": list(self.advice),
            "peak_memory_mib": self.peak_memory_mib,
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
    measured = Measurements(run_dir, hidden, settings, report, cancel, withdrawn=withdrawn)
    if not references:
        kind, references = "short", [measured.short_reference()]
    models = {"candidate": candidate, "original": original}
    models |= {f"reference-{i + 1}": r for i, r in enumerate(references)}
    figures = measured.all(models, then=1 if restored is None else 2)
    theirs = [figures[f"reference-{i + 1}"] for i in range(len(references))]
    distances = measured.distances("reference-1", references[0])

    def judged(figures_of: ModelFigures, against: Sequence[ModelFigures]) -> list[Finding]:
        return judge(
            figures_of,
            figures["original"],
            against,
            kind,
            settings.policy,
            settings.relearning,
            distances,
        )

    findings = judged(figures["candidate"], theirs)
    back = None if restored is None else measured.restored(restored)
    if back is not None:
        findings.append(_restored(back))
    reasons = void(judged(figures["original"], theirs), theirs, judged)
    conclusion = verdict(
        findings,
        settings.policy,
        needed=settings.needed,
        reference=kind,
        exact=provenance.exact,
        void=reasons,
    )
    mine = figures["candidate"].withdrawn
    structure = None
    if mine is not None:
        held = [t.withdrawn for t in theirs if t.withdrawn is not None]
        structure = compare_classes(mine, held).to_json() | {"labels": list(sets.config.labels)}
    result = AuditResult(
        verdict=conclusion,
        findings=tuple(findings),
        figures=figures,
        digests=measured.digests,
        void=reasons,
        notes=notes(kind, len(references), hidden, withdrawn),
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
        cost=_cost(provenance.cpu_seconds, reference_cost, measured.reference_seconds),
        class_mode=structure,
        reversibility=back,
        advice=advice(conclusion, hidden, settings.policy, places),
        peak_memory_mib=_peak_memory_mib(),
    )
    write_json_durably(run_dir / "audit.json", result.to_json())
    return result


def _cost(
    candidate: float | None, given: Mapping[str, float] | None, short: float | None
) -> dict[str, Any] | None:
    """CPU seconds of trainings without S, and how many times the candidate's they are."""
    known = ({} if short is None else {"short": short}) | dict(given or {})
    if not known:
        return None
    times = {k: v / candidate for k, v in known.items()} if candidate else {}
    return {"cpu_seconds": candidate, "references": known, "times": times}


def _restored(found: Mapping[str, Any]) -> Finding:
    difference, same = found["largest_difference"], found["equal_voxels"]
    share = "100 %" if same == 1 else f"{same:.4%}"
    words = (
        f"Restored, the model gives {share} of the voxels the structure that the original did; "
        + (
            "its outputs are no numbers"
            if difference is None
            else f"its outputs differ by at most {difference:.0e}"
            if difference
            else "its outputs do not differ"
        )
        + f" (they may by {LOGIT_BAR:.0e}; every voxel must agree). "
        + ("Its weights are the original's to the bit." if found["same_weights"] else "")
    )
    outcome: Outcome = "pass" if found["holds"] else "fail"
    return Finding(
        "reversibility", "none", outcome, difference, LOGIT_BAR, 0.0, None, None, words.strip()
    )


def _peak_memory_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / (2**20 if sys.platform == "darwin" else 2**10))
