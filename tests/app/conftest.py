"""Import what MONAI Label's roles need once, without the warning that Python gives for it."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from segunlearn.records.store import Store, open_store

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'crypt' is deprecated", DeprecationWarning)
    import passlib.context  # noqa: F401


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of its own, beside whatever else a test keeps there."""
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()
