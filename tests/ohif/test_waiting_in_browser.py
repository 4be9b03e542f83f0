"""Requests that wait for an unlearning, in a real browser: again, several at once, and a purge."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ohif_site import MODEL, Site
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.records.runs import Progress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: The row of the button that has the focus.
FOCUSED = """() => document.activeElement.dataset.cy + ' '
  + document.activeElement.closest('[data-cy=sul-request]')?.dataset.id"""


def approved(client: httpx.Client, path: str) -> str:
    body = {"reason": "consent_withdrawn"}
    request = str(client.put(f"/forget/{path}", json=body).raise_for_status().json()["request_id"])
    client.post(f"/forget/requests/{request}/approve", json={}).raise_for_status()
    return request


def row(request: str, name: str = "") -> str:
    return f"[data-cy=sul-request][data-id='{request}']" + (f" [data-cy=sul-{name}]" * bool(name))


def test_the_focus_stays_where_something_was_done(new_tab: Any, embedded: Site) -> None:
    """Its button goes with its work; the focus fell to the page then."""
    hospital, server = embedded
    with httpx.Client(base_url=server.url, timeout=60) as client:
        body = {"reason": "consent_withdrawn"}
        one, other = (
            client.put(f"/forget/studies/{p.study}", json=body).json()["request_id"]
            for p in hospital.people[5:7]
        )
        tab = new_tab(server.url)
        page = tab.page
        tab.open(hospital.people[5].study)
        for request, at in ((one, f"sul-request {one}"), (other, "sul-forget-set undefined")):
            tab.see("request", id=request, state="requested")
            if request == other:  # whose row goes from what is looked for
                page.select_option("[data-cy=sul-state]", "requested")
            page.focus(row(request, "approve"))
            page.keyboard.press("Enter")
            page.fill("[data-cy=sul-typed]", "approve")
            page.focus("[data-cy=sul-confirm]")
            page.keyboard.press("Enter")
            tab.gone("dialog")
            page.wait_for_selector(row(request, "approve"), state="detached")
            page.wait_for_function(f"at => ({FOCUSED})() === at", arg=at)
            client.delete(f"/forget/requests/{request}").raise_for_status()


def test_what_waits_can_be_unlearned_and_a_purge_says_what_it_takes_along(
    new_tab: Any, embedded: Site
) -> None:
    hospital, server = embedded
    one, stopped, other = (p.study for p in hospital.people[:3])
    records = Records(Home(hospital.home))
    work = {"actor": "ann", "role": "unlearning"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        hidden, refused, third = (approved(client, f"studies/{s}") for s in (one, stopped, other))
        structure = approved(client, "structures/liver")
        try:
            for request in (hidden, refused):
                records.forget_set.transition(request, "working", **work)
            records.forget_set.set_reached(hidden, "hidden", why="an audit found hidden", **work)
            records.forget_set.transition(refused, "refused", why="stopped by a person", **work)
            tab = new_tab(server.url, "waiting-")
            page = tab.page
            tab.open(one)
            page.wait_for_selector(row(hidden, "tried"))
            assert page.inner_text(row(hidden, "chip")) == "only hidden so far"
            assert page.inner_text(row(hidden, "tried")) == "an audit found hidden"
            page.wait_for_selector(row(refused, "tried"))
            assert "audit" not in page.inner_text(row(refused, "chip"))
            assert page.inner_text(row(refused, "tried")) == "stopped by a person"
            tab.accessible()
            page.locator(row(hidden)).scroll_into_view_if_needed()
            tab.picture("rows")

            # while it runs, and only then, it is said to be unlearned
            run = records.runs.start("unlearn", MODEL, {"requests": [hidden]})
            records.runs.update(run, Progress("repair", 1, 9))
            page.wait_for_selector(f"{row(hidden, 'chip')}:has-text('being unlearned')")
            assert page.get_attribute(row(hidden, "unlearn"), "aria-disabled") == "true"
            records.runs.finish(run, "cancelled", "stopped")
            page.wait_for_selector(f"{row(hidden, 'chip')}:has-text('only hidden so far')")
        finally:
            records.store.close()

        # Escape gives the focus back to the button
        page.focus(row(hidden, "unlearn"))
        page.keyboard.press("Enter")
        assert "people never seen" in tab.see("plan").inner_text()
        page.keyboard.press("Escape")
        tab.gone("dialog")
        page.wait_for_function(f"id => ({FOCUSED})() === 'sul-unlearn ' + id", arg=hidden)

        # what the server does not offer, the dialog says in its words
        tab.expected.append("/unlearning/plan")
        page.click(row(structure, "unlearn"))
        assert "train from random weights" in tab.see("fault").inner_text()
        page.fill("[data-cy=sul-typed]", "unlearn")
        tab.try_to("confirm")
        assert "no answer to act on" in tab.text("dialog")
        tab.accessible()
        tab.picture("structure")
        tab.click("cancel")
        tab.gone("dialog")
        client.delete(f"/forget/requests/{structure}").raise_for_status()
        tab.see("request", id=structure, state="withdrawn")

        # all that wait: what is only hidden, too, but not what was refused
        tab.click("unlearn-all")
        tab.see("plan")
        listed = page.locator("[data-cy=sul-dialog] strong", has_text="study").all_inner_texts()
        assert len(listed) == 2
        page.check("[data-cy=sul-quick]")
        tab.picture("all")
        tab.confirm("unlearn")
        for request in (hidden, third):
            tab.see("request", id=request, state="fulfilled")
        tab.see("request", id=refused, state="refused")

        page.click(row(hidden, "purge"))
        tab.see("lost")
        lost = page.locator("[data-cy=sul-lost] li")
        assert lost.evaluate_all("all => all.map(e => e.dataset.id)") == [third]
        assert "v0001" in tab.text("lost")
        assert "lose their way back" in tab.text("lost")
        tab.accessible()
        tab.picture("purge")
        tab.confirm("purge")
        tab.see("request", id=hidden, state="purged")
        tab.reads("said", "1 more of the same unlearning cannot be restored any more")
        assert client.post(f"/forget/requests/{third}/restore", json={}).status_code == 404
