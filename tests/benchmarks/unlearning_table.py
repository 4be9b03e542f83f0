"""Table, bars, plots and result of the unlearning benchmark, from the audits it left behind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from report import ROOT, bar, write

from segunlearn.audit.figures import ModelFigures
from segunlearn.audit.judge import judge
from segunlearn.audit.membership import membership
from segunlearn.audit.policy import Policy, verdict
from segunlearn.audit.relearning import (
    RelearningExcess,
    RelearningSettings,
    relearning_excess,
)
from segunlearn.audit.scores import StudyScore, attack_scores, set_mean
from segunlearn.audit.statistics import by_person
from segunlearn.records.durable import read_json
from segunlearn.unlearning import METHODS

mpl.use("Agg")
from matplotlib import pyplot as plt

#: What is never an answer, only a check of the audit.
FAULTY = ("over-forgotten", "damaged", "suppressed by LoRA", "last layer")
BASELINES = tuple(n for n, m in METHODS.items() if not m.exact)
OURS = ("erode_and_repair", "erode_and_repair_lora")
SETS = {
    "1-person": "1 person", "10-percent": "10 %", "20-percent": "20 %",
    "1-child": "1 child", "2-children": "2 children", "hard": "hard",
}  # fmt: skip
COLUMNS = (
    "S", "R", "T", "S_iou", "R_iou", "T_iou", "dS", "dT", "gap_excess", "worst_person", "auc",
    "calibrated_auc", "relearned_others", "gap_after_attack", "distillation", "cpu_seconds",
    "times_faster", "times_faster_than_early_stopped",
)  # fmt: skip
Rows = dict[str, dict[str, list[dict[str, Any]]]]


def collect(work: Path, seeds: Sequence[int]) -> Rows:
    """Figures of every audit: set, candidate, one entry for each seed (or left-out model)."""
    rows: Rows = {}
    for seed in seeds:
        for folder, shown in SETS.items():
            audits = work / f"seed-{seed}" / folder / "audits"
            if not audits.is_dir():
                continue
            costs = {
                name: read_json(audits.parent / f"{name}.json")["cpu_seconds"]
                for name in ("full-1", "full-2", "early-stopped")
            }
            for path in sorted(audits.glob("*.json")):
                if path.stem == "left-out":
                    continue
                audit = read_json(path)
                rows.setdefault(shown, {}).setdefault(path.stem, []).append(
                    {"seed": seed, **figures(judged(audit), costs)}
                )
            left_out = read_json(audits / "left-out.json")
            rows[shown]["retrained (left out)"] = [
                *rows[shown].get("retrained (left out)", []),
                *({"seed": seed, **figures(judged(one), costs)} for one in left_out),
            ]
    return rows


Models = dict[str, ModelFigures]


def models_of(audit: dict[str, Any]) -> Models:
    """Figures of candidate, original and references."""
    return {k: ModelFigures.from_json(v) for k, v in audit["figures"].items()}


def references_in(models: Models) -> list[ModelFigures]:
    """Models that never saw the forgotten people."""
    return [m for name, m in models.items() if name.startswith("reference-")]


def judged(audit: dict[str, Any]) -> dict[str, Any]:
    """Judge the figures of an audit as the code does now, whatever it said when it was made."""
    models = models_of(audit)
    attacks: dict[str, Any] = dict(audit["settings"]["relearning"])
    attacks |= {k: tuple(attacks[k]) for k in ("people", "rates")}
    findings = judge(
        models["candidate"], models["original"], references_in(models), "full", Policy(),
        RelearningSettings(**attacks),
    )  # fmt: skip
    outcome = verdict(findings, Policy(), reference="full")
    return {
        **audit,
        "findings": [f.to_json() for f in findings],
        "verdict": outcome.to_json(),
    }


def with_earlier(rows: Rows, name: str, seeds: Sequence[int]) -> Rows:
    """Add the entries that the committed result has and the work folder has not."""
    path = ROOT / "results" / f"{name}.json"
    if not path.is_file():
        return rows
    for shown, candidates in read_json(path)["figures"].items():
        for candidate, kept in candidates.items():
            here = {e["seed"] for e in rows.get(shown, {}).get(candidate, [])}
            entries = [e for e in kept["per_seed"] if e["seed"] in set(seeds) - here]
            if entries:
                rows.setdefault(shown, {}).setdefault(candidate, []).extend(entries)
    return rows


def figures(audit: dict[str, Any], costs: dict[str, float]) -> dict[str, Any]:
    """What the table shows of one audit."""
    findings = {f["name"]: f for f in audit["findings"]}
    models = models_of(audit)
    mine = models["candidate"]
    cost = audit["provenance"]["cpu_seconds"]
    full = (costs["full-1"] + costs["full-2"]) / 2

    def value(name: str) -> float | None:
        return findings[name]["value"] if name in findings else None

    raw = findings.get("membership", {})
    relearned = excess(models, audit["settings"]["relearning"]["steps"])
    return {
        "verdict": audit["verdict"]["outcome"],
        "failed": [n for n, f in findings.items() if f["outcome"] == "fail"],
        "commit": audit.get("commit"),
        **{
            letter + suffix: mean(scores)
            for letter, scores in (("S", mine.forget), ("R", mine.retain), ("T", mine.test))
            for suffix, mean in (("", set_mean), ("_iou", iou_mean))
        },
        "dS": value("forget_level"),
        "dT": value("unseen_quality"),
        "gap_excess": value("gap_excess"),
        "worst_person": value("worst_person"),
        "auc": None if raw.get("interval") is None else area(mine),
        "auc_interval": raw.get("interval"),
        "calibrated_auc": value("calibrated_membership"),
        "calibrated_auc_interval": findings.get("calibrated_membership", {}).get("interval"),
        "relearned_others": relearned and relearned.best_others,
        "gap_after_attack": relearned and relearned.gap_after,
        "distillation": value("distillation"),
        "cpu_seconds": cost,
        "times_faster": full / cost if cost else None,
        "times_faster_than_early_stopped": costs["early-stopped"] / cost if cost else None,
    }


def excess(models: Models, steps: int) -> RelearningExcess | None:
    """Figures of the relearning attack above the references'."""
    mine = models["candidate"].relearning
    if not mine:
        return None
    theirs = [r.relearning for r in references_in(models) if r.relearning]
    return relearning_excess(mine, theirs, steps)


