"""Words and looks of the audit report, for readers who know neither networks nor statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What an assurance level means.
LEVELS: Final[Mapping[str, str]] = {
    "none": "no level",
    "hidden": "hidden: the outputs no longer show the studies, but whoever has the weights may "
    "bring them back",
    "unlearned": "unlearned: neither the outputs nor the attacks tried here find more of the "
    "studies than in a model that never saw them",
    "retrained": "retrained: by the ledger, the model was trained again without the studies",
}

#: The verdict in one sentence, for one study and for several; "hidden" where that passed.
HEADLINES: Final[Mapping[str, tuple[str, str]]] = {
    "passed": (
        "The study is gone, as far as it was asked and can be measured.",
        "The studies are gone, as far as it was asked and can be measured.",
    ),
    "hidden": (
        "The outputs no longer show the study; the weights may still hold it.",
        "The outputs no longer show the studies; the weights may still hold them.",
    ),
    "refused": (
        "Refused: the model still knows the study, or was damaged.",
        "Refused: the model still knows the studies, or was damaged.",
    ),
    "inconclusive": (
        "It cannot be said whether the study is gone.",
        "It cannot be said whether the studies are gone.",
    ),
}

#: Of a finding.
OUTCOMES: Final[Mapping[str, str]] = {
    "pass": "within its bar",
    "fail": "outside its bar",
    "unclear": "unclear",
    "reported": "reported only",
}

_BETTER: Final = "It still does better on the forgotten people than a model that never saw them."
_WORSE: Final = (
    "It does worse on the forgotten people than a model that never saw them: they can be "
    "recognised by that."
)
_TOLD: Final = "From its answers one can tell who was to be forgotten."

#: What a failed measure says, for a figure above and below what it should be.
FAILED: Final[Mapping[str, tuple[str, str]]] = {
    "unseen_quality": ("", "It became worse on people whom it was not to forget."),
    "forget_level": (_BETTER, _WORSE),
    "gap_excess": (_BETTER, _WORSE),
    "worst_person": ("At least one forgotten person is still remembered.", ""),
    "membership": (_TOLD, _TOLD),
    "structure_membership": (_TOLD, _TOLD),
    "calibrated_membership": (_TOLD, _TOLD),
    "relearning": (
        "A little more training brings the memory back: it was covered up, not removed.",
        "",
    ),
    "distillation": ("A fresh model that it teaches learns of the forgotten people.", ""),
    "artefacts": (
        "With its weights rounded, or its adapter dropped, it knows the forgotten people again.",
        "",
    ),
    "class_mode": (
        "It still draws the withdrawn structure, or says something else in its place than a "
        "model that was never taught it.",
        "",
    ),
}

#: What an unclear measure says, where it is not that chance reaches as far as the figure.
UNCLEAR: Final[Mapping[str, str]] = {
    "membership": "There are too few people to say whether the forgotten can be recognised.",
    "calibrated_membership": "There are too few people to say whether the forgotten can be "
    "recognised.",
}

#: Of the sets of studies.
SETS: Final[Mapping[str, str]] = {
    "forget": "forgotten",
    "retain": "retained",
    "calibration": "set aside",
    "test": "unseen",
    "replay": "of the generator that replayed",
}

#: Of the models.
MODELS: Final[Mapping[str, str]] = {
    "candidate": "model after",
    "original": "model before",
    "restored": "restored model",
}

#: Of a place that may hold a study.
STATES: Final[Mapping[str, str]] = {
    "open": "still there",
    "sealed": "locked away",
    "replaced": "replaced",
    "absent": "not there",
}

#: Costs of trainings without the studies.
TRAININGS: Final[Mapping[str, str]] = {
    "full": "a full training without the studies",
    "early_stopped": "the same, stopped when it got no better",
    "short": "a short training without the studies",
}

#: Word to meaning, in the order of the alphabet.
GLOSSARY: Final[Mapping[str, str]] = {
    "Adversarial recovery": "an attack that changes the image so little that nobody sees it, until "
    "the model draws its old mask again.",
    "AUC": "how well an attacker tells forgotten from unseen people. 0.5 is guessing, 1 is always "
    "right. Far below 0.5 is as bad: the forgotten are then known by being treated worse.",
    "Bar": "the most that a figure may be. Figures over it refuse the model, unless chance alone "
    "(noise) reaches as far.",
    "CPU seconds": "computing time on one processor core.",
    "Dice": "how well a mask drawn by the model agrees with the expert's: 0 not at all, 1 "
    "perfectly.",
    "Distillation": "an attack that lets the model teach a fresh one, and asks that one about the "
    "forgotten people.",
    "Forgotten people": "those whose studies the model was to forget.",
    "Interval [a, b]": "where the true figure lies in 19 cases of 20; the fewer people, the wider.",
    "Ledger": "this installation's tamper-evident record of who trained what on which studies.",
    "Loss": "how badly the model does on a study; a model does best on those it learnt by heart.",
    "Membership": "whether a study was among those a model was trained on.",
    "Nat": "unit of how far two distributions of probability differ; 0 is not at all.",
    "Noise": "how far two models that never saw the people differ from each other by chance.",
    "Pilot": "a trial on 130 people of a public data set of brain scans (MSD hippocampus), from "
    "which the bars were drawn.",
    "Pseudonym": "a code that stands for a study or person. Only this site's key leads back.",
    "Reference, never-seen": "a model trained without the forgotten people. What it can do on "
    "them, any model may.",
    "Relearning": "an attack that trains the model on for a little while with some of the "
    "forgotten studies, and looks whether the others come back with them. They do, where they "
    "were only covered up.",
    "Retained people": "those the model was trained on and may go on knowing.",
    "Set aside": "studies that no model was trained on and that an attacker may use.",
    "SHA-256": "a fingerprint of a file: another file has another one.",
    "Surface Dice, HD95": "how well the borders of two masks agree: the share that lies within 1 "
    "mm, and the distance in mm that 95 % of the border keeps.",
    "Tug-of-war": "one figure for forgetting and quality together; 1 is as good as the reference.",
    "Unseen people": "those that no model here was trained on.",
    "Weights": "the numbers a model consists of.",
}

STYLE: Final = """
:root{--ink:#22262c;--soft:#5b636e;--line:#d9dde3;--paper:#fff;--wash:#f5f6f8}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:var(--wash);
 font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:56rem;margin:0 auto;padding:1.5rem 1.25rem 4rem;background:var(--paper)}
