"""The documentation says what the code does, and nothing that it should not say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segunlearn.errors import SegUnlearnError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_routes_options_and_commands_are_those_of_the_code() -> None:
    """Also the check of docs/openapi.json, the contract with the viewers."""
    done = run("docs/generate.py", "--check")
    assert done.returncode == 0, done.stderr[-600:]


def test_figures_are_those_of_the_result_files() -> None:
    done = run("results/render.py", "--check")
    assert done.returncode == 0, done.stderr


def test_every_bar_that_fails_is_marked_in_its_table() -> None:
    found = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for name, table in re.findall(r"<!-- results:([\w-]+) -->\n(.*?)<!-- end -->", text, re.S):
            result = (ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")
            bars = json.loads(result)["bars"]
            assert table.count("**no**") == sum(not bar["holds"] for bar in bars), name
            rows = [re.split(r"(?<!\\)\|", line) for line in table.splitlines() if line[:1] == "|"]
            assert {len(row) for row in rows} <= {6, len(rows[-1])}, name
            found += len(bars)
    assert found > 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


def test_commands_of_the_readme_exist() -> None:
    """Every ``segunlearn`` command and option of the README is one of the command line."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    described = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for line in re.findall(r"^segunlearn .*$", readme, re.MULTILINE):
        words = line.split("#")[0].split()
        assert f"`segunlearn {words[1]}`" in described, line
        for option in (w for w in words if w.startswith("--")):
            assert f"`{option}`" in described, option
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def committed() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_no_image_of_a_patient_and_no_key_is_committed() -> None:
    for name in committed():
        assert not name.lower().endswith((".dcm", ".nii", ".nii.gz", ".nrrd", ".pem", ".key")), name


def test_text_names_no_machine_path() -> None:
    home = os.environ.get("HOME", "/root").rstrip("/")
    for name in committed():
        path = ROOT / name
        if path.suffix in {".md", ".py", ".toml", ".txt", ".json"} and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert f"{ROOT}/" not in text, name
            assert len(home) < 4 or f"{home}/" not in text, name


def test_every_error_says_what_why_and_what_to_do() -> None:
    """Each class of the tree is explained where it is defined."""

    def leaves(cls: type[SegUnlearnError]) -> list[type[SegUnlearnError]]:
        return [cls, *(x for sub in cls.__subclasses__() for x in leaves(sub))]

    assert all((cls.__doc__ or "").strip() for cls in leaves(SegUnlearnError))
