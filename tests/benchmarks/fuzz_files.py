"""20,000 mutated real DICOM, NIfTI and NRRD files, read as the server reads them.

``python tests/benchmarks/fuzz_files.py --data DATA [--inputs N]`` writes
``results/fuzz_files.json``. Each input is read in a process with a limit of memory and an alarm of
ten seconds; a death, a hang, too much memory or an exception that is none of ours is a fault.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))


def main() -> None:
    """Read them all, and write what they came to."""
    import malformed_files as made

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    options = parser.parse_args()
    samples = [*made.hippocampus(options.data), *made.real_dicom(options.data)]
    began = time.monotonic()
    found = made.Outcome()
    step = 250
    parts = [
        range(first, min(first + step, options.first + options.inputs))
        for first in range(options.first, options.first + options.inputs, step)
    ]
    with ThreadPoolExecutor(options.workers) as pool:
        for done, part in enumerate(pool.map(lambda seeds: made.fuzz(samples, seeds), parts)):
            made.add(found, part)
            sys.stderr.write(f"{(done + 1) * step} inputs, {len(found.faults)} faults\n")
    count = sum(found.read.values()) + sum(found.refused.values())
    figures = {
        "read": dict(sorted(found.read.items())),
        "refused": dict(sorted(found.refused.items())),
        "faults": found.faults[:100],
        "slowest_seconds": round(found.slowest, 2),
        "largest_process_megabytes": round(found.largest_megabytes),
        "wall_seconds": round(time.monotonic() - began),
    }
    bars = [
        bar("inputs", count + len(found.faults), f">= {options.inputs}",
            count + len(found.faults) >= options.inputs),
        bar("crashes, hangs, too much memory, other errors", len(found.faults), "= 0",
            not found.faults),
        bar("slowest, seconds", found.slowest, f"< {made.SECONDS}", found.slowest < made.SECONDS),
    ]  # fmt: skip
    write(
        "fuzz_files", figures, bars, machine=platform.platform(),
        limits={"seconds": made.SECONDS, "megabytes": made.MEGABYTES},
    )  # fmt: skip


if __name__ == "__main__":
    main()
