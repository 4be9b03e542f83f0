"""The adaptation benchmark in its quick form: it runs, goes on, and compares like with like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_benchmark_makes_one_fold_of_each_regime(data_dir: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "tests" / "benchmarks" / "adaptation.py"),
        "--data", str(data_dir / "hippocampus"), "--work", str(tmp_path), "--quick",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=880)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "appearance-0-00.json",
        "disagree-0-00.json",
    ]
    found = json.loads((tmp_path / "disagree-0-00.json").read_text())
    people = {frozenset(dice) for dice in found["dice"].values()}
    assert len(people) == 1, "every method is judged on the same people"
    assert found["site"] != found["tuned_on"]
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert again.stdout == done.stdout, "what was made is not made again"
