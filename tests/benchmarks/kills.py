"""Runs of every kind are killed -9 two hundred times at random moments, while studies are marked.

``python tests/benchmarks/kills.py [--kills N] [--seed S]`` writes ``results/kills.json``. After
every kill, before and after the next start settles it: no acknowledged mark is missing, ledger and
trail verify, the version in service loads and has its digest, nothing runs, a copy of the home is
whole or none, and what is left lying is small.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    """Kill, check, write; a check that fails ends it with what was found."""
    from kill_storm import FORGETTING, LEARNING, ORPHANS, KillStorm

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fault = ""
    with tempfile.TemporaryDirectory() as folder:
        storm = KillStorm(Path(folder), options.kills, options.seed)
        try:
            storm.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            fault = f"{type(error).__name__}: {error}"
    killed = {k: storm.seen[f"{k}: killed"] for k in (*LEARNING, *FORGETTING)}
    figures = {
        "killed": killed,
        "all": dict(sorted(storm.seen.items())),
        "usual_seconds": {k: round(s, 2) for k, s in storm.usual.items()},
        "marks_acknowledged": storm.marks,
        "largest_orphans_in_sizes_of_the_weights": round(storm.largest_orphans / storm.weights, 1),
        "fault": fault,
    }
    kills, fewest = storm.seen["kills"], min(killed.values())
    orphans = storm.largest_orphans / storm.weights
    bars = [
        bar("kills", kills, f">= {options.kills}", kills >= options.kills),
        bar("kills of the kind that was killed least", fewest, ">= 3", fewest >= 3),
        bar("lost marks, broken chains, versions that do not load", int(bool(fault)), "= 0",
            not fault),
        bar("largest orphans, sizes of the weights", orphans, f"<= {ORPHANS}", orphans <= ORPHANS),
    ]  # fmt: skip
    write("kills", figures, bars, seeds=[options.seed], machine=platform.platform())


if __name__ == "__main__":
    main()
