"""The unlearning benchmark in its quick form: the audit is audited on real people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_audit_holds_on_real_people(data_dir: Path, tmp_path: Path) -> None:
    """Originals and faulty models are refused, models retrained without S are not."""
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "tests" / "benchmarks" / "unlearning.py"),
            "--data", str(data_dir / "hippocampus"), "--work", str(tmp_path), "--quick",
            "--methods", "fine_tune", "erode_and_repair_lora",
        ],
        capture_output=True, text=True, check=False, timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "holds 20 %: suppressed by LoRA refused for relearning" in done.stdout
