"""OHIF's own package, made ready to be served under ``/ohif/``.

``@ohif/app`` holds a viewer that is built for the root of a server. Its addresses are moved below
``/ohif/``; how many there are is known, so that a package that differs is refused, not half moved.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segunlearn.errors import ConflictError, IntegrityError, NotFoundError, UnavailableError

#: File that says which package a folder was made from.
MARKER: Final = "segunlearn-viewer.json"

_DIST = "package/dist/"
#: Not served: models that nothing of ours asks for, sources, icons of telephones, a service worker
#: that would fetch its code elsewhere.
_LEFT_OUT = re.compile(r"ort/|.*\.map$|assets/(?:apple-touch|yandex)|sw\.js$|google\.js$|_headers$")
_PUBLIC_URL = re.compile(r"""(PUBLIC_URL\s*=\s*)(["'])/\2""")
_ATTRIBUTE = re.compile(r"""\b(href|src|content)="/(?!/)""")
_ICON_LINK = re.compile(r"<link rel=\"(?:apple-touch|yandex)[^>]*>")
_MANIFEST = re.compile(r'"/(?=[a-z])')


@dataclass(frozen=True)
class ViewerPackage:
    """A release of OHIF.

    Parameters
    ----------
    version
        Of ``@ohif/app``.
    integrity
        As npm states it: ``sha512-`` and the digest in Base64; empty: not checked.
    """

    version: str
    integrity: str = ""


#: The release that is recommended and tested.
CURRENT: Final = ViewerPackage(
    "3.13.2",
    "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq"
    "+jd5xXZB9E8EA==",
)


def fetch(folder: Path, package: ViewerPackage = CURRENT) -> Path:
    """Ask npm for a package; returns its file.

    Raises
    ------
    NotFoundError
        There is no npm.
    UnavailableError
        npm does not get it.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise NotFoundError(
            "npm is needed to fetch the viewer. Install it, or fetch the package elsewhere "
            f"(npm pack @ohif/app@{package.version}) and name its file with --package."
        )
    command = [npm, "pack", f"@ohif/app@{package.version}", "--json", "--prefer-offline"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    found = sorted(folder.glob("ohif-app-*.tgz"))
    if done.returncode or not found:
        raise UnavailableError(
            f"npm did not get @ohif/app@{package.version}: {done.stderr.strip()[-300:]}. Look at "
            "its registry and network, or name a file with --package."
        )
    return found[0]


def check_integrity(file: Path, package: ViewerPackage = CURRENT) -> None:
    """Compare a file with the digest that is known.

    Raises
    ------
    IntegrityError
        They differ.
    """
    if not package.integrity:
        return
    digest = hashlib.sha512()
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    found = "sha512-" + base64.b64encode(digest.digest()).decode()
    if found != package.integrity:
        raise IntegrityError(
            f"{file.name} is not @ohif/app@{package.version} as it was published: its digest is "
            f"{found[:20]}…, not {package.integrity[:20]}…. Fetch it again."
        )


def unpack(file: Path, target: Path, package: ViewerPackage = CURRENT) -> int:
    """Make a folder that can be served under ``/ohif/``; replaces one that is there.

    Parameters
    ----------
    file
        The package.
    target
        Folder of the viewer.
    package
        Which one it is to be.

    Returns
    -------
    int
        Bytes that were written.

    Raises
    ------
    IntegrityError
        The package is another one, or its addresses are not those that are known.
    ConflictError
        ``target`` holds something else.
    """
    check_integrity(file, package)
    if target.exists() and not (target / MARKER).is_file():
        raise ConflictError(f"{target} is there and is no viewer; name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".viewer-") as scratch:
        folder = Path(scratch) / "viewer"
        with tarfile.open(file) as archive:
            for member in archive:
                name = member.name.removeprefix(_DIST)
                if member.isfile() and name != member.name and not _LEFT_OUT.match(name):
                    member.name = name
                    archive.extract(member, folder, filter="data")
        if not (folder / "index.html").is_file():
            raise IntegrityError(f"{file.name} holds no viewer ({_DIST}index.html is missing).")
        _move(folder)
        about = {"package": "@ohif/app", "version": package.version, "integrity": package.integrity}
        (folder / MARKER).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    return size


def version_in(folder: Path) -> str:
    """Version of the viewer in a folder; empty where :func:`unpack` did not make it."""
    marker = folder / MARKER
    if not marker.is_file():
        return ""
    return str(json.loads(marker.read_text(encoding="utf-8"))["version"])


def _move(folder: Path) -> None:
    """Let every address lead below ``/ohif/``."""
    moved = {
        "scripts with a public path": _count(folder, "*.js", _script),
        "PUBLIC_URL of the page": _edit(folder / "index.html", _public_url),
        "addresses of the page": _edit(folder / "index.html", _page),
        "fonts and pictures of style sheets": _count(folder, "*.css", _sheet),
    }
    _edit(folder / "manifest.json", lambda text: _MANIFEST.subn('"/ohif/', text))
    expected = {
        "scripts with a public path": (7, 10), "PUBLIC_URL of the page": (2, 2),
        "addresses of the page": (8, 40), "fonts and pictures of style sheets": (1, 20),
    }  # fmt: skip
    for what, (least, most) in expected.items():
        if not least <= moved[what] <= most:
            raise IntegrityError(
                f"this viewer is built differently: {moved[what]} {what} instead of {least} to "
                f"{most}. Use the version that is recommended ({CURRENT.version})."
            )


Edit = Callable[[str], tuple[str, int]]


def _count(folder: Path, pattern: str, edit: Edit) -> int:
    return sum(_edit(path, edit) for path in sorted(folder.rglob(pattern)))


def _edit(path: Path, edit: Edit) -> int:
    before = path.read_text(encoding="utf-8")
    text, count = edit(before)
    if text != before:
        path.write_text(text, encoding="utf-8")
    return count


def _script(text: str) -> tuple[str, int]:
    count = text.count('__webpack_require__.p = "/"')
    text = text.replace('__webpack_require__.p = "/"', '__webpack_require__.p = "/ohif/"')
    for mark in "'\"":
        text = text.replace(
            f"browserImportFunction({mark}/dicom-", f"browserImportFunction({mark}/ohif/dicom-"
        )
    return text, count


def _public_url(text: str) -> tuple[str, int]:
    return _PUBLIC_URL.subn(r"\1\2/ohif/\2", text)


def _page(text: str) -> tuple[str, int]:
    return _ATTRIBUTE.subn(r'\1="/ohif/', _ICON_LINK.sub("", text))


def _sheet(text: str) -> tuple[str, int]:
    return text.replace("url(/", "url(/ohif/"), text.count("url(/")
