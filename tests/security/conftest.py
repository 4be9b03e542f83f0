"""A server to sign in to, by tokens and at an issuer.

MONAI Label's roles are imported once, without the warning that Python gives for it.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "'crypt' is deprecated", DeprecationWarning)
    import passlib.context  # noqa: F401

from guarded_server import Place, serving
from oidc_issuer import TestIssuer, running_issuer
from segunlearn.errors import UnavailableError
from segunlearn.records.trail import Trail


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with serving(tmp_path / "home", monkeypatch, login="tokens") as place:
        yield place


@pytest.fixture(scope="module")
def issuer() -> Iterator[TestIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def sso(issuer: TestIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    options = {"login": "oidc", "issuer": issuer.issuer}
    with serving(tmp_path / "home", monkeypatch, **options) as place:
        yield place


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trail takes no row."""

    def full(*_: object) -> None:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(Trail, "append", full)
