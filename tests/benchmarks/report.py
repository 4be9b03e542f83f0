"""What every benchmark writes: figures, bars, and where and how they were measured."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "monai", "numpy", "sqlalchemy", "fastapi")


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.rstrip()


def _shown(word: str) -> str:
    """Word of the command line, without the folders of this machine."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def commit() -> str:
    """Commit of the working tree."""
    return _git("rev-parse", "HEAD") or "none"


def bar(name: str, value: float, target: str, holds: bool) -> dict[str, Any]:
    """One acceptance figure; ``target`` is written as people read it, e.g. ``>= 0.86``."""
    return {"name": name, "value": value, "target": target, "holds": bool(holds)}


def write(name: str, figures: dict[str, Any], bars: list[dict[str, Any]], **more: Any) -> Path:
    """Write ``results/<name>.json`` and print the bars."""
    changed = [line[3:] for line in _git("status", "--porcelain", "--", "lib").splitlines()]
    result = {
        "name": name,
        "measured": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python", *map(_shown, sys.argv)]),
        "commit": commit(),
        "uncommitted": changed,  # files of lib/ that differed from the commit
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        **more,
        "bars": bars,
        "figures": figures,
    }
    path = ROOT / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    for row in bars:
        sys.stdout.write(
            f"{'holds' if row['holds'] else 'FAILS':6} {row['name']}: {row['value']:.4g} "
            f"(target {row['target']})\n"
        )
    return path
