"""The viewer in a real browser: from a mark to an unlearning and back, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

from ohif_site import (
    ATTACK,
    HOSTILE,
    TAUGHT,
    Hospital,
    Person,
    Site,
    ViewerServer,
    serving,
    upload,
)
from ohif_tab import crowding
from oidc_issuer import running_issuer
from orthanc_process import OrthancProcess
from segunlearn.app.options import Home
from segunlearn.app.records import Records
from segunlearn.dicom.series import volume_from_datasets
from segunlearn.records.runs import Progress
from segunlearn.volumes import read_volume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Seconds in which a second browser must see a mark, and in which the whole flow must end; for
#: machines that do nothing else.
SEEN, FLOW = 5.0, 60.0
TYPED = "the letter of the third of May, page two"


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


def mark_the_study(tab: Any, study: str, note: str, *others: Any) -> None:
    """Mark from the panel; the other browsers see it in time."""
    tab.click("mark-study")
    tab.see("reason")
    tab.accessible()
    tab.picture("mark")
    tab.page.select_option("[data-cy=sul-reason]", "consent_withdrawn")
    tab.page.fill("[data-cy=sul-note]", note)
    assert "Art. 18" in tab.text("dialog")
    tab.click("confirm")
    began = time.monotonic()
    for other in others:
        other.see("study", marked="true")
        assert time.monotonic() - began < SEEN * crowding()
    tab.see("study", marked="true")
    tab.page.wait_for_selector("text=The study is marked for forgetting >> nth=1")  # the viewer's
    tab.see("request", target=study, state="requested")
    for each in (tab, *others):
        assert each.see("badge").inner_text() == "FORGET SET"


def unlearn(tab: Any, study: str) -> None:
    """Approve, unlearn to the end with progress that moves, read the report."""
    tab.click("approve")
    assert "Art. 18" in tab.text("dialog")
    tab.confirm("approve")
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
    assert "forgotten" in report.value.inner_text("body").lower()
    report.value.close()


def restore(tab: Any, study: str) -> None:
    tab.click("restore")
    tab.confirm("restore")
    tab.see("request", target=study, state="restored")
    tab.see("study", marked="false")
    tab.gone("badge")
    tab.picture("restored")


def compare(tab: Any, hospital: Hospital, person: Person) -> None:
    """Both masks lie where the server's own lie, and each can be shown alone."""
    request = tab.see("request", target=person.study, state="fulfilled").get_attribute("data-id")
    tab.click("compare")
    tab.see("masks", shown="now")
    for which, options in (("before", {"before": request}), ("now", {"site": "base"})):
        tab.page.check(f"[data-cy=sul-mask-{which}]")
        tab.see("masks", shown=which)
        assert tab.page.evaluate(VISIBLE, person.series) == [which]
        mask = mask_of(tab.url, person.series, options)
        slices = tab.page.evaluate(SLICES, f"segunlearn-{which}-{person.series}")
        np.testing.assert_array_equal(drawn(hospital, person, slices), mask)
        # a network of some seconds' training may find nothing once it forgot, on some processors
        assert mask.any() or which == "now"
        tab.picture(f"mask-{which}")
    tab.accessible()
    tab.page.check("[data-cy=sul-mask-none]")
    tab.see("masks", shown="none")
    assert tab.page.evaluate(VISIBLE, person.series) == []


#: Which of our two segmentations is seen in the viewport.
VISIBLE = """series => ['before', 'now'].filter(w => {
  const {state, config} = window.cornerstoneTools.segmentation;
  const segmentationId = `segunlearn-${w}-${series}`;
  const which = {segmentationId, type: 'Labelmap'};
  return state.getViewportIdsWithSegmentation(segmentationId).some(
    v => config.visibility.getHiddenSegmentIndices(v, which).size === 0);
})"""
#: Pixels of a segmentation by the instance they lie on.
SLICES = """id => {
  const {cache, metaData} = window.cornerstone;
  const made = window.cornerstoneTools.segmentation.state.getSegmentation(id);
  return made.representationData.Labelmap.imageIds.map(i => cache.getImage(i)).map(image => [
    metaData.get('instance', image.referencedImageId).SOPInstanceUID,
    Array.from(image.getPixelData())]);
}"""


