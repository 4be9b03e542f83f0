"""OHIF under ``/ohif/``, configured for this server and with our extension.

It is the one that comes with MONAI Label, or a newer one (``segunlearn viewer``, ``--conf
viewer``). Nothing of it is changed on the disk: ``app-config.js`` is ours; pages and style sheets
are sent without the fonts and files that they would ask of other servers or that are not there.
"""

from __future__ import annotations

import html
import json
import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from segunlearn.app.dicomweb.common import PREFIX as DICOMWEB
from segunlearn.app.dicomweb.common import current_archive
from segunlearn.app.viewer_package import version_in
from segunlearn.dicom.archive import Archive
from segunlearn.dicom.folder import FolderClient

#: Where studies are kept, as the viewer sees it.
Source = Literal["embedded", "pacs", "files"]

#: Address of our extension; sites with an OHIF of their own name it in their configuration.
EXTENSION = "/segunlearn/extension.js"

_BUNDLED = Path(str(files("monailabel"))) / "endpoints" / "static" / "ohif"
_MODULE = Path(str(files("segunlearn"))) / "app" / "ohif" / "extension.js"

# Python asks the machine for media types; modules are refused under a wrong one.
_MEDIA = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".webapp": "application/manifest+json",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}
_HASHED = re.compile(r"(^|\.)[0-9a-f]{16,20}\.(js|wasm|woff2)$")
_OUTSIDE = re.compile(r"""<link\b[^>]*\bhref=["']https?://[^>]*>""", re.IGNORECASE)
_IMPORT = re.compile(r"""@import\s+(?:url\(\s*)?["']?([^"')\s;]+)["']?\s*\)?[^;]*;""")

#: What a page of the viewer may reach: this server, and what it makes itself.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' blob: data:; worker-src 'self' blob:; frame-ancestors 'self'"
)

_router = APIRouter(prefix="/ohif", tags=["Viewer"], include_in_schema=False)
_extension = APIRouter(tags=["Viewer"], include_in_schema=False)


def routers() -> list[APIRouter]:
    """Return the routers to mount, before MONAI Label's own ``/ohif``."""
    return [_extension, _router]


def current_bundle() -> Path:
    """Return the folder of the viewer: ``--conf viewer``, else the one in MONAI Label."""
    from monailabel.interfaces.utils.app import app_instance

    named: str = app_instance().options.viewer
    return Path(named) if named else _BUNDLED


Bundle = Annotated[Path, Depends(current_bundle)]


@lru_cache(maxsize=8)
def _static(bundle: Path) -> StaticFiles:
    return StaticFiles(directory=bundle)


@_extension.get(EXTENSION)
def extension() -> Response:
    """Send our extension for OHIF: one module, which finds this server by its own address."""
    return FileResponse(
        _MODULE, media_type="text/javascript; charset=utf-8", headers={"Cache-Control": "no-cache"}
    )


def current_source(archive: Annotated[Archive | None, Depends(current_archive)]) -> Source:
    """Return where the app's studies are kept now."""
    if archive is None:
        return "files"
    return "embedded" if isinstance(archive.client, FolderClient) else "pacs"


@_router.get("")
def viewer_without_slash() -> Response:
    """Lead to the page that OHIF's addresses are relative to."""
    return RedirectResponse("ohif/")


@_router.get("/app-config.js")
def app_config(source: Annotated[Source, Depends(current_source)], bundle: Bundle) -> Response:
    """Send OHIF's configuration."""
    text = configuration(source, bundled=not version_in(bundle))
    return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-store"})


