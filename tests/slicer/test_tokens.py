"""Where the login's token lies: the system's key store, or memory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "lib/slicer/SegUnlearn/SegUnlearnLib/tokens.py"


@pytest.fixture(scope="module")
def tokens() -> Any:
    spec = importlib.util.spec_from_file_location("slicer_tokens", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class KeyStore:
    """The package ``keyring`` with a back end; ``priority`` below 1: plain text, or none."""

    def __init__(self, priority: float) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self._priority = priority

    def get_keyring(self) -> Any:
        return SimpleNamespace(priority=self._priority)

    def get_password(self, service: str, user: str) -> str | None:
        return self.kept.get((service, user))

    def set_password(self, service: str, user: str, password: str) -> None:
        self.kept[service, user] = password

    def delete_password(self, service: str, user: str) -> None:
        del self.kept[service, user]


def test_the_key_store_outlives_the_session(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KeyStore(5)
    monkeypatch.setitem(sys.modules, "keyring", store)
    first = tokens.Tokens()
    assert first.lasts
    first.put("https://a", "t")
    assert store.kept == {("SegUnlearn", "https://a"): "t"}
    assert tokens.Tokens().get("https://a") == "t"
    first.drop("https://a")
    assert store.kept == {}
    assert (tokens.Tokens().get("https://a"), first.get("https://a")) == ("", "")


@pytest.mark.parametrize("priority", [0.5, None], ids=["a file of plain text", "not installed"])
def test_without_a_real_key_store_it_is_kept_in_memory(
    tokens: Any, monkeypatch: pytest.MonkeyPatch, priority: float | None
) -> None:
    store = None if priority is None else KeyStore(priority)
    monkeypatch.setitem(sys.modules, "keyring", store)
    kept = tokens.Tokens()
    assert not kept.lasts
    kept.put("https://a", "t")
    assert kept.get("https://a") == "t"
    assert tokens.Tokens().get("https://a") == ""
    assert store is None or store.kept == {}


def test_a_locked_key_store_is_told_once_and_memory_is_used(
    tokens: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Locked:
        def get_password(self, *_: str) -> str:
            raise OSError("the words of the back end, which may show the token")

    kept = tokens.Tokens(Locked())
    assert kept.get("https://a") == ""
    assert not kept.lasts
    kept.put("https://a", "t")
    assert kept.get("https://a") == "t"
    assert [record.getMessage() for record in caplog.records] == [
        "the system's key store does not work: OSError"
    ]