def mask_of(url: str, series: str, options: dict[str, Any]) -> npt.NDArray[np.generic]:
    """The mask that the server gives, (X, Y, Z) in RAS."""
    form = {"params": json.dumps({"result_extension": ".nii.gz", **options})}
    answer = httpx.post(
        f"{url}/infer/segmentation?image={series}&output=image", data=form, timeout=120
    )
    assert answer.status_code == 200, answer.text
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as file:
        Path(file.name).write_bytes(answer.content)
        return read_volume(Path(file.name), label=True).array


def drawn(hospital: Hospital, person: Person, slices: Any) -> npt.NDArray[np.generic]:
    """What lies on the images, put together by their headers as the server does it."""
    pixels = dict(slices)
    datasets = [d for d in hospital.datasets() if d.SOPInstanceUID in pixels]
    for dataset in datasets:
        values = np.array(pixels[dataset.SOPInstanceUID], np.int16)
        dataset.PixelData = values.reshape(dataset.Rows, dataset.Columns).tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
    return volume_from_datasets(datasets).array.astype(np.uint8)


WATCH = """() => {
  window.steps = [];
  new MutationObserver(() => {
    const e = document.querySelector('[data-cy=sul-run]');
    const now = e && [e.dataset.phase, e.dataset.step].join('|');
    if (now && now !== window.steps.at(-1)) window.steps.push(now);
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def test_the_whole_flow_in_a_current_viewer(new_tab: Any, embedded: Site) -> None:
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
    here.menu(thumbnail, "Mark for forgetting…")
    here.mark("quality", "too dark")
    here.see("series", uid=person.series, marked="true")
    here.menu(thumbnail, "Withdraw mark")
    here.confirm()
    here.see("series", uid=person.series, marked="false")
    there.show()
    mark_the_study(here, person.study, "asked by letter <b>today</b>", there)
    here.picture("marked")
    there.page.context.close()
    assert "<b>today</b>" in here.text("forget-set")
    unlearn(here, person.study)
    compare(here, hospital, person)
    restore(here, person.study)
    here.gone("masks")  # by itself
    assert time.monotonic() - began < FLOW * crowding()
    steps = here.page.evaluate("() => window.steps")
    # the stream tells of a run once a second, and the phases of this one are as short
    assert len({s.split("|")[0] for s in steps}) > 1, steps


def test_the_menu_of_a_study(new_tab: Any, embedded: Site) -> None:
    hospital, server = embedded
    person = hospital.people[0]
    tab = new_tab(server.url)
    tab.open(person.study)
    study = tab.page.locator(".group", has_text="SYNTHETIC abdomen").first
    # Escape leaves everything as it was, even while the menu, which takes Escape too, still fades
    fading = tab.page.add_style_tag(content="[role=menu] {animation-duration: 9999s !important}")
    tab.menu(study, "Mark for forgetting…")
    assert "Mark this study" in tab.text("dialog")
    tab.page.keyboard.press("Escape")
    tab.gone("dialog")
    tab.see("study", marked="false")
    tab.page.keyboard.press("Escape")  # to the menu now
    fading.evaluate("style => style.remove()")
    tab.menu(study, "Mark for forgetting…")
    tab.mark("retention_expired")
    tab.see("study", marked="true")
    tab.page.goto(f"{server.url}/ohif/")
    assert tab.see("cell").inner_text() == "FORGET"
    assert tab.page.locator("[data-cy=sul-cell]").count() == 1
    tab.picture("list")


def test_adapting_and_purging(new_tab: Any, embedded: Site) -> None:
    """Where streams are cut, and support is chosen on two pages."""
    hospital, server = embedded
    tab = new_tab(server.url)
    tab.expected.append("/changes")
    tab.page.route("**/changes", lambda route: route.abort())
    for number, person in enumerate(hospital.people[TAUGHT : TAUGHT + 2], 1):
        tab.open(person.study)
        assert tab.page.query_selector("[data-cy=sul-adapt][aria-disabled=true]") or number > 1
        tab.page.click(f"[data-uid='{person.series}'] button:has-text('Use for adapting')")
        assert f"Adapt with these {number} series" in tab.text("adapters")
    tab.click("adapt")
    assert "You can roll back" in tab.text("dialog")
    tab.accessible()
    tab.try_to("confirm")
    tab.picture("adapt")
    tab.confirm("adapt")
    tab.see("last-run", state="done")
    tab.see("adapter", serves="true")
    tab.picture("adapted")
    tab.page.click("[data-cy=sul-adapter][data-serves=true] button")
    tab.confirm()
    tab.page.wait_for_selector("[data-cy=sul-said]:has-text('The model itself serves the site')")
    tab.gone("adapter][data-serves=true")

    with httpx.Client(base_url=server.url, timeout=60) as client:
        person = hospital.people[2]
        body = {"reason": "consent_withdrawn"}
        request = client.put(f"/forget/studies/{person.study}", json=body).json()["request_id"]
        tab.see("request", id=request, state="requested")
        client.post(f"/forget/requests/{request}/approve", json={}).raise_for_status()
        order = {"requests": request, "dry_run": False, "quick": True}
        for _ in range(600):  # the process of the adapting ends a moment after its run
            answer = client.post("/train/unlearn", json=order)
            if answer.status_code != 429:
                break
            time.sleep(0.1)
        answer.raise_for_status()
        tab.see("request", id=request, state="fulfilled")
        row = f"[data-cy=sul-request][data-id='{request}']"
        tab.page.click(f"{row} [data-cy=sul-purge]")
        assert "Art. 17" in tab.text("dialog")
        tab.accessible()
        tab.try_to("confirm")
        tab.picture("purge")
        tab.confirm("purge")
        tab.see("request", id=request, state="purged")
        tab.reads("said", "Destroyed for good: v0001")
        assert "nobody can bring it back" in tab.page.inner_text(row)
        assert not tab.page.query_selector(f"{row} button")
        tab.picture("purged")
        form = {"params": json.dumps({"before": request})}
        answer = client.post(f"/infer/segmentation?image={person.series}", data=form)
        assert (answer.status_code, "was purged" in answer.text) == (409, True)


def test_what_goes_wrong_is_said_and_goes_on_by_itself(new_tab: Any, embedded: Site) -> None:
    """One page for all of it, as each loads for seconds."""
    hospital, server = embedded
    tab = new_tab(server.url)
    page = tab.page
    tab.begin(hospital.people[HOSTILE].study)
    tab.wait()
    bright = page.add_style_tag(content="div {background-color: #fff !important}")
    tab.show()
    assert ATTACK in tab.text("study")  # shown as text; a script that runs fails the test
    assert page.get_attribute(".sul", "data-theme") == "light"
    tab.accessible()
    tab.picture("light")
    bright.evaluate("style => style.remove()")

    # a run fails while somebody types, by keyboard alone
    page.focus("[data-cy=sul-mark-study]:not([aria-disabled])")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # from the reason, where it begins
    page.keyboard.type(TYPED)
    records = Records(Home(hospital.home))
    run = records.runs.start("unlearn", "segmentation", {})
    try:
        records.runs.update(run, Progress("repair", 2, 9, {"loss": 1.5}, 30.0))
        assert "30 s" in tab.see("eta").inner_text()
        tab.reads("loss", "1.500")
        records.runs.finish(run, "failed", "the disk is full.")
        assert "the disk is full" in tab.see("last-run", run=run, state="failed").inner_text()
    finally:
        records.store.close()
    assert page.input_value("[data-cy=sul-note]") == TYPED
    tab.picture("failed")

    # the page is loaded again, with another study between: the text of each is kept
    tab.open(hospital.people[-1].study)
    tab.expected.append("")  # from here on refusals are what is tried
    tab.click("mark-study")
    assert page.input_value("[data-cy=sul-note]") == ""
    page.select_option("[data-cy=sul-reason]", "other")
    page.fill("[data-cy=sul-note]", TYPED)
    page.reload()
    tab.show()
    tab.click("mark-study")
    assert page.input_value("[data-cy=sul-note]") == TYPED
    assert page.input_value("[data-cy=sul-reason]") == "other"

    # the study is removed before it is marked
    remove(hospital, hospital.people[-1], server)
    tab.click("confirm")
    assert "there is no such study" in tab.see("fault").inner_text().lower()
    assert page.input_value("[data-cy=sul-note]") == TYPED
    page.check("[data-cy=sul-unknown]")
    tab.picture("removed")

    # the server stops; when it is back, it wants people to sign in
    server.stop()
    tab.click("confirm")
    page.wait_for_selector("[data-cy=sul-fault]:has-text('does not answer')")
    tab.see("server", state="away")
    tab.picture("away")
    with running_issuer() as issuer:
        server.start(login="oidc", issuer=issuer.issuer)
        tab.see("server", state="expired")
        assert "Sign in again" in tab.text("server")
        tab.picture("expired")
        sign_in(tab)
        tab.gone("server")  # by itself
        assert page.input_value("[data-cy=sul-note]") == TYPED
        tab.click("confirm")
        tab.see("study", marked="true")
        tab.reads("forget-set", TYPED)
        # what was sent is not kept; what was typed elsewhere still is
        assert list(json.loads(page.evaluate("() => sessionStorage['segunlearn.drafts']"))) == [
            f"note-study-{hospital.people[HOSTILE].study}"
        ]

        # the role does not allow it, and the panel says why
        tab.reads("me", "Signed in as meyer (annotator)")
        tab.try_to("approve")
        tab.reads("forget-set", "Only administrators may do this")
        assert not page.query_selector("[data-cy=sul-dialog]")
        tab.accessible()
        tab.picture("role")


def remove(hospital: Hospital, person: Person, server: ViewerServer) -> None:
    """Take a study out of the archive, and wait until the server knows."""
    shutil.rmtree(hospital.dicom / person.name)
    found = f"{server.url}/dicomweb/studies?StudyInstanceUID={person.study}"
    unseen = 0  # looks in a row: the list of studies is read again by whoever asks, and then old
    for _ in range(300):
        unseen = 0 if httpx.get(found, timeout=30).content.strip(b"[] \n") else unseen + 1
        listed = httpx.get(f"{server.url}/datastore/?output=all", timeout=30)
        known = listed.status_code != 200 or person.series in listed.text  # or between two states
        unseen = 0 if known else unseen
        httpx.get(f"{server.url}/forget/status?study={person.study}", timeout=30)
        if unseen == 5:
            return
        time.sleep(0.5)
    raise AssertionError("the server still lists the study")


def sign_in(tab: Any) -> None:
    """Follow the dialog's link, in a tab of its own, to the issuer and back."""
    with tab.page.context.expect_page() as opened:
        tab.page.click("[data-cy=sul-dialog] [data-cy=sul-sign-in]")
    opened.value.click("a:has-text('Sign in')")
    opened.value.wait_for_url(f"{tab.url}/")
    opened.value.close()


@pytest.mark.pacs
def test_the_bundled_viewer_with_a_pacs(
    new_tab: Any, pacs: tuple[Hospital, ViewerServer, OrthancProcess]
) -> None:
    hospital, server, orthanc = pacs
    person = hospital.people[0]
    began = time.monotonic()
    tab = new_tab(server.url, "bundled-")
    tab.open(person.study)
    mark_the_study(tab, person.study, "")
    unlearn(tab, person.study)
    compare(tab, hospital, person)
    restore(tab, person.study)
    assert time.monotonic() - began < FLOW * crowding()
    # the PACS is gone: a mark holds, and the panel says what waits
    orthanc.stop()
    tab.click("mark-study")
    tab.mark("quality", TYPED)
    tab.see("study", marked="true")
    tab.reads("forget-set", TYPED)
    assert "Marks hold all the same" in tab.see("pacs").inner_text()
    tab.picture("pacs-gone")
    orthanc.start()
    httpx.post(f"{server.url}/pacs/outbox/retry", timeout=30).raise_for_status()
    tab.gone("pacs")