h1{font-size:1.05rem;margin:0;color:var(--soft);font-weight:600}
h2{font-size:1.25rem;margin:2.4rem 0 .6rem}
h3{font-size:1rem;margin:1.6rem 0 .3rem}
p{margin:.5rem 0;max-width:46rem}
.verdict{border-left:.5rem solid;padding:.9rem 1.1rem;margin:1rem 0 0;background:var(--wash)}
.verdict strong{display:block;font-size:1.45rem;line-height:1.3}
.verdict h3{margin:1rem 0 0}.verdict ul{margin:.3rem 0 0;padding-left:1.2rem}
.verdict dl{margin:.8rem 0 0}
.passed{border-color:#0b6e4f}.refused{border-color:#b3261e}.inconclusive{border-color:#b7791f}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;vertical-align:top;padding:.5rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}
td.say{width:50%}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
td.where{overflow-wrap:anywhere}
.tag{display:inline-block;padding:.05rem .5rem;border-radius:1rem;font-size:.85rem;
 white-space:nowrap;border:1px solid}
.pass,.absent,.replaced{color:#0b6e4f}.fail,.open{color:#b3261e}.unclear,.sealed{color:#8a5a00}
.reported{color:var(--soft)}
.source,.small{color:var(--soft);font-size:.87rem}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--soft);font-weight:600;padding:.3rem 0}
figure{margin:.8rem 0 0}
figure svg{width:100%;height:auto;display:block}
figure.narrow{max-width:30rem}figure.wide{max-width:42rem}
figure.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:.6rem}
figure.panels svg{max-width:30rem}
figcaption{color:var(--soft);font-size:.87rem;max-width:46rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;margin:.6rem 0}
dl.words{grid-template-columns:11rem 1fr}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font:.87em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
li{margin:.3rem 0;max-width:46rem}
@media (max-width:40rem){
 main{padding:1rem 1rem 3rem}
 dl,dl.words{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}
 .rows thead{display:none}
 .rows tr{display:block;border-bottom:1px solid var(--line);padding:.7rem 0}
 .rows td,.rows td.say{display:block;width:auto;border:0;padding:.1rem 0}
 .rows td.n{display:inline-block;padding-right:1rem}.rows td.none{display:none}
 .rows td[data-name]::before{content:attr(data-name) ": ";color:var(--soft)}
 .scroll{overflow-x:auto}.scroll svg{min-width:34rem}
}
@media print{
 html{font-size:12.5px}body{background:#fff}main{max-width:none;padding:0}
 tr,figure,.verdict,.plot,dl:not(.words),dd{break-inside:avoid}
 h2,h3,h2+p,summary,dt{break-after:avoid}summary{list-style:none}
 details::details-content{content-visibility:visible;display:block;block-size:auto}
}
"""
