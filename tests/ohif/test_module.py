"""The module that ships is the one its source builds, and the source is sound."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from conftest import missing

SOURCE = Path(__file__).parents[2] / "lib" / "ohif"
MODULE = Path(str(files("segunlearn"))) / "app" / "ohif" / "extension.js"


@pytest.fixture(scope="module")
def node() -> str:
    program = shutil.which("node")
    if program is None:
        missing("node is not installed")
    if not (SOURCE / "node_modules" / "esbuild").is_dir():
        missing("the tools of lib/ohif are not installed (make ohif)")
    return str(program)


def run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_module_is_built_from_this_source(node: str, tmp_path: Path) -> None:
    run(node, "build.mjs", f"--out={tmp_path / 'extension.js'}")
    built = (tmp_path / "extension.js").read_bytes()
    assert built == MODULE.read_bytes(), "build it again: make ohif"
    assert len(built) < 70_000


def test_the_check_of_the_module_can_fail(node: str, tmp_path: Path) -> None:
    shutil.copytree(SOURCE / "src", tmp_path / "src")
    for name in ("build.mjs", "package.json"):
        shutil.copy(SOURCE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(SOURCE / "node_modules")
    words = tmp_path / "src" / "words.ts"
    words.write_text(words.read_text().replace("Consent withdrawn", "Consent taken back"))
    done = subprocess.run(
        [node, "build.mjs", "--out=other.js"], cwd=tmp_path, capture_output=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "other.js").read_bytes() != MODULE.read_bytes()


def test_types_are_strict_and_right(node: str) -> None:
    run(node, "node_modules/typescript/bin/tsc", "--noEmit")
    options = json.loads((SOURCE / "tsconfig.json").read_text())["compilerOptions"]
    assert options["strict"]
    text = "".join(p.read_text() for p in (SOURCE / "src").iterdir())
    for hole in ("@ts-ignore", "@ts-expect-error", ": any", "as any", "eval(", "innerHTML"):
        assert hole not in text, hole
    assert "dangerouslySet" not in text


#: Where the source names a route: in a question to the server, or before it.
_ROUTE = re.compile(
    r"""(?:(?:open|address|each|optional|ask)(?:<[^(]*>)?\(\s*|"(?:GET|PUT|POST|DELETE)",\s*"""
    r"""|path = |map\(\(\w+\) => )["'`]([a-z]+)["'`/$]"""
)


def test_the_routes_that_are_used_are_those_that_sites_are_told_to_pass_on() -> None:
    text = "".join(p.read_text() for p in (SOURCE / "src").iterdir())
    used = set(_ROUTE.findall(text))
    assert {"forget", "login", "models", "infer", "pacs"} <= used
    docs = (SOURCE.parents[1] / "docs" / "ohif.md").read_text()
    told = docs[docs.index("Let your web server pass") : docs.index("on to this server")]
    assert set(re.findall(r"`/([a-z]+)/?`", told)) - {"segunlearn"} == used


def test_the_npm_layout_is_what_hosts_look_for(node: str, tmp_path: Path) -> None:
    """Keyword, one name, and a UMD build that hands over the extension without a browser."""
    package = json.loads((SOURCE / "package.json").read_text())
    assert "ohif-extension" in package["keywords"]
    shutil.copytree(SOURCE / "src", tmp_path / "src")
    for name in ("build.mjs", "package.json"):
        shutil.copy(SOURCE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(SOURCE / "node_modules")
    done = subprocess.run(
        [node, "build.mjs", "--npm"], cwd=tmp_path, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    script = "const e = require('./dist/index.umd.cjs'); console.log((e.default ?? e).id)"
    found = subprocess.run(
        [node, "-e", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == package["name"]
    for entry in (package["main"], package["module"]):
        assert (tmp_path / entry).is_file()


def test_no_dependency_is_left_open() -> None:
    package = json.loads((SOURCE / "package.json").read_text())
    lock = json.loads((SOURCE / "package-lock.json").read_text())["packages"]
    assert all(v[0].isdigit() for v in package["devDependencies"].values())
    assert all(p.get("integrity") for name, p in lock.items() if name)
    assert not any("resolved" in p for p in lock.values())
