"""The module for 3D Slicer on real MRML and real Qt, in an environment of its own.

``make slicer-tools`` prepares it (``SLICER_VENV``, by default ``.venv-slicer``). Each file of
``offscreen/`` is one test here; all run in one process there, against one server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import missing

HERE = Path(__file__).parent / "offscreen"
ROOT = HERE.parents[2]
FILES = sorted(path.stem for path in HERE.glob("check_*.py"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What happened, by file and test; an empty text: it passed."""
    folder = Path(os.environ.get("SLICER_VENV", ROOT / ".venv-slicer"))
    python = folder / "bin" / "python"
    if not python.exists():
        missing("the environment of the Slicer tests is not there (make slicer-tools)")
    report = tmp_path_factory.mktemp("slicer") / "report.xml"
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", "--junit-xml", str(report), "-p", "no:cacheprovider"],
        cwd=HERE, capture_output=True, text=True, check=False, timeout=850,
        env={**os.environ, "SEGUNLEARN_PYTHON": sys.executable, "QT_QPA_PLATFORM": "offscreen",
             "PYTHONPATH": ""},
    )  # fmt: skip
    if not report.exists():
        pytest.fail(f"the tests did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((n for n in case if n.tag in ("failure", "error", "skipped")), None)
        text = "" if bad is None else f"{bad.tag}: {bad.get('message')}\n{bad.text}"
        found[str(case.get("classname")).split(".")[0]][str(case.get("name"))] = text
    return found


@pytest.mark.parametrize("name", FILES)
def test_in_slicers_libraries(name: str, results: dict[str, dict[str, str]]) -> None:
    """A test that was skipped there fails here: nothing it needs is optional."""
    assert results[name], f"{name} ran no test"
    for test, problem in results[name].items():
        assert not problem, f"{name}: {test}\n{problem[-4000:]}"
