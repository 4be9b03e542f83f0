"""What the panel says when something is wrong; it goes on by itself, and loses no typed text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ohif_site import ATTACK, HOSTILE, Hospital, ViewerServer, serving
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.records.runs import Progress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TYPED = "the letter of the third of May, page two"


@pytest.fixture(scope="module")
def site(
    hospital: Hospital, newer_viewer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Hospital, ViewerServer]]:
    own = hospital.copy(tmp_path_factory.mktemp("faults"))
    with serving(str(own.dicom), own.home, newer_viewer) as server:
        yield own, server


def test_a_server_that_stops(new_tab: Any, site: tuple[Hospital, ViewerServer]) -> None:
    hospital, server = site
    person = hospital.people[3]
    tab = new_tab(server.url)
    tab.open(person.study)
    tab.expected.append("")  # requests fail while it is away
    tab.click("mark-study")
    tab.page.select_option("[data-cy=sul-reason]", "other")
    tab.page.fill("[data-cy=sul-note]", TYPED)
    server.stop()
    tab.click("confirm")
    assert "does not answer" in tab.see("fault").inner_text()
    assert tab.page.input_value("[data-cy=sul-note]") == TYPED
    tab.see("server", state="away")
    tab.picture("away")
    server.start()
    tab.gone("server")  # by itself
    assert tab.page.input_value("[data-cy=sul-note]") == TYPED
    tab.page.reload(wait_until="commit")
    tab.show()
    tab.click("mark-study")
    assert tab.page.input_value("[data-cy=sul-note]") == TYPED
    tab.click("confirm")
    tab.see("study", marked="true")
    assert TYPED in tab.text("forget-set")
    assert tab.page.evaluate("() => sessionStorage['segunlearn.drafts']") == "{}"


def test_session_role_run_and_study(new_tab: Any, site: tuple[Hospital, ViewerServer]) -> None:
    """One page, as each loads for seconds: what goes wrong is put right before the next."""
    hospital, server = site
    person = hospital.people[HOSTILE]
    tab = new_tab(server.url)
    tab.open(person.study)
    page = tab.page
    assert ATTACK in tab.text("study")  # shown as text; a script that runs fails the test

    # the session expires while somebody types
    tab.click("mark-patient")
    page.select_option("[data-cy=sul-reason]", "wrong_patient")
    page.fill("[data-cy=sul-note]", TYPED)
    tab.expected.append("/forget/patients/")
    page.route("**/forget/patients/**", lambda route: route.fulfill(status=401, body="{}"))
    tab.click("confirm")
    assert "session has expired" in tab.see("fault").inner_text()
    tab.see("server", state="expired")
    tab.picture("expired")
    page.unroute("**/forget/patients/**")
    tab.gone("server")
    assert page.input_value("[data-cy=sul-note]") == TYPED
    tab.click("cancel")

    # a run fails
    records = Records(Home(hospital.home))
    run = records.runs.start("unlearn", "segmentation", {})
    try:
        records.runs.update(run, Progress("repair", 2, 9, {"loss": 1.5}, 30.0))
        assert "30 s" in tab.see("eta").inner_text()
        records.runs.finish(run, "failed", "the disk is full.")
        assert "the disk is full" in tab.see("last-run", run=run, state="failed").inner_text()
    finally:
        records.store.close()
    tab.picture("failed")

    # the study is removed before it is marked
    other = hospital.people[4]
    tab.open(other.study)
    tab.click("mark-study")
    page.select_option("[data-cy=sul-reason]", "other")
    page.fill("[data-cy=sul-note]", TYPED)
    shutil.rmtree(other.files[0].parents[1])
    found = f"{server.url}/dicomweb/studies?StudyInstanceUID={other.study}"
    for _ in range(100):
        if not httpx.get(found, timeout=10).content.strip(b"[] \n"):
            break
        page.wait_for_timeout(100)
    tab.expected.append("/forget/studies/")
    tab.click("confirm")
    page.wait_for_selector("[data-cy=sul-fault], [data-cy=sul-study][data-marked=true]")
    tab.picture("removed")
    if page.query_selector("[data-cy=sul-fault]"):  # unless a model was trained on it
        assert page.input_value("[data-cy=sul-note]") == TYPED
        page.check("[data-cy=sul-unknown]")
        tab.click("confirm")
    tab.see("study", marked="true")


def test_a_role_that_may_not_is_told_why(new_tab: Any, site: tuple[Hospital, ViewerServer]) -> None:
    hospital, server = site
    tab = new_tab(server.url)
    me = {
        "name": "ann", "signed_in": True, "roles": ["monailabel-annotator"], "may_mark": True,
        "may_decide": False, "pacs": False,
    }  # fmt: skip
    tab.page.route("**/whoami", lambda route: route.fulfill(json=me))
    httpx.put(
        f"{server.url}/forget/patients/SYNTHETIC-P009", content=json.dumps({"reason": "quality"})
    )
    tab.open(hospital.people[5].study)
    assert "Signed in as ann (annotator)" in tab.text("me")
    approve = tab.see("approve")
    assert approve.get_attribute("aria-disabled") == "true"
    assert "Only administrators" in approve.get_attribute("title")
    tab.try_to("approve")
    assert "Only administrators may do this" in tab.text("forget-set")
    assert not tab.page.query_selector("[data-cy=sul-dialog]")
    tab.accessible()
    me.update(may_mark=False, roles=["monailabel-user"])
    tab.page.reload(wait_until="commit")
    tab.show()
    tab.try_to("mark-study")
    assert "Only annotators" in tab.text("study")
    tab.picture("role")
