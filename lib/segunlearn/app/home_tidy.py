"""What killed processes left lying in a home, removed before the next server begins."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from monailabel.config import settings

from segunlearn.adapters.deposit import Deposits
from segunlearn.adapters.keys import KeyStore
from segunlearn.app.options import Home
from segunlearn.app.upload_sessions import UploadSessions
from segunlearn.records.chain import HeadFile
from segunlearn.records.durable import is_being_written
from segunlearn.records.numbered import clear_staging, locked

logger = logging.getLogger(__name__)

#: Where files are written beside and renamed: by one server, under the locks held here, or by
#: commands that run beside the server.
_WRITTEN_BESIDE: Final = (
    "models", "sites", "replay", "runs", "audits", "unlearning", "infos", "cache",
    "labels", "images",
)  # fmt: skip


def tidy(home: Home) -> int:
    """Remove uploads, results and half-written files of processes that were killed.

    Checkpoints stay: the next training goes on from them or removes them.

    Parameters
    ----------
    home
        Its server lock is held by the caller: nobody answers requests there now.

    Returns
    -------
    int
        Bytes that were removed.
    """
    removed = 0
    scratch = home.root / "tmp"
    left = list(scratch.iterdir()) if scratch.is_dir() else []
    left += UploadSessions(home.sessions, settings.MONAI_LABEL_SESSION_EXPIRY).over(unfinished=0)
    for model in [*(home.root / "models").glob("*"), *home.replay.glob("*/")]:
        with locked(model):  # a command may publish right now
            clear_staging(model / "versions")
    for model in home.sites.glob("*/"):
        with locked(model):
            for site in model.glob("*/"):
                clear_staging(site)
    for name in {p.name.split(".")[1] for p in home.root.glob(".*.head.*.part")}:
        HeadFile(home.root / f"{name}.head", name).clear()  # a command may write it right now
    Deposits(home.deposits, KeyStore(home.keys)).clear()
    for name in _WRITTEN_BESIDE:
        left += (p for p in (home.root / name).rglob(".*.part*") if not _in_use(p))
    for path in left:
        removed += sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if removed:
        logger.info("%d bytes of killed processes were removed", removed)
    return removed


def _in_use(part: Path) -> bool:
    """Whether a command, as a training or what converts a series, writes a file right now."""
    try:
        return part.is_file() and is_being_written(part)
    except FileNotFoundError:  # it has its own name by now
        return True
