"""The extension in released viewers: what works in which, and how long a mark's life takes.

    python tests/benchmarks/ohif_matrix.py            # asks npm for four packages of 50 MB

The viewers are used as they come from npm, none is rebuilt; ``.bench/viewers`` keeps them for the
next run. Studies and model are those of
``tests/ohif_site.py``; the unlearning runs to its end, the audit is short and always passes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import bar, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chromium import chromium
from ohif_site import ROOT, Hospital, build_hospital, serving
from ohif_tab import Tab, open_tab
from segunlearn.app.viewer_package import CURRENT, ViewerPackage, fetch, unpack, version_in

#: Viewers, and what each cannot show: its release has no place for it.
VIEWERS: dict[str, tuple[str, ...]] = {
    "bundled": ("menus", "column"),
    "3.11.1": ("column",),
    "3.12.10": ("column",),
    CURRENT.version: (),
    "3.14.0-beta.6": (),
}


KEPT = ROOT / ".bench" / "viewers"


def viewer(version: str) -> Path | None:
    """Prepare a viewer, or find the prepared one; None for the one in MONAI Label."""
    if version == "bundled":
        return None
    folder = KEPT / version
    if not folder.is_dir() or version_in(folder) != version:
        package = CURRENT if version == CURRENT.version else ViewerPackage(version)
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as download:
            unpack(fetch(Path(download), package), folder, package)
    return folder


def try_one(tab: Tab, hospital: Hospital, absent: tuple[str, ...]) -> dict[str, Any]:
    """Go through a mark's life; what fails is noted, and the rest is tried all the same."""
    person = hospital.people[0]
    found: dict[str, Any] = {}

    def step(name: str, work: Callable[[], object]) -> None:
        if name in absent:
            found[name] = "not in this release"
            return
        began = time.monotonic()
        try:
            work()
        except Exception as error:  # noqa: BLE001 a step that fails is a result
            found[name] = f"failed: {str(error).splitlines()[0][:160]}"
        else:
            found[name] = round(time.monotonic() - began, 1)

    def menus() -> None:
        thumbnail = tab.page.locator("[data-cy=study-browser-thumbnail]", has_text="portal venous")
        tab.menu(thumbnail, "Mark for forgetting…")
        tab.mark("quality")
        tab.see("series", uid=person.series, marked="true")
        tab.menu(thumbnail, "Withdraw mark")
        tab.confirm()
        tab.see("series", uid=person.series, marked="false")

    def mark() -> None:
        tab.click("mark-study")
        tab.mark("consent_withdrawn")
        tab.see("study", marked="true")

    def unlearn() -> None:
        tab.click("approve")
        tab.confirm("approve")
        tab.click("unlearn")
        tab.see("plan")
        tab.page.check("[data-cy=sul-quick]")
        tab.confirm("unlearn")
        tab.see("run")
        tab.see("request", target=person.study, state="fulfilled")

    def compare() -> None:
        tab.click("compare")
        tab.see("masks", shown="now")
        tab.page.check("[data-cy=sul-mask-before]")
        tab.see("masks", shown="before")

    def restore() -> None:
        tab.click("restore")
        tab.confirm("restore")
        tab.see("request", target=person.study, state="restored")

    def column() -> None:
        tab.click("mark-study")
        tab.mark("quality")
        tab.page.goto(f"{tab.url}/ohif/")
        tab.see("cell")

    step("panel", lambda: tab.open(person.study))
    step("menus", menus)
    step("mark", mark)
    step("badge", lambda: tab.see("badge"))
    step("unlearn", unlearn)
    step("compare masks", compare)
    step("restore", restore)
    step("column", column)
    return found


def main() -> None:
    """Try and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=[*VIEWERS], default=[*VIEWERS])
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        hospital = build_hospital(folder)
        for version in arguments.only:
            place = folder / version
            place.mkdir()
            prepared = viewer(version)
            own = hospital.copy(place)
            with (
                serving(str(own.dicom), own.home, prepared) as server,
                open_tab(browser, server.url) as tab,
            ):
                found = try_one(tab, own, VIEWERS[version])
                figures[version] = {**found, "faults in the console": tab.faults}
            sys.stdout.write(f"{version}: {figures[version]}\n")
    bars = []
    for version, found in figures.items():
        wrong = [k for k, v in found.items() if isinstance(v, str) and v.startswith("failed")]
        bars.append(bar(f"OHIF {version}: steps that fail", len(wrong), "= 0", not wrong))
        faults = len(found["faults in the console"])
        bars.append(bar(f"OHIF {version}: faults in the console", faults, "= 0", faults == 0))
    write("ohif_matrix", figures, bars, unit="seconds each step took")


if __name__ == "__main__":
    main()
