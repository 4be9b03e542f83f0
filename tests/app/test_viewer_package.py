"""A newer OHIF from its npm package: digest, addresses, and what is refused."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from segunlearn.app import viewer_package
from segunlearn.app.viewer_package import CURRENT, ViewerPackage, fetch, unpack, version_in
from segunlearn.errors import ConflictError, IntegrityError, NotFoundError, UnavailableError

UNCHECKED = ViewerPackage("9.9.9")
PAGE = (
    '<script>window.PUBLIC_URL="/"</script><script>window.PUBLIC_URL="/"</script>'
    '<link rel="apple-touch-icon" href="/assets/apple-touch-icon.png">'
    + "".join(f'<link href="/{n}.css">' for n in range(8))
    + '<a href="//other.example/x">'
)
SCRIPT = "__webpack_require__.p = \"/\";browserImportFunction('/dicom-microscopy-viewer')"
FILES: dict[str, str] = {
    "package/package.json": "{}",
    "package/dist/index.html": PAGE,
    "package/dist/app.css": "a{src:url(/font.woff2)}",
    "package/dist/manifest.json": '{"icons":[{"src":"/assets/icon.png"}],"start_url":"/"}',
    "package/dist/ort/model.wasm": "x",
    "package/dist/app.js.map": "x",
    "package/dist/sw.js": "importScripts('https://cdn.example')",
    **{f"package/dist/{n}.js": SCRIPT for n in range(8)},
}


def pack(folder: Path, files: Mapping[str, str]) -> Path:
    path = folder / "ohif-app.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_every_address_leads_below_ohif(tmp_path: Path) -> None:
    target = tmp_path / "viewer"
    assert unpack(pack(tmp_path, FILES), target, UNCHECKED) > 0
    page = (target / "index.html").read_text()
    assert page.count('PUBLIC_URL="/ohif/"') == 2
    assert page.count('href="/ohif/') == 8
    assert 'href="//other.example/x"' in page
    assert "apple" not in page
    script = (target / "0.js").read_text()
    assert '__webpack_require__.p = "/ohif/"' in script
    assert "browserImportFunction('/ohif/dicom-microscopy-viewer')" in script
    assert (target / "app.css").read_text() == "a{src:url(/ohif/font.woff2)}"
    assert '"/ohif/assets/icon.png"' in (target / "manifest.json").read_text()
    names = {p.name for p in target.rglob("*")}
    assert not names & {"ort", "model.wasm", "app.js.map", "sw.js", "package.json"}
    assert version_in(target) == "9.9.9"


def test_it_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "viewer"
    file = pack(tmp_path, FILES)
    unpack(file, target, UNCHECKED)
    (target / "left.js").write_text("old")
    unpack(file, target, replace(UNCHECKED, version="9.9.10"))
    assert version_in(target) == "9.9.10"
    assert not (target / "left.js").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"viewer", "ohif-app.tgz"}


def test_a_package_with_another_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"is not @ohif/app@3\.13\.2 as it was published"):
        unpack(pack(tmp_path, FILES), tmp_path / "viewer", CURRENT)
    assert not (tmp_path / "viewer").exists()


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("package/dist/index.html", "<html>", "PUBLIC_URL"),
        ("package/dist/0.js", "moved()", "scripts with a public path"),
        ("package/dist/app.css", "a{}", "style sheets"),
    ],
)
def test_a_viewer_that_is_built_differently_is_refused(
    tmp_path: Path, name: str, text: str, what: str
) -> None:
    files = {**FILES, name: text}
    if name.endswith("0.js"):
        files["package/dist/1.js"] = text
    with pytest.raises(IntegrityError, match=what):
        unpack(pack(tmp_path, files), tmp_path / "viewer", UNCHECKED)
    assert not (tmp_path / "viewer").exists()


def test_a_package_without_viewer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="holds no viewer"):
        unpack(pack(tmp_path, {"package/x": ""}), tmp_path / "viewer", UNCHECKED)


def test_nothing_is_written_beside_the_target(tmp_path: Path) -> None:
    files = {**FILES, "package/dist/../../../../evil.js": "x"}
    with pytest.raises(tarfile.FilterError):
        unpack(pack(tmp_path, files), tmp_path / "deep" / "viewer", UNCHECKED)
    assert not list(tmp_path.rglob("evil.js"))


def test_a_folder_that_is_no_viewer_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "viewer").mkdir()
    (tmp_path / "viewer" / "mine").write_text("x")
    with pytest.raises(ConflictError, match="is no viewer"):
        unpack(pack(tmp_path, FILES), tmp_path / "viewer", UNCHECKED)
    assert (tmp_path / "viewer" / "mine").read_text() == "x"


def test_without_npm_or_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_package.shutil, "which", lambda _: None)
    with pytest.raises(NotFoundError, match=r"npm pack @ohif/app@3\.13\.2"):
        fetch(tmp_path)
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(viewer_package.shutil, "which", lambda _: str(program))
    with pytest.raises(UnavailableError, match="no network"):
        fetch(tmp_path)
