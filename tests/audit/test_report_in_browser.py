"""The report in a real browser: it fits a phone, asks for nothing, and prints what is folded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_samples import told_everything
from chromium import chromium
from segunlearn.audit.report import write_report

pytestmark = pytest.mark.slow

_WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder / "report.html", told_everything(folder))
    return Path(folder / "report.html").as_uri()


def test_it_fits_and_asks_for_nothing(browser: Any, address: str) -> None:
    for width in (1280, 390, 320):
        page = browser.new_page(viewport={"width": width, "height": 800})
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda said, errors=errors: errors.append(said.text))
        page.goto(address)
        assert page.evaluate(_WIDER) == 0, width
        page.evaluate(_OPEN)
        assert page.evaluate(_WIDER) == 0, width
        assert asked == [address]
        assert errors == []
        # the verdict is on the first screen
        assert page.locator(".verdict strong").bounding_box()["y"] < 200
        page.close()


def test_print_shows_what_the_screen_folds_away(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 800, "height": 800})
    page.goto(address)
    folded = page.locator("details p, details td").first
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert folded.bounding_box()["height"] > 10
    page.close()
