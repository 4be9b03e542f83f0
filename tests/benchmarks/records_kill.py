"""Eight processes mark 5,000 studies while two train, and twenty times one or all are killed -9.

``python tests/benchmarks/records_kill.py [--quick]`` does so on SQLite and on PostgreSQL, with
commits that reach the disk, and writes ``results/records_kill.json``.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import bar, write

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    """Run both, print the bars and write the results."""
    from postgresql_server import programs, running_server
    from records_storm import Storm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is written")
    options = parser.parse_args()
    size = {"studies": 5000, "markers": 8, "trainers": 2, "kills": 20, "seconds": 1800.0}
    if options.quick:
        size |= {"studies": 400, "kills": 5}
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "sqlite"
        home.mkdir()
        figures["sqlite"] = Storm(str(home / "segunlearn.db"), home, **size).run()  # type: ignore[arg-type]
    found = programs()
    assert found is not None, "PostgreSQL is not installed"
    with tempfile.TemporaryDirectory() as folder, running_server(found, durable=True) as url:
        figures["postgresql"] = Storm(f"{url}/postgres", Path(folder), **size).run()  # type: ignore[arg-type]
    bars = []
    for kind, values in figures.items():
        for name, target in (("lost", 0), ("marked_twice", 0), ("trained_on_after_the_mark", 0)):
            bars.append(bar(f"{kind}: {name}", values[name], f"= {target}", values[name] == target))
        faults = len(values["ledger_faults"])
        bars.append(bar(f"{kind}: faults in the ledger", faults, "= 0", faults == 0))
        marks = values["acknowledged"]
        wanted = size["studies"]
        bars.append(bar(f"{kind}: marks acknowledged", marks, f"= {wanted}", marks == wanted))
        kills = values["kills"]
        bars.append(bar(f"{kind}: kills", kills, f"= {size['kills']}", kills == size["kills"]))
    if options.quick:
        sys.stdout.write(f"{figures}\n")
    else:
        write("records_kill", figures, bars, machine=platform.platform(), size=size)


if __name__ == "__main__":
    main()
