"""The database file is deleted, or another is put in its place, while a server works with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.errors import IntegrityError


@pytest.mark.parametrize("fault", ["deleted", "moved away", "replaced by a copy"])
def test_no_mark_is_acknowledged_that_nobody_will_find(tmp_path: Path, fault: str) -> None:
    """An open file can be written for ever after its name is gone."""
    home = Home(tmp_path)
    records = Records(home)
    records.forget_set.mark("study", "1.1", "consent_withdrawn", actor="ann")
    copy = tmp_path / "copy.db"
    shutil.copy(home.database, copy)
    if fault == "deleted":
        home.database.unlink()
    else:
        home.database.rename(tmp_path / "elsewhere.db")
    if fault.startswith("replaced"):
        copy.rename(home.database)
    with pytest.raises(IntegrityError, match="removed or replaced"):
        records.forget_set.list()
    with pytest.raises(IntegrityError, match="removed or replaced"):
        records.forget_set.mark("study", "1.2", "consent_withdrawn", actor="ann")
