"""A person clicks images on the tagging page and saves the list, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chromium import chromium
from replay_images import SHAPE
from segunlearn.replay.generator import build_generator
from segunlearn.replay.tagging import Tags, read_tags, tagging_page

NAME = "1234abcd"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_clicked_images_are_saved_as_having_the_feature(browser: Any, tmp_path: Path) -> None:
    page_file = tmp_path / "page.html"
    real = [("ab12", torch.zeros(1, 16, 32)), ("cd34", torch.ones(1, 16, 32))]
    page_file.write_text(tagging_page(build_generator(SHAPE, 0), NAME, real, samples=3, seed=7))
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    page.goto(page_file.as_uri())
    page.click(f'[data-image="sample-{NAME}-7-1"]')
    page.click('[data-image="cd34"]')
    page.click('[data-image="ab12"]')
    page.click('[data-image="ab12"]')  # and taken back
    assert page.inner_text("#count") == "2 of 5"
    with page.expect_download() as saved:
        page.click("#save")
    saved.value.save_as(tmp_path / "tags.csv")
    page.close()
    assert read_tags((tmp_path / "tags.csv").read_text()) == Tags(
        {"ab12": False, "cd34": True}, {(NAME, 7, i): i == 1 for i in range(3)}
    )
    assert faults == []
