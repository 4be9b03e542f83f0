"""The sections of an audit report, each from the audit's JSON to HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from segunlearn.audit import plots
from segunlearn.audit.policy import NAMES, SOURCES
from segunlearn.audit.report_texts import (
    FAILED,
    GLOSSARY,
    HEADLINES,
    LEVELS,
    MODELS,
    OUTCOMES,
    SETS,
    STATES,
    TRAININGS,
    UNCLEAR,
)

#: More forgotten studies than this, and their plot is folded away.
_MANY_STUDIES = 24
_NAMED = (
    "Names that may be of a person are pseudonyms in these paths; on the machine itself "
    "<code>segunlearn audit where PATH</code> tells the file."
)


def text(value: object) -> str:
    """Escape."""
    return html.escape(str(value))


def verdict(result: Mapping[str, Any]) -> str:
    """Say first what came out, why, and what to do."""
    said = result["verdict"]
    outcome, one = said["outcome"], result["sets"]["forget"]["studies"] == 1
    rows = {"Reached": LEVELS[said["reached"]], "Needed": LEVELS[said["needed"]]}
    void = ""
    if result["void"]:
        void = f"<h3>The audit itself is void</h3>{_list(result['void'])}"
    headline, reasons = outcome, list(said["reasons"])
    if outcome == "passed" and said["reached"] == "hidden":  # passed, and yet some may have failed
        headline = "hidden"
        reasons += [
            f["words"]
            for f in result["findings"]
            if f["outcome"] == "fail" and f["level"] != "none"
        ]
    plain = [r for r in _plain(result, reasons) if r not in result["void"]]
    exact = [r for r in reasons if r not in result["void"] and r not in plain]
    return (
        f"<h1>Audit report · forgetting studies in a segmentation model · "
        f"{text(result['created'][:16].replace('T', ' '))} UTC</h1>"
        f'<div class="verdict {text(outcome)}">'
        f"<strong>{text(HEADLINES[headline][0 if one else 1])}</strong>{void}"
        + (f"<h3>Why</h3>{_list(plain)}" if plain else "")
        + (f"<h3>What to do</h3>{_list(result['advice'])}" if result["advice"] else "")
        + _pairs(rows)
        + _fold(f"The figures behind it ({len(exact)})", _list(exact))
        + "</div>"
    )


def _plain(result: Mapping[str, Any], reasons: Sequence[str]) -> list[str]:
    """Say reasons without figures, each once."""
    by_words = {f["words"]: f for f in result["findings"]}
    found = []
    for reason in reasons:
        finding = by_words.get(reason)
        if finding is None:
            found.append(reason)
        elif finding["outcome"] == "fail":
            below = finding["value"] is not None and finding["value"] < 0
            above, under = FAILED.get(finding["name"], ("", ""))
            found.append((under if below else above) or above or under or reason)
        elif finding["bar"] is None and finding["name"] == "relearning":
            found.append("There is no second study that an attack by relearning could bring back.")
        else:
            name = finding["name"]
            found.append(UNCLEAR.get(name) or f"{NAMES[name]}: it cannot be told from chance.")
    return list(dict.fromkeys(found))


def asked(result: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """Show what the request said."""
    forget = result["sets"]["forget"]
    rows = {"To forget": f"studies: {forget['studies']}; persons: {forget['persons']}"}
    if result["class_mode"] is not None:
        rows["Structure withdrawn"] = result["class_mode"]["label"]
    return f"<h2>What was asked</h2>{_pairs(rows | dict(said))}"


def done(result: Mapping[str, Any]) -> str:
    """Show what was done to the model, and how it was audited."""
    origin = result["provenance"]
    rows = {"Method": origin["method"].replace("_", " ") or "not said"}
    if origin["parameters"]:
        settings = (f"{k.replace('_', ' ')} {v}" for k, v in sorted(origin["parameters"].items()))
        rows["Its settings"] = ", ".join(settings)
    if origin["read"]:
        rows["Studies it read"] = ", ".join(
            f"{n} {SETS.get(k, k)}" for k, n in origin["read"].items()
        )
    return f"<h2>What was done</h2>{_pairs(rows)}{_list(result['notes'])}"


def places(result: Mapping[str, Any]) -> str:
    """List where the studies may still be, open places first."""
    found = result["places"]
    heading = "<h2>Where the study may still be</h2>"
    if not found:
        return (
            f"{heading}<p>Places outside the model (caches, checkpoints, exports, logs) were not "
            "searched in this audit.</p>"
        )
    still = [p for p in found if p["state"] in ("open", "sealed")]
    clear = [p for p in found if p["state"] not in ("open", "sealed")]
    count = sum(p["state"] == "open" for p in found)
    words = f"{count} of {len(found)} places looked at still hold it, or may." if count else ""
    words = words or f"None of {len(found)} places looked at holds it openly."
    return (
        f"{heading}<p>{words} Copies outside this installation cannot be looked at.</p>"
        + (f"{_place_table(still)}<p>{_NAMED}</p>" if still else "")
        + _fold(f"Places where it is not ({len(clear)})", _place_table(clear) if clear else "")
    )


def _place_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return (
        '<table class="rows"><thead><tr><th>Place</th><th>State</th><th>Path</th>'
        "<th>In words</th></tr></thead><tbody>"
        + "".join(
            f"<tr><td><b>{text(p['kind'].capitalize())}</b></td>"
            f'<td><span class="tag {text(p["state"])}">{text(STATES[p["state"]])}</span></td>'
            f'<td class="where"><code>{text(_where(p))}</code></td>'
            f'<td class="say">{text(p["words"][:1].upper() + p["words"][1:])}</td></tr>'
            for p in rows
        )
        + "</tbody></table>"
    )


def _where(place: Mapping[str, Any]) -> str:
    return "the whole home folder" if place["where"] == "." else str(place["where"])


def measures(result: Mapping[str, Any]) -> str:
    """Show each measure with its bar; what does not decide is folded away."""
    deciding = [
        f for f in result["findings"] if f["outcome"] != "reported" and f["level"] != "none"
    ]
    others = [f for f in result["findings"] if f["outcome"] == "reported"]
    kind = result["verdict"]["reference"]
    more = (
        "<p>These do not decide: a model that never saw the people does not pass them either, or "
        "no model can. Each is given beside the reference's own figure.</p>" + _figure_table(others)
    )
    return (
        "<h2>What was measured</h2><p>Every figure is a difference to a model that never saw the "
        "forgotten people, or is shown beside it. Words are explained at the end of the page.</p>"
        + _finding_table(deciding, kind)
        + (_fold(f"Further figures ({len(others)})", more) if others else "")
    )


def _finding_table(findings: Sequence[Mapping[str, Any]], kind: str) -> str:
    rows = []
    for f in findings:
        source = SOURCES.get(_bar_of(f["name"], kind), "")
        bars = source and f["bar"] is not None
        source = f'<div class="source">Bar: {text(source)}.</div>' if bars else ""
        power = ""
        if f["detectable"] is not None:
            unit = "AUC" if "membership" in f["name"] else "Dice"
            shown = f"{unit} {f['detectable']:.2f}"
            if f["detectable"] >= 1:
                shown = "none, there are too few people"
            power = f'<div class="source">Smallest leak this could have shown: {shown}.</div>'
        rows.append(
            f"<tr><td><b>{text(NAMES[f['name']])}</b></td>"
            f'<td><span class="tag {text(f["outcome"])}">{text(OUTCOMES[f["outcome"]])}</span>'
            f"</td>{_cell('figure', f['value'])}{_bar(f)}"
            f"{_cell('noise', f['noise'] or None)}"
            f'<td class="say">{text(f["words"])}{power}{source}</td></tr>'
        )
    return (
        '<table class="rows"><thead><tr><th>Measure</th><th>Outcome</th><th>Figure</th>'
        "<th>Bar</th><th>Noise</th><th>In words</th></tr></thead><tbody>"
        + "".join(rows)
        + "</tbody></table>"
    )


def _figure_table(findings: Sequence[Mapping[str, Any]]) -> str:
    return (
        '<table class="rows"><thead><tr><th>Measure</th><th>Figure</th><th>In words</th></tr>'
        "</thead><tbody>"
        + "".join(
            f"<tr><td><b>{text(NAMES[f['name']])}</b></td>{_cell('figure', f['value'])}"
            f'<td class="say">{text(f["words"])}</td></tr>'
            for f in findings
        )
        + "</tbody></table>"
    )


def _bar_of(name: str, kind: str) -> str:
    """Name of the policy's bar that a measure was held against."""
    if kind == "short" and f"{name}_short" in SOURCES:
        return f"{name}_short"
    own = {"structure_membership": "membership", "artefacts": "gap_excess"}
    return {**own, "class_mode": "class_divergence"}.get(name, name)


