"""20,000 mutated real DICOM, NIfTI and NRRD files, read as the server reads them.

``python tests/benchmarks/fuzz_files.py --data DATA [--inputs N]`` writes
``results/fuzz_files.json``. Each input is read in a process with a limit of memory and an alarm of
ten seconds; a death, a hang, too much memory or an exception that is none of ours is a fault.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))
import malformed_files as made
from malformed_files import Outcome

#: Inputs of one process.
_PART = 1000


def main() -> None:
    """Read them all, and write what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:  # in a process of its own: forking is safe only without threads
        samples = [*made.hippocampus(options.data), *made.real_dicom(options.data)]
        seeds = range(options.first, options.first + options.inputs)
        sys.stdout.write(json.dumps(vars(made.fuzz(samples, seeds))))
        return
    began, found = time.monotonic(), made.Outcome()
    with ThreadPoolExecutor(options.workers) as pool:
        for part in pool.map(lambda first: _part(options, first), _firsts(options)):
            made.add(found, part)
            done = sum(found.read.values()) + sum(found.refused.values())
            sys.stderr.write(f"{done} inputs, {found.faults}\n")
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


def _firsts(options: argparse.Namespace) -> range:
    return range(options.first, options.first + options.inputs, _PART)


def _part(options: argparse.Namespace, first: int) -> Outcome:
    count = min(_PART, options.first + options.inputs - first)
    words = ["--data", str(options.data), "--first", str(first), "--inputs", str(count), "--part"]
    done = subprocess.run(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
    )
    told = json.loads(done.stdout)
    told |= {"read": Counter(told["read"]), "refused": Counter(told["refused"])}
    return Outcome(**told)


if __name__ == "__main__":
    main()
