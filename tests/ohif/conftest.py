"""A hospital, servers on copies of it, and pages in which nothing may go wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import chromium
from conftest import missing
from ohif_panel import Panel
from ohif_site import ROOT, Hospital, Site, build_hospital, serving
from ohif_tab import Tab, open_tab


@pytest.fixture(scope="session")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return Panel(tmp_path_factory.mktemp("panel"))


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return build_hospital(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def newer_viewer() -> Path:
    """OHIF 3.13.2, as ``make viewer`` prepared it."""
    folder = Path(os.environ.get("SEGUNLEARN_VIEWER", ROOT / ".viewer"))
    if not (folder / "index.html").is_file():
        missing("no newer viewer is prepared (make viewer)")
    return folder


@pytest.fixture(scope="module")
def embedded(
    hospital: Hospital, newer_viewer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """OHIF 3.13.2 on the embedded archive."""
    own = hospital.copy(tmp_path_factory.mktemp("embedded"))
    with serving(str(own.dicom), own.home, newer_viewer) as server:
        yield own, server


OpenTab = Callable[..., Tab]


@pytest.fixture
def new_tab(browser: Any) -> Iterator[OpenTab]:
    """Open tabs of a browser of their own each; at the end nothing may have gone wrong in them."""
    with contextlib.ExitStack() as stack:
        tabs: list[Tab] = []

        def opened(url: str, name: str = "") -> Tab:
            tabs.append(stack.enter_context(open_tab(browser, url, name)))
            return tabs[-1]

        yield opened
        assert [fault for tab in tabs for fault in tab.faults] == []
