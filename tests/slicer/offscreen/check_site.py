"""Adapting to a site with selected labelled studies, its state, and rolling back; a real gate."""

from __future__ import annotations

from typing import Any

from check_unlearning import get, run_to_end


def choose(panel: Any, images: list[str]) -> None:
    studies = panel.find("labelledList")
    for index in range(studies.count()):
        item = studies.item(index)
        item.setSelected(item.toolTip() in images)


def test_adapt_and_roll_back(panel: Any, scene: Any, place: Any, loop: Any) -> None:
    panel.widget.enter()
    panel.connect(place.url)
    panel.widget.tabs.setCurrentIndex(3)
    site = panel.logic.site
    loop.until(
        lambda: len(site.labelled) == len(place.studies) - 1, what="labelled studies are listed"
    )
    assert not panel.find("adaptButton").isEnabled()
    # nobody marked them, and nobody submitted another label for them
    images = [place.unseen(3)["series"], place.unseen(5)["series"]]
    choose(panel, images)
    panel.shot("site")
    panel.click("adaptButton")
    panel.confirm(panel.widget.site.confirm, "2")
    run_to_end(panel, loop)
    assert panel.logic.runs.view.state == "done", panel.logic.runs.view
    assert "on 2 people, each left out once" in panel.find("runText").text()  # the gate's figures
    loop.until(lambda: site.adapters, what="the adapter is listed")
    (line,) = site.adapters
    assert line["serves"]
    panel.shot("adapted")
    panel.click("rollBackButton")
    panel.confirm(panel.widget.site.confirm)
    loop.until(lambda: "base model" in panel.banner())
    loop.until(lambda: not site.adapters[0]["serves"])
    assert not get(place, "/adapters")["adapters"][0]["serves"]
