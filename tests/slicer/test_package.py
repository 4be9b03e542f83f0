"""The extension as the Extensions Index wants it, and the rules that its code keeps."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

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


def test_the_index_finds_what_it_asks_for() -> None:
    entry = json.loads((EXTENSION / "SegUnlearn.json").read_text(encoding="utf-8"))
    allowed = {"$schema", "build_dependencies", "build_subdirectory", "category", "enabled",
               "scm_revision", "scm_type", "scm_url", "tier"}  # fmt: skip
    assert set(entry) <= allowed
    assert entry["scm_url"].endswith(".git")
    assert entry["tier"] in (1, 3, 5)
    assert "project(SegUnlearn)" in CMAKE
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS"):
        assert re.search(rf'set\(EXTENSION_{name} "[^"]+"\)', CMAKE), name
    for picture in re.findall(r"/main/(\S+?\.png)", CMAKE):
        assert (EXTENSION / picture).is_file(), picture
    assert (EXTENSION / "LICENSE.txt").read_bytes() == (ROOT / "LICENSE").read_bytes()


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
             "session", "evidence"}  # fmt: skip
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
