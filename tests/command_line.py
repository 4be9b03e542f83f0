"""The command ``segunlearn`` in the process of a test."""

from __future__ import annotations

import sys

import pytest

from segunlearn import cli


def segunlearn(patch: pytest.MonkeyPatch, *words: object) -> int:
    """Run it; give its exit status."""
    patch.setattr(sys, "argv", ["segunlearn", *map(str, words)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
