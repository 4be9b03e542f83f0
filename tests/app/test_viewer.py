"""OHIF as this server sends it; the browser itself is in ``tests/e2e``."""

import re
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from live_server import live_server
from segunlearn.app import viewer
from segunlearn.app.viewer import configuration, current_bundle, current_source
from segunlearn.app.viewer_package import MARKER
from segunlearn.dicom.archive import Archive, open_archive

BUNDLE = Path(str(files("monailabel"))) / "endpoints" / "static" / "ohif"


@pytest.fixture(scope="module")
def app():
    app = FastAPI()
    for router in viewer.routers():
        app.include_router(router)
    app.dependency_overrides[current_source] = lambda: "embedded"
    app.dependency_overrides[current_bundle] = lambda: BUNDLE
    return app


@pytest.fixture(scope="module")
def http(app):
    with live_server(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_every_file_of_the_bundle_is_served_under_its_own_type(http):
    """Also those in folders, for which the platform's own route sends the page."""
    wanted = {".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm"}
    served = 0
    for path in sorted(BUNDLE.rglob("*")):
        if not path.is_file() or path.suffix not in viewer._MEDIA or path.name == "app-config.js":
            continue
        answer = http.get(f"/ohif/{path.relative_to(BUNDLE)}")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"].startswith(wanted.get(path.suffix, "")), path
        if path.suffix not in (".css", ".html"):
            assert len(answer.content) == path.stat().st_size, path
        served += 1
    assert served > 150


@pytest.mark.parametrize("path", ["", "index.html", "viewer", "monai-label", "viewer/dicomweb"])
def test_addresses_of_the_viewer_are_its_page(http, path):
    answer = http.get(f"/ohif/{path}?StudyInstanceUIDs=1.2.3")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "browserImportFunction" in answer.text
    assert "/ohif/app-config.js" in answer.text


def test_the_page_asks_no_other_server(http):
    page = http.get("/ohif/").text
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)
    assert "fonts" not in page
    for sheet in BUNDLE.glob("*.css"):
        text = http.get(f"/ohif/{sheet.name}").text
        assert not re.findall(r"""(?:@import|url\()\s*["'(a-z]*(?:https?:)?//""", text), sheet.name


def test_the_test_of_other_servers_can_fail():
    """The bundle as shipped does ask them; otherwise the test above would prove nothing."""
    assert "https://fonts.googleapis.com" in (BUNDLE / "index.html").read_text()
    assert "https://fonts.googleapis.com" in (BUNDLE / "app.bundle.css").read_text()


def test_imports_of_files_that_are_missing_are_left_out_and_rules_stay(http):
    name = "3933.css"
    assert "w3.css" in (BUNDLE / name).read_text()
    text = http.get(f"/ohif/{name}").text
    assert "w3.css" not in text
    assert len(text) > 0.9 * (BUNDLE / name).stat().st_size


def test_the_browser_is_told_to_stay_here(http):
    policy = http.get("/ohif/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2f..%2fconfig.py",
        "../../../config.py",
        "%2e%2e/%2e%2e/app.js",
        "assets/..%2f..%2f..%2f..%2fconfig.js",
        "..%5c..%5cconfig.js",
        "%00.js",
        "/etc/hosts.js",
        "..%2f..%2f..%2f..%2fapp.css",
        "..%2f..%2fhtml.html",
    ],
)
def test_nothing_outside_of_the_bundle_is_sent(http, path):
    answer = http.get(f"/ohif/{path}")
    page = answer.headers["content-type"].startswith("text/html") and "OHIF" in answer.text
    assert answer.status_code == 404 or page
    assert "MONAI_LABEL" not in answer.text


def test_a_missing_module_is_404_and_not_the_page(http):
    for name in ("no-such.bundle.js", "assets/none.png", "none.css"):
        assert http.get(f"/ohif/{name}").status_code == 404


def test_caching(http):
    hashed = next(p.name for p in BUNDLE.glob("app.bundle.*.js"))
    assert "immutable" in http.get(f"/ohif/{hashed}").headers["cache-control"]
    assert http.get("/ohif/app-config.js").headers["cache-control"] == "no-store"
    assert http.get("/ohif/").headers["cache-control"] == "no-cache"
    logo = http.get("/ohif/ohif-logo.svg")
    again = http.get("/ohif/ohif-logo.svg", headers={"If-None-Match": logo.headers["etag"]})
    assert again.status_code == 304


def test_the_address_without_slash_leads_on(http):
    answer = http.get("/ohif")
    assert answer.status_code == 307
    assert http.get("/ohif", follow_redirects=True).url.path == "/ohif/"


def test_configuration_names_this_server_only(http):
    embedded, pacs = configuration("embedded"), configuration("pacs")
    assert '"qidoRoot": "/dicomweb"' in embedded
    assert '"wadoRoot": "/proxy/dicom/wado"' in pacs
    for text in (embedded, pacs):
        assert not re.search(r"https?://", text)
        assert "location.origin" in text
    answer = http.get("/ohif/app-config.js")
    assert answer.text == embedded
    assert answer.headers["content-type"].startswith("text/javascript")


def test_the_extension_is_a_module_of_this_server(http):
    assert f'"{viewer.EXTENSION}"' in configuration("embedded")
    answer = http.get(viewer.EXTENSION)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "export{" in answer.text[-60:]
    assert len(answer.content) < 70_000
    assert not re.findall(r"https?://(?!www\.w3\.org)", answer.text)


def test_a_newer_viewer_gets_a_configuration_of_its_own(app, tmp_path):
    (tmp_path / "index.html").write_text("<html>newer</html>")
    (tmp_path / MARKER).write_text('{"version": "3.13.2"}')
    newer = FastAPI()
    for router in viewer.routers():
        newer.include_router(router)
    newer.dependency_overrides[current_source] = lambda: "pacs"
    newer.dependency_overrides[current_bundle] = lambda: tmp_path
    with live_server(newer) as url:
        assert "newer" in httpx.get(f"{url}/ohif/viewer", timeout=60).text
        text = httpx.get(f"{url}/ohif/app-config.js", timeout=60).text
        assert httpx.get(f"{url}/ohif/{MARKER}x.js", timeout=60).status_code == 404
    assert '"routerBasename": "/ohif",' in text
    assert "MONAILABEL_SERVER_URL" not in text


def test_a_folder_of_nifti_is_told_plainly(app):
    other = FastAPI()
    for router in viewer.routers():
        other.include_router(router)
    other.dependency_overrides[current_source] = lambda: "files"
    other.dependency_overrides[current_bundle] = lambda: BUNDLE
    with live_server(other) as url:
        for path in ("/ohif/", "/ohif/viewer"):
            answer = httpx.get(f"{url}{path}", timeout=60)
            assert answer.status_code == 200
            assert "needs DICOM" in answer.text
            assert "segunlearn serve --studies" in answer.text


def test_source_of_the_studies(tmp_path):
    (tmp_path / "studies").mkdir()
    folder = open_archive(tmp_path / "studies", index_dir=tmp_path / "index")
    assert current_source(folder) == "embedded"
    assert current_source(Archive(object())) == "pacs"
    assert current_source(None) == "files"
