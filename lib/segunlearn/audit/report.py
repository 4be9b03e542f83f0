"""The audit report: one HTML page for a data-protection officer, complete in itself.

It is made from the audit's JSON alone, asks the network for nothing, and holds no name, no UID and
no pixel unless pictures are handed in.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from segunlearn.audit import plots
from segunlearn.audit.policy import SOURCES
from segunlearn.audit.sets import AuditSets
from segunlearn.errors import InvalidInputError
from segunlearn.records.durable import write_durably
from segunlearn.unlearning.loop import log_probabilities
from segunlearn.unlearning.sets import cut_to_patch

_LEVELS: Final = {
    "none": "no level",
    "hidden": "hidden: the outputs no longer show the studies, but whoever has the weights may "
    "bring them back",
    "unlearned": "unlearned: neither the outputs nor the attacks tried here find more of the "
    "studies than in a model that never saw them",
    "retrained": "retrained: by the ledger, the model was trained again without the studies",
}

_HEADLINES: Final = {
    "passed": "The studies are gone, as far as it was asked and can be measured.",
    "refused": "Refused: the model still knows the studies, or was damaged.",
    "inconclusive": "It cannot be said whether the studies are gone.",
}

_NAMES: Final = {
    "unseen_quality": "Quality on unseen people",
    "forget_level": "Level on the forgotten people",
    "gap_excess": "Lead of the forgotten over unseen people",
    "worst_person": "Best remembered person",
    "membership": "Membership, by loss",
    "structure_membership": "Membership, by overlap",
    "calibrated_membership": "Membership, difficulty taken out",
    "relearning": "Relearning attack",
    "distillation": "Distillation attack",
    "artefacts": "Rounded and stripped weights",
    "collateral": "Worst-off unseen people",
    "retained": "Retained people",
    "recovery": "Adversarial recovery",
    "two_versions": "Two versions compared",
}

_OUTCOMES: Final = {
    "pass": "within its bar",
    "fail": "over its bar",
    "unclear": "unclear",
    "reported": "reported only",
}

_STYLE: Final = """
:root{--ink:#22262c;--soft:#5b636e;--line:#d9dde3;--paper:#fff;--wash:#f5f6f8}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:var(--wash);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:56rem;margin:0 auto;padding:1.5rem 1.25rem 4rem;background:var(--paper)}
h1{font-size:1.05rem;margin:0;color:var(--soft);font-weight:600}
h2{font-size:1.25rem;margin:2.4rem 0 .6rem}
h3{font-size:1rem;margin:1.6rem 0 .3rem}
p{margin:.5rem 0;max-width:46rem}
.verdict{border-left:.5rem solid;padding:.9rem 1.1rem;margin:1rem 0 0;background:var(--wash)}
.verdict strong{display:block;font-size:1.45rem;line-height:1.3}
.passed{border-color:#0b6e4f}.refused{border-color:#b3261e}.inconclusive{border-color:#b7791f}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;vertical-align:top;padding:.5rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.tag{display:inline-block;padding:.05rem .5rem;border-radius:1rem;font-size:.85rem;
 white-space:nowrap;border:1px solid}
.pass{color:#0b6e4f}.fail{color:#b3261e}.unclear{color:#8a5a00}.reported{color:var(--soft)}
.source,.small{color:var(--soft);font-size:.87rem}
figure{margin:.8rem 0 0}
figure svg{width:100%;height:auto;display:block}
figure.narrow{max-width:30rem}
figcaption{color:var(--soft);font-size:.87rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;margin:.6rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
code{font:.87em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
li{margin:.3rem 0;max-width:46rem}
@media (max-width:40rem){
 main{padding:1rem 1rem 3rem}
 dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}
 .findings thead{display:none}
 .findings tr{display:block;border-bottom:1px solid var(--line);padding:.7rem 0}
 .findings td{display:block;border:0;padding:.1rem 0}
 .findings td.n{display:inline-block;padding-right:1rem}.findings td.none{display:none}
 .findings td[data-name]::before{content:attr(data-name) ": ";color:var(--soft)}
 .scroll{overflow-x:auto}.scroll:not(.narrow) svg{min-width:34rem}
}
@media print{
 body{background:#fff;font-size:10.5pt}main{max-width:none;padding:0}
 tr,figure,.verdict{break-inside:avoid}h2,h3{break-after:avoid}
}
"""


def html_report(
    result: Mapping[str, Any],
    *,
    asked: Mapping[str, str] | None = None,
    pictures: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render an audit's JSON as one page.

    Parameters
    ----------
    result
        ``AuditResult.to_json()`` or ``run.read_result``.
    asked
        What the request said: heading to text, e.g. ``{"Reason": "consent withdrawn"}``.
        Identifiers must be pseudonyms already.
    pictures
        Of ``middle_slices``; only where an administrator asked for images of patients.

    Raises
    ------
    InvalidInputError
        The JSON lacks a part of an audit.
    """
    try:
        parts = (
            _verdict(result),
            _asked(result, asked or {}),
            _done(result),
            _measures(result),
            _plots(result, pictures),
            _not_proved(result),
            _details(result),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise InvalidInputError(
            f"the audit's JSON cannot be shown: {error!r} is missing or wrong."
        ) from error
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f"<title>Audit report: {_text(result['verdict']['outcome'])}</title>"
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def write_report(path: Path, result: Mapping[str, Any], **options: Any) -> None:
    """Write ``html_report`` beside and rename."""
    write_durably(path, html_report(result, **options).encode("utf-8"))


def middle_slices(
    candidate: nn.Module,
    original: nn.Module,
    reference: nn.Module,
    sets: AuditSets,
    count: int = 4,
) -> list[dict[str, Any]]:
    """Pictures of the first forgotten studies: pixels of patients, for administrators only.

    Parameters
    ----------
    sets
        With pseudonyms (``AuditSets.pseudonymised``): their series names are printed.
    """
    studies = [cut_to_patch(s, sets.config) for s in sets.forget[:count]]
    names = {"candidate": candidate, "original": original, "reference": reference}
    masks = {
        name: [p.argmax(dim=0).numpy() for p in log_probabilities(network, studies, sets.config)]
        for name, network in names.items()
    }
    pictures = []
    for i, study in enumerate(studies):
        label = study.label.numpy()
        axis = sets.config.slice_axis
        if axis is None:
            axis = 2
        areas = (label > 0).sum(axis=tuple(a for a in range(3) if a != axis))
        at = int(np.argmax(areas))
        picture: dict[str, Any] = {
            "name": study.series,
            "image": np.take(study.image[0].numpy(), at, axis),
            "label": np.take(label, at, axis),
        }
        picture |= {name: np.take(m[i], at, axis) for name, m in masks.items()}
        pictures.append(picture)
    return pictures


def _text(value: object) -> str:
    return html.escape(str(value))


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(i)}</li>" for i in items) + "</ul>" if items else ""


def _verdict(result: Mapping[str, Any]) -> str:
    verdict = result["verdict"]
    outcome = verdict["outcome"]
    reasons = _list(verdict["reasons"])
    return (
        f"<h1>Audit report · forgetting studies in a segmentation model · "
        f"{_text(result['created'][:16].replace('T', ' '))} UTC</h1>"
        f'<div class="verdict {_text(outcome)}"><strong>{_text(_HEADLINES[outcome])}</strong>'
        f"<p>Reached: {_text(_LEVELS[verdict['reached']])}.<br>"
        f"Needed: {_text(_LEVELS[verdict['needed']])}.</p>"
        + (f"<p>Why it is not more:</p>{reasons}" if reasons else "")
        + "</div>"
        + (f"<h2>The audit itself is void</h2>{_list(result['void'])}" if result["void"] else "")
    )


def _asked(result: Mapping[str, Any], asked: Mapping[str, str]) -> str:
    forget = result["sets"]["forget"]
    rows = {"To forget": f"studies: {forget['studies']}; persons: {forget['persons']}", **asked}
    return f"<h2>What was asked</h2>{_pairs(rows)}"


def _done(result: Mapping[str, Any]) -> str:
    origin = result["provenance"]
    rows = {"Method": origin["method"].replace("_", " ") or "not said"}
    if origin["cpu_seconds"] is not None:
        rows["Cost"] = f"{origin['cpu_seconds']:.0f} CPU seconds"
    if origin["read"]:
        rows["Studies read"] = ", ".join(f"{n} of {k}" for k, n in origin["read"].items())
    rows["Audit"] = f"{result['cpu_seconds']:.0f} CPU seconds"
    return f"<h2>What was done</h2>{_pairs(rows)}{_list(result['notes'])}"


def _pairs(rows: Mapping[str, str]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in rows.items())
        + "</dl>"
    )


def _measures(result: Mapping[str, Any]) -> str:
    rows = []
    for f in result["findings"]:
        source = SOURCES.get(f["name"].removeprefix("structure_"), "")
        source = f'<div class="source">Bar: {_text(source)}.</div>' if source else ""
        power = ""
        if f["detectable"] is not None:
            power = (
                f'<div class="source">Smallest leak this could have shown: {f["detectable"]:.2f}.'
                "</div>"
            )
        rows.append(
            f"<tr><td><b>{_text(_NAMES.get(f['name'], f['name']))}</b></td>"
            f'<td><span class="tag {_text(f["outcome"])}">{_text(_OUTCOMES[f["outcome"]])}</span>'
            f"</td>{_cell('figure', f['value'])}{_cell('bar', f['bar'])}"
            f"{_cell('noise', f['noise'] or None)}"
            f"<td>{_text(f['words'])}{power}{source}</td></tr>"
        )
    return (
        "<h2>What was measured</h2><p>Every figure is a difference to a model that never saw the "
        "forgotten people, or is shown beside it. <i>Dice</i> says how well a mask agrees with the "
        "annotation: 0 not at all, 1 perfectly. <i>AUC</i> says how well an attacker tells "
        "forgotten from unseen people: 0.5 is guessing, and far below 0.5 gives them away as well."
        "</p>"
        '<table class="findings"><thead><tr><th>Measure</th><th>Outcome</th><th>Figure</th>'
        "<th>Bar</th><th>Noise</th><th>In words</th></tr></thead><tbody>"
        + "".join(rows)
        + "</tbody></table>"
    )


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return '<td class="n none">–</td>'
    return f'<td class="n" data-name="{name}">{value:.3f}</td>'


def _plots(result: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> str:
    figures = result["figures"]
    drawn = (
        (
            "Losses",
            plots.loss_distributions(figures),
            "Forgotten studies (colour) should lie among unseen ones (grey), neither left of them "
            "(remembered) nor right of them (recognisable by being worse).",
            "",
        ),
        (
            "Telling forgotten from unseen people",
            plots.roc(figures),
            "The nearer to the dotted line, the less an attacker gains.",
            "narrow",
        ),
        (
            "Relearning",
            plots.relearning(figures),
            "An attacker fine-tunes on some forgotten people. If the others rise above the "
            "never-seen reference, the memory was only covered. A dot: the attacker was there at "
            "the start.",
            "",
        ),
        (
            "Each forgotten study",
            plots.dice_before_and_after(figures),
            "Dice before and after; the bar marks what a model reaches that never saw the study.",
            "",
        ),
        ("Pictures", plots.slices(pictures), "Forgotten studies, largest slice.", ""),
    )
    body = "".join(
        f'<h3>{title}</h3><figure class="scroll {kind}">{svg}</figure>'
        f"<figcaption>{caption}</figcaption>"
        for title, svg, caption, kind in drawn
        if svg
    )
    return f"<h2>Plots</h2>{body}"


def _not_proved(result: Mapping[str, Any]) -> str:
    return f"<h2>What is not proved</h2>{_list(result['not_proved'])}"


def _details(result: Mapping[str, Any]) -> str:
    rows = {k.replace("-", " "): v for k, v in result["digests"].items()}
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    sizes = "; ".join(
        f"{name} {v['studies']} studies of {v['persons']} persons"
        for name, v in result["sets"].items()
    )
    return (
        "<h2>For the record</h2><p class=small>SHA-256 of the weights:</p><dl>"
        + "".join(f"<dt>{_text(k)}</dt><dd><code>{_text(v)}</code></dd>" for k, v in rows.items())
        + f'</dl><p class="small">Sets: {_text(sizes)}.<br>Versions: {_text(versions)}.<br>'
        "Studies are named by keyed pseudonyms; only this site's key links them to patients.</p>"
    )
