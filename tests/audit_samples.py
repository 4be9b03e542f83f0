"""Audits of untrained networks: for tests of the machinery and the report, not of figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import memorising_task as task
from segunlearn.audit.distillation import DistillationSettings
from segunlearn.audit.relearning import RelearningSettings
from segunlearn.audit.run import AuditResult, Provenance, run_audit
from segunlearn.audit.sets import AuditSets
from segunlearn.audit.settings import AuditSettings
from segunlearn.audit.sweep import Place
from segunlearn.dicom.identifiers import Pseudonyms
from segunlearn.networks import build_network
from segunlearn.unlearning.retrain import RetrainSettings

PSEUDONYMS = Pseudonyms(bytes(32))
#: Few people and steps: the machinery is tested here, the figures elsewhere.
SETS = AuditSets(task.CONFIG, task.FORGET[:3], task.RETAIN[:6], task.CALIBRATION[:4], task.TEST[:6])
SETTINGS = AuditSettings(
    attacks=("relearning", "distillation", "recovery", "artefacts"),
    relearning=RelearningSettings(people=(1, 2), rates=(1e-3,), steps=2),
    distillation=DistillationSettings(steps=2),
    short_reference=RetrainSettings(epochs=1),
)
CANDIDATE, ORIGINAL, REFERENCE = (build_network(task.CONFIG, s).eval() for s in (1, 2, 3))


def audit(run_dir: Path, **options: Any) -> AuditResult:
    options = {"settings": SETTINGS, "references": [REFERENCE], **options}
    references, settings = options.pop("references"), options.pop("settings")
    return run_audit(
        CANDIDATE,
        ORIGINAL,
        references,
        options.pop("sets", SETS),
        settings,
        run_dir=run_dir,
        pseudonyms=PSEUDONYMS,
        **options,
    )


PLACES = (
    Place("image cache", "cache/ab12", "open", "holds the study's voxels. Remove the file."),
    Place("export", ".", "absent", "no exported model."),
)


def told_everything(run_dir: Path) -> dict[str, Any]:
    """The JSON of an audit of a withdrawn structure that was told all there is to tell."""
    result = audit(
        run_dir,
        settings=dataclasses.replace(SETTINGS, surfaces=True),
        provenance=Provenance("salun", False, {"share": 0.5}, 4.0, {"forget": 3}),
        places=PLACES,
        reference_cost={"full": 20.0, "early_stopped": 10.0},
        withdrawn="lesion",
        restored=ORIGINAL,
    )
    return dict(json.loads(json.dumps(result.to_json())))