def _cell(name: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return '<td class="n none">–</td>'
    return f'<td class="n" data-name="{name}">{sign}{value:.3f}</td>'


def _bar(finding: Mapping[str, Any]) -> str:
    name, bar = finding["name"], finding["bar"]
    if bar is not None and name == "calibrated_membership":
        return f'<td class="n" data-name="bar">{1 - bar:.2f} to {bar:.2f}</td>'
    if name == "unseen_quality":
        return _cell("bar", bar, "≥ ")
    both = ("forget_level", "gap_excess", "membership", "structure_membership")
    return _cell("bar", bar, "± " if name in both else "≤ ")


def structure(result: Mapping[str, Any]) -> str:
    """Show a withdrawn structure: what the model says of its voxels now."""
    found = result["class_mode"]
    if found is None:
        return ""
    svg = plots.class_row(found)
    return (
        f"<h2>The withdrawn structure</h2><p>What the model says where the expert drew "
        f"{text(found['label'])}. It should say what a model says that was never taught "
        f"{text(found['label'])}, which is not always background.</p>"
        + _plot("", svg, "Mean probability of each structure on these voxels.", "narrow")
    )


def restored(result: Mapping[str, Any]) -> str:
    """Show whether the restored model is the original."""
    found = result["reversibility"]
    if found is None:
        return ""
    words = next(f["words"] for f in result["findings"] if f["name"] == "reversibility")
    tag = '<span class="tag pass">the original is back</span>'
    if not found["holds"]:
        tag = '<span class="tag fail">it is not the original</span>'
    return (
        "<h2>The restored model</h2><p>While a request can still be appealed, the old model can be "
        "brought back from a sealed deposit. It was brought back here, and compared on "
        f"{found['studies']} studies.</p><p>{tag} {text(words)}</p>"
    )


def cost(result: Mapping[str, Any]) -> str:
    """Show what it cost, beside training without the studies."""
    mine, rows = result["provenance"]["cpu_seconds"], {}
    if mine is not None:
        rows["Making the model forget"] = f"{mine:.0f} CPU seconds"
    known = result["cost"] or {"references": {}, "times": {}}
    for name, seconds in known["references"].items():
        label = TRAININGS.get(name, name.replace("_", " "))
        rows[label[:1].upper() + label[1:]] = f"{seconds:.0f} CPU seconds" + (
            f", {known['times'][name]:.1f} times as much" if name in known["times"] else ""
        )
    memory = result["peak_memory_mib"]
    rows["This audit (its last run)"] = f"{result['cpu_seconds']:.0f} CPU seconds" + (
        "" if memory is None else f", at most {memory:.0f} MiB of memory"
    )
    return f"<h2>What it cost</h2>{_pairs(rows)}"


def figures(result: Mapping[str, Any], pictures: Sequence[Mapping[str, Any]]) -> str:
    """Show the plots."""
    drawn = result["figures"]
    single = plots.relearns_itself(drawn)
    parts = [
        _plot(
            "Losses",
            plots.loss_distributions(drawn),
            "How badly the model does on each study. Forgotten studies (colour) should lie among "
            "unseen ones (grey), neither left of them (remembered) nor right of them (recognisable "
            "by being worse).",
            "panels",
        ),
        _plot(
            "Telling forgotten from unseen people",
            plots.roc(drawn),
            "The nearer to the dotted line, the less an attacker gains.",
            "narrow",
        ),
        _plot(
            "Relearning",
            plots.relearning(drawn),
            "An attacker trains the model on with the one forgotten study. Where it comes back in "
            "fewer steps than to the never-seen reference, the memory was near."
            if single
            else "An attacker trains the model on with some forgotten studies. If the others rise "
            "above the never-seen reference, the memory was only covered. A dot: the attacker was "
            "there at the start.",
            "panels",
        ),
    ]
    each = _plot(
        "Each forgotten study",
        plots.dice_before_and_after(drawn),
        "Dice before and after; the bar marks what a model reaches that never saw the study.",
        "wide",
    )
    many = len(drawn["original"]["forget"])
    parts.append(_fold(f"Each forgotten study ({many})", each) if many > _MANY_STUDIES else each)
    parts.append(_plot("Pictures", plots.slices(pictures), "Forgotten studies.", "scroll"))
    return f"<h2>Plots</h2>{''.join(parts)}"


def _plot(title: str, svg: str, caption: str, kind: str = "") -> str:
    if not svg:
        return ""
    label = text(title or caption)
    svg = svg.replace('role="img"', f'role="img" aria-label="{label}"', 1)
    heading = f"<h3>{text(title)}</h3>" if title else ""
    return (
        f'<div class="plot">{heading}<figure class="{kind}">{svg}</figure>'
        f"<figcaption>{text(caption)}</figcaption></div>"
    )


def not_proved(result: Mapping[str, Any]) -> str:
    """Say what the audit does not show."""
    return f"<h2>What is not proved</h2>{_list(result['not_proved'])}"


def glossary() -> str:
    """Explain the words."""
    rows = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in GLOSSARY.items())
    return f'<h2>What the words mean</h2><dl class="words">{rows}</dl>'


def record(result: Mapping[str, Any]) -> str:
    """Name models, sets and versions exactly."""
    digests = {MODELS.get(k, k.replace("-", " ")): v for k, v in result["digests"].items()}
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    sizes = "; ".join(
        f"{SETS[name]} {v['studies']} (persons: {v['persons']})"
        for name, v in result["sets"].items()
    )
    rows = "".join(f"<dt>{text(k)}</dt><dd><code>{text(v)}</code></dd>" for k, v in digests.items())
    return (
        f'<h2>For the record</h2><p class="small">SHA-256 of the weights:</p><dl>{rows}</dl>'
        f'<p class="small">Studies: {text(sizes)}.<br>Versions: {text(versions)}.<br>'
        "Studies are named by keyed pseudonyms; only this site's key links them to patients.</p>"
    )


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(i)}</li>" for i in items) + "</ul>" if items else ""


def _pairs(rows: Mapping[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in rows.items()) + "</dl>"
    )


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{text(title)}</summary>{body}</details>" if body else ""
