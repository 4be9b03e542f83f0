"""Unlearning and restoring are killed -9 a hundred times at random moments.

``python tests/benchmarks/unlearning_kill.py [--kills N]`` writes ``results/unlearning_kill.json``.
After every kill, before and after the next start settles it: one whole version is served, and the
request, the versions, the deposit and its key say the same.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

from report import bar, write

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    """Kill, check, write; a check that fails ends it with what was found."""
    from unlearn_storm import Storm

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder), options.kills, options.seed)
        faults = ""
        try:
            storm.run()
        except AssertionError as error:
            faults = str(error)
    found = dict(sorted(storm.seen.items()))
    kills = found.get("kills", 0)
    late = sum(
        n for k, n in found.items() if "killed" in k and k.endswith(("fulfilled", "restored"))
    )
    bars = [
        bar("kills after which it was finished", late, ">= 10", late >= 10),
        bar("kills", kills, f"= {options.kills}", kills == options.kills),
        bar("inconsistent states found", int(bool(faults)), "= 0", not faults),
    ]
    write(
        "unlearning_kill", {"found": found, "fault": faults}, bars, seeds=[options.seed],
        machine=platform.platform(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
