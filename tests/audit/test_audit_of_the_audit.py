"""The audit is audited: models with a known fault must be refused for it, a retrained one pass.

One tiny task, real training, the whole of ``run_audit``. The bars are this task's own: training it
again from another seed moves S - T by 0.03, ten times more than on the people whose bars are the
policy's defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

import memorising_task as task
import unlearning_culprits as culprits
from segunlearn.audit.distillation import DistillationSettings
from segunlearn.audit.policy import Policy
from segunlearn.audit.relearning import RelearningSettings
from segunlearn.audit.run import AuditResult, Provenance, run_audit
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AuditSettings
from segunlearn.dicom.identifiers import Pseudonyms

pytestmark = pytest.mark.slow

POLICY = Policy(
    unseen_quality=-0.04,
    forget_level=0.06,
    gap_excess=0.06,
    worst_person=0.15,
    membership=0.25,
    relearning=0.06,
    distillation=0.04,
)
SETTINGS = AuditSettings(
    policy=POLICY,
    relearning=RelearningSettings(people=(2, 4), rates=(1e-3, 3e-3), steps=16, every=2),
    distillation=DistillationSettings(steps=100),
)
SETS = AuditSets(task.CONFIG, task.FORGET, task.RETAIN, task.CALIBRATION, task.TEST)
REFERENCES = (1, 2)
LEFT_OUT = 3

CANDIDATES: dict[str, Callable[[], nn.Module]] = {
    "original": task.original,
    "left out": lambda: task.retrained(LEFT_OUT),
    "over-forgotten": lambda: culprits.over_forgotten(task.retrained(LEFT_OUT)),
    "damaged": lambda: culprits.damaged(task.retrained(LEFT_OUT)),
    "suppressed by LoRA": lambda: culprits.suppressed_by_lora(task.original()),
    "last layer": lambda: culprits.suppressed_in_the_last_layer(task.original()),
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], AuditResult]:
    """Audit of a candidate; the figures of original and references are measured once."""
    run_dir = tmp_path_factory.mktemp("audit")

    @functools.cache
    def audit(name: str) -> AuditResult:
        return run_audit(
            CANDIDATES[name](),
            task.original(),
            [task.retrained(s) for s in REFERENCES],
            SETS,
            SETTINGS,
            run_dir=run_dir,
            pseudonyms=Pseudonyms(bytes(32)),
        )

    return audit


def outcomes(result: AuditResult) -> dict[str, str]:
    return {f.name: f.outcome for f in result.findings}


def test_the_original_is_refused_by_every_measure_of_memory(
    audited: Callable[[str], AuditResult],
) -> None:
    result = audited("original")
    assert (result.verdict.outcome, result.verdict.reached) == ("refused", "none")
    found = outcomes(result)
    for name in ("gap_excess", "worst_person", "membership", "calibrated_membership", "relearning"):
        assert found[name] == "fail", name
    assert result.void == ()


def test_a_left_out_retrained_model_passes(audited: Callable[[str], AuditResult]) -> None:
    result = audited("left out")
    assert (result.verdict.outcome, result.verdict.reached) == ("passed", "unlearned")
    assert set(outcomes(result).values()) == {"pass", "reported"}


def test_over_forgetting_is_refused(audited: Callable[[str], AuditResult]) -> None:
    result = audited("over-forgotten")
    assert result.verdict.outcome == "refused"
    found = outcomes(result)
    assert found["gap_excess"] == found["membership"] == found["calibrated_membership"] == "fail"
    excess = next(f.value for f in result.findings if f.name == "gap_excess")
    assert excess is not None
    assert excess < -0.15  # S fell, and not everybody with it
    assert any("treated worse" in reason for reason in result.verdict.reasons)


def test_damage_on_unseen_people_is_refused(audited: Callable[[str], AuditResult]) -> None:
    result = audited("damaged")
    assert result.verdict.outcome == "refused"
    assert outcomes(result)["unseen_quality"] == "fail"
    assert any("On unseen people" in reason for reason in result.verdict.reasons)


@pytest.mark.parametrize("name", ["suppressed by LoRA", "last layer"])
def test_suppression_on_intact_weights_is_refused_for_relearning(
    audited: Callable[[str], AuditResult], name: str
) -> None:
    result = audited(name)
    assert result.verdict.outcome == "refused"
    assert outcomes(result)["relearning"] == "fail"
    assert any("After fine-tuning" in reason for reason in result.verdict.reasons)


def test_output_measures_alone_would_have_let_the_suppressed_model_through(
    audited: Callable[[str], AuditResult],
) -> None:
    """Why relearning is there: gap and membership look clean, the memory is whole."""
    found = outcomes(audited("suppressed by LoRA"))
    assert found["gap_excess"] == found["membership"] == found["calibrated_membership"] == "pass"


def test_exactness_is_taken_from_the_ledger_and_not_from_the_figures(
    audited: Callable[[str], AuditResult], tmp_path: Path
) -> None:
    """The same figures reach one level more when the ledger shows a training without S."""
    settings = dataclasses.replace(SETTINGS, attacks=(), needed="retrained")
    models = (
        task.retrained(LEFT_OUT),
        task.original(),
        [task.retrained(s) for s in REFERENCES],
        SETS,
        settings,
    )
    for exact, expected in ((True, ("passed", "retrained")), (False, ("inconclusive", "hidden"))):
        result = run_audit(
            *models,
            run_dir=tmp_path,
            pseudonyms=Pseudonyms(bytes(32)),
            provenance=Provenance("retrain", exact),
        )
        assert (result.verdict.outcome, result.verdict.reached) == expected
    assert "Relearning attack: was not measured." in result.verdict.reasons


def test_no_identifier_reaches_a_file(
    audited: Callable[[str], AuditResult], tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = audited("left out")
    written = list(tmp_path_factory.getbasetemp().glob("audit*/*.json"))
    assert len(written) >= 4 * 4
    text = "".join(p.read_text() for p in written) + json.dumps(result.to_json())
    assert not any(word in text for word in ("person-", "series-", "study-"))
