"""Write the measured figures of ``results/*.json`` into the marked places of the documentation.

A place is ``<!-- results:NAME -->`` … ``<!-- end -->`` in README.md or docs/*.md; what stands
between is replaced by the table of the bars in ``results/NAME.json``. ``<!-- methods:NAME:SET -->``
becomes the table of the unlearning methods on one forget set, ``<!-- structure:NAME:LABEL -->``
that of a withdrawn label. ``--check`` changes nothing and fails when a document and its figures
differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(
    r"(<!-- (results|methods|structure):([\w-]+)(?::([^>]+?))? -->\n).*?(<!-- end -->)", re.DOTALL
)
#: Columns of the tables of methods by kind: heading, name of the figure, format.
COLUMNS = {
    "methods": (
        ("forgotten, Dice", "S", ".3f"),
        ("unseen, Dice", "T", ".3f"),
        ("gap excess", "gap_excess", "+.3f"),
        ("relearned", "relearned_others", "+.3f"),
        ("calibrated AUC", "calibrated_auc", ".2f"),
        ("CPU s", "cpu_seconds", ".0f"),
    ),
    "structure": (
        ("withdrawn label, Dice", "withdrawn", ".3f"),
        ("other label, Dice", "other", ".3f"),
        ("minus retrained", "other_difference", "+.4f"),
        ("KL, nats", "divergence", ".4f"),
        ("KL of the others", "divergence_of_others", ".4f"),
        ("KL of masks", "divergence_of_masks", ".4f"),
        ("comes back, minus retrained", "relearned", "+.2f"),
        ("CPU s", "cpu_seconds", ".0f"),
    ),
}


Bar = dict[str, Any]


def escaped(text: str) -> str:
    """Text of a cell: a bar would end it."""
    return text.replace("|", "\\|")


def value(bar: Bar) -> str:
    """Write what was measured."""
    return f"{bar['value']:.4g}" if isinstance(bar["value"], float) else str(bar["value"])


def tail(bar: Bar) -> str:
    """Name of a figure without what stands before its colon."""
    return str(bar["name"]).partition(": ")[2]


def several(bars: list[Bar]) -> dict[tuple[str, str], dict[str, Bar]]:
    """Figures with one target for three things and more, which get a column each."""
    found: dict[tuple[str, str], dict[str, Bar]] = {}
    for bar in bars:
        found.setdefault((tail(bar), bar["target"]), {})[bar["name"].partition(": ")[0]] = bar
    return {key: of for key, of in found.items() if key[0] and len(of) > 2}


def table(name: str) -> str:
    """Markdown table of the bars of one result file, with its commit and machine size.

    A figure that is held against one target for three things and more is a line of a second table.
    """
    path = ROOT / "results" / f"{name}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    lines, wide = [], several(result["bars"])
    if single := [b for b in result["bars"] if (tail(b), b["target"]) not in wide]:
        lines += ["| figure | measured | target | holds |", "|---|---|---|---|"]
    for bar in single:
        holds = "yes" if bar["holds"] else "**no**"
        lines.append(
            f"| {escaped(bar['name'])} | {value(bar)} | {escaped(bar['target'])} | {holds} |"
        )
    if wide:
        heads = list(dict.fromkeys(head for of in wide.values() for head in of))
        lines += [""] * bool(lines) + [
            f"| figure | target | {' | '.join(heads)} |",
            "|---" * (len(heads) + 2) + "|",
        ]
    for (figure, target), of in wide.items():
        cells = [
            value(of[h]) + ("" if of[h]["holds"] else " **no**") if h in of else "–" for h in heads
        ]
        lines.append(f"| {escaped(figure)} | {escaped(target)} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"`results/{name}.json`, {result['cores']} cores, commit `{result['commit'][:12]}`."
    )
    return "\n".join(lines) + "\n"


def methods(kind: str, name: str, shown: str) -> str:
    """Markdown table of every candidate of an unlearning benchmark on one forget set or label."""
    path = ROOT / "results" / f"{name}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    candidates = result["figures"].get(shown)
    if candidates is None:
        return "Not measured yet.\n"
    audited = any("verdicts" in figures for figures in candidates.values())
    heads = ["model", *(head for head, _, _ in COLUMNS[kind])]
    heads += ["verdicts of the audit"] * audited
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for candidate, figures in candidates.items():
        cells = [candidate.replace("_", " ")]
        measured = {e["seed"] for e in figures["per_seed"]}
        if len(measured) < len(result["seeds"]):
            cells[0] += f" (seeds {', '.join(map(str, sorted(measured)))})"
        for _, column, form in COLUMNS[kind]:
            value = figures.get(column)
            if value is None:
                cells.append("–")
            elif value["sd"] is None or column == "cpu_seconds":
                cells.append(f"{value['mean']:{form}}")
            else:
                cells.append(f"{value['mean']:{form}} ± {value['sd']:{form.lstrip('+')}}")
        said = figures.get("verdicts", [])
        if audited:
            cells.append(", ".join(f"{said.count(v)} {v}" for v in sorted(set(said))))
        lines.append("| " + " | ".join(cells) + " |")
    seeds = sorted({e["seed"] for c in candidates.values() for e in c["per_seed"]})
    lines.append("")
    lines.append(
        f"Mean ± standard deviation over {len(seeds)} seed{'s' * (len(seeds) != 1)}, each with its "
        f"own split and original; `results/{name}.json`."
    )
    return "\n".join(lines) + "\n"


def render(text: str) -> str:
    """Return the document with every marked place filled."""

    def fill(found: re.Match[str]) -> str:
        start, kind, name, shown, end = found.groups()
        return start + (table(name) if kind == "results" else methods(kind, name, shown)) + end

    return PLACE.sub(fill, text)


def main() -> int:
    """Rewrite or check all documents; 1 when a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail on a difference")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.stderr.write(f"run 'python results/render.py': {', '.join(stale)} differ\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
