"""The life of a mark in the viewer: from the panel and the menus to an unlearning and back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ohif_site import Hospital, ViewerServer, serving, upload
from orthanc_process import OrthancProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Seconds in which a second browser must see a mark, and in which the whole flow must end; for
#: machines that do nothing else.
SEEN, FLOW = 5.0, 60.0


@pytest.fixture(scope="module")
def embedded(
    hospital: Hospital, newer_viewer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hospital, ViewerServer]]:
    """OHIF 3.13.2 on the embedded archive."""
    own = hospital.copy(tmp_path_factory.mktemp("embedded"))
    with serving(str(own.dicom), own.home, newer_viewer) as server:
        yield own, server


@pytest.fixture(scope="module")
def pacs(
    hospital: Hospital, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hospital, ViewerServer, OrthancProcess]]:
    """The viewer of MONAI Label on an Orthanc."""
    folder = tmp_path_factory.mktemp("pacs")
    orthanc = OrthancProcess(folder)
    orthanc.start()
    try:
        own = hospital.copy(folder)
        upload(orthanc.rest, own)
        with serving(orthanc.url, own.home) as server:
            yield own, server, orthanc
    finally:
        orthanc.stop()


def crowding() -> float:
    """Say how many programs share each core, this one among them."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def mark_seen_elsewhere(here: Any, there: Any, study: str, note: str) -> None:
    """Mark the study from the panel of one browser, and see it in another in time."""
    here.click("mark-study")
    here.see("reason")
    here.accessible()
    here.picture("mark")
    here.page.select_option("[data-cy=sul-reason]", "consent_withdrawn")
    here.page.fill("[data-cy=sul-note]", note)
    assert "Art. 18" in here.text("dialog")
    here.click("confirm")
    began = time.monotonic()
    there.see("study", marked="true")
    assert time.monotonic() - began < SEEN * crowding()
    here.see("study", marked="true")
    here.see("request", target=study, state="requested")
    for tab in (here, there):
        assert tab.see("badge").inner_text() == "FORGET SET"


def unlearn_and_restore(tab: Any, study: str) -> None:
    """Approve, unlearn to the end with progress that moves, read the report, restore."""
    tab.click("approve")
    tab.confirm()
    tab.see("request", target=study, state="approved")
    tab.click("unlearn")
    assert "people never seen" in tab.see("plan").inner_text()
    tab.accessible()
    tab.picture("unlearn")
    tab.try_to("confirm")  # without the word nothing happens
    assert "Type “unlearn” first" in tab.text("dialog")
    tab.page.check("[data-cy=sul-quick]")
    tab.confirm("unlearn")
    run = tab.see("run").get_attribute("data-run")
    tab.see("forget_dice")
    tab.see("retain_dice")
    tab.picture("running")
    tab.see("last-run", run=run, state="done")
    tab.see("audit", outcome="passed")
    tab.see("request", target=study, state="fulfilled")
    tab.accessible()
    tab.picture("ended")
    with tab.page.context.expect_page() as report:
        tab.page.click("[data-cy=sul-report]")
    report.value.wait_for_load_state()
    assert "retrain" in report.value.inner_text("body").lower()
    report.value.close()
    tab.click("restore")
    tab.confirm("restore")
    tab.see("request", target=study, state="restored")
    tab.see("study", marked="false")
    tab.gone("badge")
    tab.picture("restored")


WATCH = """() => {
  window.steps = [];
  new MutationObserver(() => {
    const e = document.querySelector('[data-cy=sul-run]');
    const now = e && [e.dataset.phase, e.dataset.step].join(' ');
    if (now && now !== window.steps.at(-1)) window.steps.push(now);
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def test_the_whole_flow_in_a_current_viewer(
    new_tab: Any, embedded: tuple[Hospital, ViewerServer]
) -> None:
    hospital, server = embedded
    person = hospital.people[0]
    began = time.monotonic()
    here, there = new_tab(server.url), new_tab(server.url)
    here.begin(person.study)
    there.begin(person.study)
    here.show()
    here.accessible()
    here.page.evaluate(WATCH)
    # the menu of a thumbnail marks the series, and takes the mark back
    thumbnail = here.page.locator("[data-cy=study-browser-thumbnail]", has_text="portal venous")
    for entry, marked in (("Mark for forgetting…", "true"), ("Withdraw mark", "false")):
        thumbnail.hover()
        thumbnail.locator("button[aria-haspopup=menu]").click()
        here.page.click(f"[role=menuitem]:has-text('{entry}')")
        if marked == "true":
            here.mark("quality", "too dark")
        else:
            here.confirm()
        here.see("series", uid=person.series, marked=marked)
    there.show()
    mark_seen_elsewhere(here, there, person.study, "asked by letter <b>today</b>")
    here.picture("marked")
    there.page.context.close()
    assert "<b>today</b>" in here.text("forget-set")
    unlearn_and_restore(here, person.study)
    assert time.monotonic() - began < FLOW * crowding()
    steps = here.page.evaluate("() => window.steps")
    assert len({s.rsplit(" ", 1)[0] for s in steps}) > 2, steps  # phases
    assert len(steps) > 4, steps


def test_menus_and_column_of_studies(new_tab: Any, embedded: tuple[Hospital, ViewerServer]) -> None:
    """Mark from the menu of the study, and see it in the list."""
    hospital, server = embedded
    person = hospital.people[2]
    tab = new_tab(server.url)
    tab.open(person.study)
    head = tab.page.locator("[data-cy=studyBrowser-panel] .group, .group").filter(
        has_text="SYNTHETIC abdomen"
    )
    head.first.hover()
    head.first.locator("button[aria-haspopup=menu]").first.click()
    tab.page.click("[role=menuitem]:has-text('Mark for forgetting…')")
    tab.see("dialog")
    assert "Mark this study" in tab.text("dialog")
    tab.page.keyboard.press("Escape")
    tab.gone("dialog")
    assert (
        httpx.get(f"{server.url}/forget/status?study={person.study}").json()[person.study]["marked"]
        is False
    )
    head.first.hover()
    head.first.locator("button[aria-haspopup=menu]").first.click()
    tab.page.click("[role=menuitem]:has-text('Mark for forgetting…')")
    tab.mark("retention_expired")
    tab.see("study", marked="true")
    tab.page.goto(f"{server.url}/ohif/")
    tab.see("cell")
    assert tab.text("cell") == "FORGET"
    assert tab.page.locator("[data-cy=sul-cell]").count() == 1
    tab.picture("list")


@pytest.mark.pacs
def test_the_flow_in_the_bundled_viewer_with_a_pacs(
    new_tab: Any, pacs: tuple[Hospital, ViewerServer, OrthancProcess]
) -> None:
    hospital, server, orthanc = pacs
    person = hospital.people[0]
    began = time.monotonic()
    here, there = new_tab(server.url, "bundled-"), new_tab(server.url)
    here.begin(person.study)
    there.begin(person.study)
    here.show()
    there.show()
    mark_seen_elsewhere(here, there, person.study, "")
    there.page.context.close()
    unlearn_and_restore(here, person.study)
    assert time.monotonic() - began < FLOW * crowding()
    # the PACS is gone: a mark holds, and the panel says what waits
    orthanc.stop()
    here.click("mark-study")
    here.mark("quality")
    here.see("study", marked="true")
    assert "Marks hold all the same" in here.see("pacs").inner_text()
    here.picture("pacs-gone")
    orthanc.start()
    httpx.post(f"{server.url}/pacs/outbox/retry").raise_for_status()
    here.gone("pacs")