def area(model: ModelFigures) -> float:
    """AUC of the raw attack by loss."""
    sides = (attack_scores(scores, "loss") for scores in (model.forget, model.test))
    return membership(*sides).area.value


def iou_mean(scores: Sequence[StudyScore]) -> float:
    """Mean over persons of the intersection over union of their studies."""
    values = [s.dice / (2 - s.dice) for s in scores]
    return float(np.mean(list(by_person(values, [s.person for s in scores]).values())))


def known(entries: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Values of a figure that were measured."""
    return [e[name] for e in entries if e[name] is not None]


def mean(entries: Sequence[dict[str, Any]], name: str) -> float:
    """Mean of a figure, not-a-number when it was never measured."""
    values = known(entries, name)
    return float(np.mean(values)) if values else float("nan")


def ordered(rows: dict[str, Any]) -> list[str]:
    """Original and references first, then methods, then the faulty ones."""
    first = ("original", "retrained (left out)", "early-stopped", "short")
    known_names = (*first, *METHODS, *FAULTY)
    return sorted(rows, key=lambda n: known_names.index(n) if n in known_names else 99)


def text(rows: Rows) -> str:
    """Table for a terminal: means over seeds."""
    lines = []
    for shown, candidates in rows.items():
        lines.append(
            f"\n{shown:22}     S     T     dS     dT gap-ex  worst   AUC  cal. relearn after"
            "   CPU s  x full  verdicts; bars that failed"
        )
        for name in ordered(candidates):
            entries = candidates[name]
            cells = " ".join(
                f"{mean(entries, c):{w}}"
                for c, w in (
                    ("S", "5.3f"), ("T", "5.3f"), ("dS", "+6.3f"), ("dT", "+6.3f"),
                    ("gap_excess", "+6.3f"), ("worst_person", "+6.3f"), ("auc", "5.2f"),
                    ("calibrated_auc", "5.2f"), ("relearned_others", "+7.3f"),
                    ("gap_after_attack", "+6.3f"), ("cpu_seconds", "7.0f"),
                    ("times_faster", "7.1f"),
                )
            )  # fmt: skip
            outcomes = [e["verdict"] for e in entries]
            failed = sorted({f for e in entries for f in e["failed"]})
            said = ", ".join(f"{outcomes.count(o)} {o}" for o in sorted(set(outcomes)))
            lines.append(f"{name:22} {cells}  {said}; {' '.join(failed)}")
    return "\n".join(lines)


def share(entries: Iterable[dict[str, Any]], *, refused: bool) -> float:
    """Share of audits that refused (or did not)."""
    outcomes = [(e["verdict"] == "refused") == refused for e in entries]
    return float(np.mean(outcomes)) if outcomes else float("nan")


def bars(rows: Rows, thorough: Iterable[str]) -> list[dict[str, Any]]:
    """Acceptance figures; ``of_the_audit`` marks those without which the audit is void."""
    found = []

    def add(name: str, value: float, target: str, holds: bool, of_the_audit: bool = True) -> None:
        found.append({**bar(name, value, target, holds), "of_the_audit": of_the_audit})

    for shown in [s for s in rows if s in set(thorough)]:
        candidates = rows[shown]
        refused = share(candidates["original"], refused=True)
        add(f"{shown}: originals refused", refused, "1", refused == 1)
        kept = share(candidates["retrained (left out)"], refused=False)
        add(f"{shown}: left-out retrained models not refused", kept, "1", kept == 1)
        for name in [n for n in FAULTY if n in candidates]:
            refused = share(candidates[name], refused=True)
            add(f"{shown}: {name} refused", refused, "1", refused == 1)
            if name in ("suppressed by LoRA", "last layer"):
                found_by = float(np.mean(["relearning" in e["failed"] for e in candidates[name]]))
                add(f"{shown}: {name} refused for relearning", found_by, "1", found_by == 1)
        excess = mean(candidates["original"], "gap_excess")
        add(f"{shown}: gap excess of the original", excess, ">= 0.1", excess >= 0.1, False)
        # erode and repair throws the old weights away and is no baseline
        intact = [e for n in BASELINES if n not in OURS for e in candidates.get(n, [])]
        passed = sum("relearning" not in e["failed"] for e in intact)
        add(
            f"{shown}: baselines from intact weights that pass relearning, of {len(intact)}",
            passed, "0", passed == 0, False,
        )  # fmt: skip
    return found


def bars_of_methods(rows: Rows, shown: str) -> list[dict[str, Any]]:
    """What the methods must reach, as means over seeds on one forget set.

    Cost is not among them: what was made on other days and beside other work cannot be compared to
    the second. ``unlearning_cost.py`` measures it in turns.
    """
    found = []
    candidates = rows.get(shown, {})
    short = mean(candidates.get("short", []), "T")
    for name in [n for n in (*OURS, "calibrated") if n in candidates]:
        entries = candidates[name]
        hidden = name == "calibrated"

        def add(what: str, value: float, target: str, holds: bool, name: str = name) -> None:
            found.append({**bar(f"{shown}: {name}, {what}", value, target, holds)})

        for what, column, low, high in (
            ("change on unseen people", "dT", -0.015, 9.0),
            ("level on forgotten people", "dS", -0.03, 0.03),
            ("gap excess", "gap_excess", -0.03, 0.03),
            ("worst forgotten person", "worst_person", -9.0, 0.08),
            ("relearned above retrained", "relearned_others", -9.0, 0.02),
            ("gap after the attack", "gap_after_attack", -9.0, 0.02),
            ("distillation", "distillation", -9.0, 0.03),
            ("calibrated membership AUC", "calibrated_auc", 0.0, 0.70),
        ):
            if hidden and column not in ("dT", "dS", "gap_excess", "worst_person"):
                continue
            value = mean(entries, column)
            if np.isnan(value):
                continue  # an attack that is made only on what nothing else refuses
            target = f"<= {high}" if low in (-9.0, 0.0) else f">= {low}"
            target = f"|.| <= {high}" if low == -high else target
            add(what, value, target, low <= value <= high)
        difference = mean(entries, "auc") - mean(candidates["retrained (left out)"], "auc")
        if not np.isnan(difference):  # one person is too few for a rate
            add("membership AUC, minus retrained", difference, "|.| <= 0.1", abs(difference) <= 0.1)
        if not hidden:
            lead = mean(entries, "T") - short
            add("unseen Dice above a short run", lead, ">= 0.01", lead >= 0.01)
    return found


def finish(
    name: str, rows: Rows, found: list[dict[str, Any]], seeds: Sequence[int], threads: str
) -> None:
    """Write result and plots."""
    figures = {
        shown: {
            candidate: {
                **{
                    column: {
                        "mean": float(np.mean(known(entries, column))),
                        "sd": float(np.std(known(entries, column), ddof=1))
                        if len(known(entries, column)) > 1
                        else None,
                    }
                    for column in COLUMNS
                    if known(entries, column)
                },
                "verdicts": [e["verdict"] for e in entries],
                "per_seed": entries,
            }
            for candidate, entries in ((n, candidates[n]) for n in ordered(candidates))
        }
        for shown, candidates in rows.items()
    }
    bars = [{k: v for k, v in b.items() if k != "of_the_audit"} for b in found]
    commits = sorted({str(e["commit"]) for c in rows.values() for es in c.values() for e in es})
    write(name, figures, bars, seeds=list(seeds), threads=threads, audits_made_at=commits)
    plot(rows, ROOT / "results" / f"{name}.png")


def plot(rows: Rows, path: Path) -> None:
    """Outputs against weights, and quality against memory, for the sets with relearning."""
    shown = [s for s in rows if known(rows[s]["original"], "relearned_others")]
    figure, axes = plt.subplots(
        len(shown), 2, figsize=(12, 4.6 * len(shown)), layout="constrained", squeeze=False
    )
    for (left, right), name in zip(axes, shown, strict=True):
        left.axvspan(-0.03, 0.03, color="tab:green", alpha=0.12)
        left.axhspan(-1, 0.02, color="tab:green", alpha=0.12)
        right.axhspan(-0.03, 0.03, color="tab:green", alpha=0.12)
        right.axvspan(-0.015, 1, color="tab:green", alpha=0.12)
        for candidate in ordered(rows[name]):
            entries = rows[name][candidate]
            marker, colour = style(candidate)
            for axis, x, y in (
                (left, "gap_excess", "relearned_others"), (right, "dT", "dS"),
            ):  # fmt: skip
                xs, ys = known(entries, x), known(entries, y)
                if not xs or not ys:
                    continue
                axis.errorbar(
                    np.mean(xs), np.mean(ys),
                    np.std(ys) if len(ys) > 1 else None, np.std(xs) if len(xs) > 1 else None,
                    fmt=marker, color=colour, label=candidate, markersize=7, capsize=2,
                )  # fmt: skip
        left.set(
            xlabel="what the outputs show: gap excess (Dice)",
            ylabel="what the weights hold:\nrelearned on others, above retrained (Dice)",
            title=f"forget set {name}: green is both within their bars",
        )
        right.set(
            xlabel="unseen people: Dice minus retrained",
            ylabel="forgotten people: Dice minus retrained",
            title="quality kept against level forgotten",
        )
        for axis, (x, y) in ((left, ("gap_excess", "relearned_others")), (right, ("dT", "dS"))):
            limits(axis, rows[name], x, y)
        right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def limits(axis: Any, candidates: dict[str, Any], x: str, y: str) -> None:
    """Show all means, not all of the shaded area."""
    for name, setter in ((x, axis.set_xlim), (y, axis.set_ylim)):
        means = [mean(e, name) for e in candidates.values() if known(e, name)]
        low, high = min([*means, -0.04]), max([*means, 0.04])
        setter(low - 0.1 * (high - low), high + 0.1 * (high - low))


def style(candidate: str) -> tuple[str, str]:
    """Marker and colour of a candidate."""
    if candidate == "original":
        return "X", "black"
    if candidate in ("retrained (left out)", "early-stopped", "short"):
        return "s", {"retrained (left out)": "tab:green", "early-stopped": "olive"}.get(
            candidate, "tab:blue"
        )
    colours = plt.get_cmap("tab10")
    if candidate in OURS:
        return "D", ("tab:orange", "tab:red")[OURS.index(candidate)]
    if candidate in FAULTY:
        return "v", ("0.3", "0.45", "0.6", "0.75")[FAULTY.index(candidate)]
    number = BASELINES.index(candidate) if candidate in BASELINES else 9
    return "oP"[number > 6], mpl.colors.to_hex(colours((number + 3) % 10))  # seven colours
