"""Write the measured figures of ``results/*.json`` into the marked places of the documentation.

A place is ``<!-- results:NAME -->`` … ``<!-- end -->`` in README.md or docs/*.md; what stands
between is replaced by the table of the bars in ``results/NAME.json``. ``--check`` changes nothing
and fails when a document and its figures differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(<!-- results:([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str) -> str:
    """Markdown table of the bars of one result file, with its commit and machine size."""
    path = ROOT / "results" / f"{name}.json"
    if not path.is_file():
        return "Not measured yet.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| figure | measured | target | holds |", "|---|---|---|---|"]
    for bar in result["bars"]:
        value, holds = bar["value"], "yes" if bar["holds"] else "**no**"
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"| {bar['name']} | {shown} | {bar['target']} | {holds} |")
    lines.append("")
    lines.append(
        f"`results/{name}.json`, {result['cores']} cores, commit `{result['commit'][:12]}`."
    )
    return "\n".join(lines) + "\n"


def render(text: str) -> str:
    """Return the document with every marked place filled."""
    return PLACE.sub(lambda m: m.group(1) + table(m.group(2)) + m.group(3), text)


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
