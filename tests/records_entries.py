"""Ledger entries for tests: short to write, complete to the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from segunlearn.records.ledger_entries import LedgerCase, LedgerEntry


def digest(text: object) -> str:
    """SHA-256 of a text: the digest of weights that the test names so."""
    return hashlib.sha256(str(text).encode()).hexdigest()


def ledger_entry(
    number: int,
    *,
    cases: Iterable[tuple[str, ...] | LedgerCase] = (),
    version: object | None = "own",
    parent: object | None = None,
    **changes: Any,
) -> LedgerEntry:
    """Entry number ``number``; ``version`` and ``parent`` are names, digested here."""
    own = digest(f"version {number}") if version == "own" else None
    values: dict[str, Any] = {
        "run_id": f"run-{number}",
        "kind": "train",
        "model": "segmentation",
        "version_sha256": own if version in ("own", None) else digest(version),
        "parent_sha256": None if parent is None else digest(parent),
        "cases": [c if isinstance(c, LedgerCase) else LedgerCase(*c) for c in cases],
        "parameters": {"epochs": 3, "learning_rate": 0.001},
        "seed": number,
        "versions": {"segunlearn": "0.1", "torch": "2.9"},
        "machine": {"host": "tests", "device": "cpu"},
        "started": "2026-11-21T04:00:00.000000Z",
        "ended": "2026-11-21T04:10:00.000000Z",
        "outcome": "done",
    }
    return LedgerEntry(**{**values, **changes})
