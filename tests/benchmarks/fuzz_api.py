"""10,000 generated requests to every operation of the running server, as its administrator.

``python tests/benchmarks/fuzz_api.py [--requests N] [--seed S]`` writes
``results/fuzz_api.json``. An audit hook in the server and its children tells of every file that
they write, rename or remove outside the home, and of every one that they read outside the home, the
studies, Python and the system's libraries.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import ROOT, bar, write

sys.path.insert(0, str(ROOT / "tests"))

#: Python runs this in every process that it starts; it writes one line for each file out of place.
HOOK = """
import os, sys
_home, _readable, _told = {home!r}, {readable!r}, {told!r}
_busy = False
def _inside(path, places):
    return any(path == p or path.startswith(p + "/") for p in places)
def _hook(event, args):
    global _busy
    if _busy or not (event == "open" or event.startswith(("os.", "shutil."))):
        return
    _busy = True
    try:
        names = [a for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
        writes = event != "open"
        if event == "open":
            names = names[:1]
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if args[2] else False
        elif event not in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink",
                           "os.link", "os.chmod", "os.truncate", "os.utime", "shutil.rmtree"):
            return
        for name in names:
            path = os.path.realpath(os.fsdecode(name))
            if not _inside(path, (_home, "/dev", "/proc") if writes else _readable):
                with open(_told, "a") as file:
                    file.write(f"{{event}} {{'writes' if writes else 'reads'}} {{path}}\\n")
    except Exception:
        pass
    finally:
        _busy = False
sys.addaudithook(_hook)
"""


def main() -> None:
    """Send them, and write what was answered."""
    import api_fuzz
    from app_sources import make_study, publish_tiny, running_server, write_dicom
    from segunlearn.records.access_tokens import AccessTokens
    from segunlearn.records.store import open_store

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        studies = [make_study(n) for n in range(3)]
        write_dicom(root / "studies", studies)
        home = root / "home"
        version = publish_tiny(home)
        store = open_store(home / "segunlearn.db")
        token, _ = AccessTokens(store).create("the administrator", "admin", 1)
        store.close()
        environment = _hooked(root)
        headers = {"Authorization": f"Bearer {token}"}
        before = _files(root / "studies")
        with running_server(
            str(root / "studies"), home, conf={"login": "tokens"}, environment=environment
        ) as server:
            (root / "told").write_text("")  # what is read while it starts is its own
            known = _known(studies, version.version)
            began, found = time.monotonic(), api_fuzz.Found()
            for turn in range(20):
                rich = found.operations - len(found.poor) or 100
                each = -(-(options.requests - found.requests) // rich)
                api_fuzz.fuzz(server.url, headers, known, each, options.seed + turn, found)
                if found.requests >= options.requests:
                    break
            alive = server.get("/health/ready").status_code
            server.process.terminate()
            server.process.wait(timeout=60)
        told = sorted(set((root / "told").read_text().splitlines()))
        told = [line.replace(str(root), "ROOT") for line in told]
        changed = _files(root / "studies") != before
    figures = {
        "requests": found.requests,
        "operations": found.operations,
        "statuses": {str(k): n for k, n in sorted(found.statuses.items())},
        "slowest": {"seconds": round(found.slowest[0], 2), "operation": found.slowest[1]},
        "faults": found.faults[:50],
        "out_of_place": told[:50],
        "wall_seconds": round(time.monotonic() - began),
    }
    bars = [
        bar("requests", found.requests, f">= {options.requests}",
            found.requests >= options.requests),
        bar("answers of 500 and above, and none", len(found.faults), "= 0", not found.faults),
        bar("files touched outside the home", len(told) + changed, "= 0", not told and not changed),
        bar("ready at the end", alive, "= 200", alive == 200),
    ]  # fmt: skip
    write("fuzz_api", figures, bars, seeds=[options.seed], machine=platform.platform())


def _hooked(root: Path) -> dict[str, str]:
    hook = root / "hook"
    hook.mkdir()
    home = str(root / "home")
    readable = [
        home, str(root / "studies"), str(hook), str(ROOT / "lib"), str(ROOT / "monailabel_app"),
        sys.prefix, sys.base_prefix, "/proc", "/dev", "/sys", "/usr", "/lib", "/lib64", "/etc",
    ]  # fmt: skip
    text = HOOK.format(home=home, readable=readable, told=str(root / "told"))
    (hook / "sitecustomize.py").write_text(text)
    path = os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    (root / "home" / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        "PYTHONPATH": path,
        "TMPDIR": str(root / "home" / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _known(studies: list[Any], version: str) -> dict[str, list[str]]:
    series = [s.series for s in studies]
    study = [str(s.datasets[0].StudyInstanceUID) for s in studies]
    instances = [str(s.datasets[0].SOPInstanceUID) for s in studies]
    return {
        "image": series, "id": series, "label": series, "uid": [*study, *series],
        "study": study, "series": series, "instance": instances, "numbers": ["1"],
        "model": ["segmentation"], "version": [version], "tag": ["final", "original"],
        "strategy": ["random", "first"], "method": ["dice"], "output": ["json", "all"],
        "kind": ["train"], "state": ["requested"],
    }  # fmt: skip


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


if __name__ == "__main__":
    main()
