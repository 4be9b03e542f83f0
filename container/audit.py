"""Judge what pip-audit found: a package that could not be asked about is no good news.

``python container/audit.py build/audit.json`` ends with 0 where every package was asked about and
none has a known hole, with 1 where one has, and with 2 where some could not be asked about.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def judge(path: Path) -> tuple[int, str]:
    """Exit status and what to tell a person.

    Parameters
    ----------
    path
        What ``pip-audit --format json`` wrote; missing where it failed.
    """
    otherwise = (
        "Ask again where PyPI's data can be reached, or give build/sbom.json to another scanner."
    )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["dependencies"]
        holes = [
            f"{row['name']} {row['version']}: {hole['id']}"
            + (f", mended in {', '.join(hole['fix_versions'])}" if hole["fix_versions"] else "")
            for row in rows
            for hole in row.get("vulns", ())
        ]
        skipped = [row for row in rows if "skip_reason" in row]
    except (OSError, ValueError, KeyError, TypeError):
        return 2, f"pip-audit gave no answer, so no known hole is ruled out. {otherwise}"
    lines = [f"known hole: {hole}" for hole in holes]
    if skipped:
        names = ", ".join(row["name"] for row in skipped[:3])
        lines.append(
            f"{len(skipped)} of {len(rows)} packages could not be asked about ({names}"
            f"{', …' if len(skipped) > 3 else ''}): {skipped[0]['skip_reason']}. No known hole is "
            f"ruled out for them. {otherwise}"
        )
    if not rows:
        return 2, f"pip-audit was asked about nothing. {otherwise}"
    if not lines:
        return 0, f"{len(rows)} packages asked about, no known hole."
    return (1 if holes else 2), "\n".join(lines)


if __name__ == "__main__":
    status, words = judge(Path(sys.argv[1]))
    (sys.stderr if status else sys.stdout).write(words + "\n")
    sys.exit(status)