@_router.get("/{path:path}")
async def viewer_file(
    path: str,
    request: Request,
    source: Annotated[Source, Depends(current_source)],
    bundle: Bundle,
) -> Response:
    """Send a file of the viewer; its own addresses (``viewer``, ``monai-label``) are its page."""
    name = path if Path(path).suffix in _MEDIA else "index.html"
    if name == "index.html" and source == "files":
        return HTMLResponse(_NO_DICOM, headers={"Cache-Control": "no-store"})
    if "\0" in name:
        raise HTTPException(404, "the viewer has no such file.")
    media = _MEDIA[Path(name).suffix]
    if media.startswith(("text/html", "text/css")):
        text = _cleaned(bundle, name)
        if text is None:
            raise HTTPException(404, f"the viewer has no file {html.escape(name)[:80]}.")
        response = Response(text, media_type=media)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["Content-Security-Policy"] = _POLICY
        return response
    response = await _static(bundle).get_response(name, request.scope)  # inside the bundle only
    if response.status_code == 200:
        response.headers["Content-Type"] = media
    fixed = "public, max-age=31536000, immutable" if _HASHED.search(name) else "no-cache"
    response.headers["Cache-Control"] = fixed
    return response


def configuration(source: Source, *, bundled: bool = True) -> str:
    """OHIF's ``app-config.js``, for the viewer that comes with MONAI Label or for a newer one.

    The studies, and the MONAI Label server of its panel, are those of the server that the page
    came from. The panel reads its server's address from a cookie, which browsers share between
    all ports of a host; so it is set anew with each page.
    """
    roots = (DICOMWEB, DICOMWEB)
    if source == "pacs":
        roots = ("/proxy/dicom/qido", "/proxy/dicom/wado")
    config: dict[str, Any] = {
        "routerBasename": "/ohif/" if bundled else "/ohif",
        "showStudyList": True,
        "extensions": [EXTENSION],
        "modes": [],
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": True,
        "showLoadingIndicator": True,
        "strictZSpacingForVolumeViewport": True,
        "investigationalUseDialog": {"option": "never"},
        "customizationService": [{"ohif.tours": {"$set": []}}],  # it covers the viewer
        "useSharedArrayBuffer": "FALSE",
        "defaultDataSourceName": "dicomweb",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "dicomweb",
                "configuration": {
                    "friendlyName": "PACS" if source == "pacs" else "Folder of DICOM files",
                    "name": "SegUnlearn",
                    "qidoRoot": roots[0],
                    "wadoRoot": roots[1],
                    "wadoUriRoot": roots[1],
                    "qidoSupportsIncludeField": True,
                    "supportsReject": False,
                    "imageRendering": "wadors",
                    "thumbnailRendering": "wadors",
                    "enableStudyLazyLoad": True,
                    "supportsFuzzyMatching": True,
                    "supportsWildcard": True,
                    "dicomUploadEnabled": False,
                    "bulkDataURI": {"enabled": True},
                },
            }
        ],
    }
    text = f"window.config = {json.dumps(config, indent=2)};\n"
    if not bundled:
        return text  # it has no panel of MONAI Label
    return (
        f"{text}document.cookie = 'MONAILABEL_SERVER_URL=' + escape(location.origin + '/')"
        " + '; path=/ohif; SameSite=Strict';\n"
    )


@lru_cache(maxsize=128)
def _cleaned(bundle: Path, name: str) -> str | None:
    """Page or style sheet of the bundle without what it would load from elsewhere."""
    full, stat = _static(bundle).lookup_path(name)  # None outside of the bundle
    if stat is None or not Path(full).is_file():
        return None
    text = Path(full).read_text(encoding="utf-8")

    def keep(match: re.Match[str]) -> str:
        target = match.group(1)
        inside = "://" not in target and not target.startswith("//")
        return match.group(0) if inside and (Path(full).parent / target).is_file() else ""

    return _OUTSIDE.sub("", text) if name.endswith(".html") else _IMPORT.sub(keep, text)


_NO_DICOM = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SegUnlearn: no DICOM to view</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:4rem auto;padding:0 1rem}
code{background:#eee;padding:0 .3em}</style></head><body>
<h1>This viewer needs DICOM</h1>
<p>The server was started on a folder of NIfTI or NRRD files. OHIF shows DICOM only.</p>
<p>To look at these images, connect 3D Slicer's MONAI Label module to this server. To use the viewer
here, start the server on a folder of DICOM files or on a PACS:</p>
<p><code>segunlearn serve --studies DICOM_FOLDER</code> or
<code>segunlearn serve --studies https://pacs.example/dicom-web</code></p>
</body></html>
"""
