"""The extension as the Extensions Index wants it, and the rules that its code keeps."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from segunlearn.app import checkpoints, unlearn_task
from segunlearn.app.adapter_run import SITE_ADAPT
from segunlearn.app.replay_run import FORGET_FEATURE, REPLAY
from segunlearn.records.forget_states import LEVELS, REASONS, STATES

ROOT = Path(__file__).parents[2]
EXTENSION = ROOT / "lib" / "slicer" / "SegUnlearn"
LIBRARY = EXTENSION / "SegUnlearnLib"
CMAKE = (EXTENSION / "CMakeLists.txt").read_text(encoding="utf-8")

#: Properties of Qt's widgets and models: values in PythonQt, so that calling them fails there.
PROPERTIES = frozenset(
    ("alignment", "checked", "count", "currentColumn", "currentIndex", "currentRow",
     "currentText", "currentWidget", "duration", "enabled", "font", "geometry", "height", "hidden",
     "iconSize", "interval", "itemCount", "maximum", "minimum", "modal", "objectName",
     "orientation", "password", "selectedText", "sizeHint", "spacing", "styleSheet", "text",
     "title", "toolTip", "value", "visible", "width", "windowTitle")
)  # fmt: skip


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


SOURCES = sorted(EXTENSION.rglob("*.py"))


def test_every_file_is_packed() -> None:
    """A file that CMake does not list is missing after the installation."""
    block = re.search(r"set\(MODULE_PYTHON_SCRIPTS(.*?)\)\n", CMAKE, re.DOTALL)
    assert block is not None
    listed = block.group(1).replace("${MODULE_NAME}", "SegUnlearn").split()
    there = [str(path.relative_to(EXTENSION)) for path in SOURCES]
    assert sorted(listed) == sorted(there)
    assert (EXTENSION / "Resources" / "Icons" / "SegUnlearn.png").is_file()


def loaded(path: Path) -> Any:
    """A module that belongs to no package here."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def publisher() -> Any:
    return loaded(EXTENSION.parent / "publish.py")


def test_the_index_finds_what_it_asks_for(publisher: Any, tmp_path: Path) -> None:
    """The checks of the index, on what is published."""
    folder = tmp_path / "SlicerSegUnlearn"
    path = publisher.publish("https://github.com/st-anna/SlicerSegUnlearn", folder)
    assert path.name == "SegUnlearn.json"  # the name of the project in the recipe
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert set(entry) == {
        "$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision",
        "scm_url", "tier",
    }  # fmt: skip
    assert entry["scm_url"] == "https://github.com/st-anna/SlicerSegUnlearn.git"
    assert entry["tier"] == 1
    recipe = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    assert "project(SegUnlearn)" in recipe
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS"):
        (value,) = re.findall(rf'set\(EXTENSION_{name} "([^"]+)"\)', recipe)
        for address in re.findall(r"https?://\S+", value):
            assert "st-anna/SlicerSegUnlearn" in address
    pictures = re.findall(r"/main/(\S+?\.png)", recipe)
    assert len(pictures) == 3
    for picture in pictures:
        assert (folder / picture).is_file(), picture
    assert (folder / "LICENSE.txt").read_bytes() == (ROOT / "LICENSE").read_bytes()
    with pytest.raises(FileExistsError):
        publisher.publish("https://github.com/st-anna/SlicerSegUnlearn", folder)


@pytest.mark.parametrize(
    "address",
    ["", "https://github.com/OWNER", "http://github.com/a/SlicerSegUnlearn",
     "https://github.com/a/SegUnlearn", "https://github.com/a/SlicerSegUnlearn.git",
     'https://github.com/a/Slicer")', "https://gitlab.com/a/SlicerSegUnlearn"],
)  # fmt: skip
def test_an_address_that_the_index_refuses(publisher: Any, tmp_path: Path, address: str) -> None:
    with pytest.raises(ValueError, match="begins with Slicer"):
        publisher.publish(address, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_no_placeholder_stands_for_an_address() -> None:
    """The extension names no place where it is not published."""
    for path in EXTENSION.rglob("*"):
        if path.suffix in (".py", ".txt", ".json", ".md") and path.name != "LICENSE.txt":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"OWNER|example\.(com|org)|TODO|FIXME", text), path.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_qt_is_used_as_both_bindings_have_it(path: Path) -> None:
    """No property is called, no signal is connected by a text, no keyword is given to Qt."""
    qt_names = {"QTimer", "QAction", "QLabel", "QPushButton"}
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, where = node.func.attr, ast.unparse(node)
        own = isinstance(node.func.value, ast.Attribute) and node.func.value.attr in ("table",)
        if name in PROPERTIES and not node.args and not own:
            owner = ast.unparse(node.func.value)
            assert owner in ("self", "texts", "one", "request"), f"{path.name}: {where}"
        if name == "connect" and node.args:
            assert not isinstance(node.args[0], ast.Constant), f"{path.name}: {where}"
        if ast.unparse(node.func).startswith("qt.") or name in qt_names:
            assert not node.keywords, f"{path.name}: {where}"


def test_layers() -> None:
    """What knows neither Qt nor Slicer says so by its imports."""
    plain = {"problems", "multipart", "texts", "signals", "api", "study", "forget_set", "site",
             "session", "evidence", "run_view"}  # fmt: skip
    for name in plain:
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(tree(LIBRARY / f"{name}.py"))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not imported & {"qt", "slicer", "vtk", "ctk"}, name
    for path in SOURCES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.name


def test_every_kind_of_run_state_and_reason_has_a_word() -> None:
    """What the server may say is said in words, not by its key."""
    texts = loaded(LIBRARY / "texts.py")
    kinds = {"audit", "restore", "purge", *unlearn_task.KINDS, *chain(*checkpoints.FAMILIES)}
    assert kinds | {SITE_ADAPT, REPLAY, FORGET_FEATURE} <= set(texts.RUNS)
    assert set(texts.STATES) >= set(STATES)
    assert set(texts.REASONS) == set(REASONS)
    assert texts.LEVELS == LEVELS


def test_every_route_is_in_the_contract() -> None:
    """Method and path of each request stand in docs/openapi.json, or are MONAI Label's own."""
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    known = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, v in paths.items()
        for method in v
    }
    platform = {("GET", "/auth/"), ("POST", "/auth/token")}
    used = set()
    for function in ast.walk(tree(LIBRARY / "api.py")):
        if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
            continue
        texts = {
            target.id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "self._json",
                "self._send",
            ):
                method, path = node.args[0], node.args[1]
                value = texts.get(path.id) if isinstance(path, ast.Name) else path
                assert isinstance(method, ast.Constant)
                used.add((method.value, _template(value)))
    assert len(used) > 20
    for method, path in used - platform:
        candidates = [path] if path != "/forget/{}/{}" else [
            f"/forget/{kind}/{{}}" for kind in ("studies", "series", "patients")
        ]  # fmt: skip
        for candidate in candidates:
            assert (method, candidate) in known, (method, candidate)


def _template(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    return "".join(
        str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
    )


def test_the_library_files_are_read_without_an_application() -> None:
    """Doctests of the plain parts, in this environment."""
    import doctest
    import importlib
    import sys

    sys.path.insert(0, str(EXTENSION))
    try:
        for name in ("signals", "problems", "multipart", "texts"):
            module = importlib.import_module(f"SegUnlearnLib.{name}")
            found = doctest.testmod(module)
            assert found.attempted, name
            assert not found.failed, name
    finally:
        sys.path.remove(str(EXTENSION))
        for name in [n for n in sys.modules if n.split(".")[0] == "SegUnlearnLib"]:
            del sys.modules[name]
