"""A page of the viewer with our panel, in which nothing may go wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import missing
from ohif_site import ROOT

PANEL = "@segunlearn/ohif-extension.panelModule.forget"
AXE = ROOT / "lib" / "ohif" / "node_modules" / "axe-core" / "axe.min.js"
#: What of ours is wider than its place, or a dialog that leaves the page.
FITS = """() => {
  const found = [];
  const panel = document.querySelector('.sul');
  if (panel && panel.scrollWidth > panel.clientWidth) found.push('the panel scrolls sideways');
  for (const e of document.querySelectorAll('.sul *')) {
    const [own, around] = [e.getBoundingClientRect(), panel.getBoundingClientRect()];
    if (own.width && !e.closest('.sul-hidden') && own.right > around.right + 1)
      found.push(e.outerHTML.slice(0, 90));
  }
  for (let e = panel?.parentElement; e && e !== document.body; e = e.parentElement)
    if (e.scrollHeight > e.clientHeight + 1)
      found.push(`the host scrolls around the panel: ${e.scrollHeight} of ${e.clientHeight} px in `
        + e.outerHTML.slice(0, 90));
  const at = document.querySelector('dialog.sul-dialog')?.getBoundingClientRect();
  if (at && Math.min(at.left, at.top, innerWidth - at.right, innerHeight - at.bottom) < 0)
    found.push('the dialog leaves the page');
  return found;
}"""
PICTURES = os.environ.get("SEGUNLEARN_PICTURES", "")


@dataclass
class Tab:
    """A page of the viewer with the panel."""

    page: Any
    url: str
    #: Addresses whose refusal a test expects, and the console line that the browser makes of it.
    expected: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    name: str = ""

    def begin(self, study: str, mode: str = "viewer") -> None:
        """Start to open a study; :meth:`show` waits for it."""
        self.page.goto(f"{self.url}/ohif/{mode}?StudyInstanceUIDs={study}", wait_until="commit")

    def wait(self) -> None:
        """Wait until the viewer has our panel."""
        self.page.wait_for_function(
            "id => window.services?.panelService?.getPanels('right').some(p => p.id === id)",
            arg=PANEL,
        )

    def show(self) -> None:
        """Wait for the study, and bring the panel to the front."""
        self.wait()
        self.page.wait_for_selector("[data-cy=viewport-pane] canvas")
        if not self.page.query_selector("[data-cy=sul-panel]"):
            self.page.evaluate("id => window.services.panelService.activatePanel(id, true)", PANEL)
        self.page.wait_for_selector("[data-cy=sul-series]")

    def open(self, study: str, mode: str = "viewer") -> None:
        self.begin(study, mode)
        self.show()

    def see(self, name: str, **attributes: str) -> Any:
        """Wait for one of our elements, by its ``data-cy`` and other data; returns it."""
        more = "".join(f'[data-{k}="{v}"]' for k, v in attributes.items())
        return self.page.wait_for_selector(f"[data-cy=sul-{name}]{more}")

    def reads(self, name: str, words: str) -> None:
        """Wait until one of our elements shows a text; the lists are asked for one by one."""
        quoted = json.dumps(words)
        self.page.wait_for_selector(f"[data-cy=sul-{name}]:has-text({quoted})")

    def click(self, name: str) -> None:
        self.page.click(f"[data-cy=sul-{name}]")

    def try_to(self, name: str) -> None:
        """Click what is not open, as a person would; Playwright waits until it is."""
        self.page.click(f"[data-cy=sul-{name}][aria-disabled=true]", force=True)

    def text(self, name: str) -> str:
        return str(self.page.inner_text(f"[data-cy=sul-{name}]"))

    def gone(self, name: str) -> None:
        self.page.wait_for_selector(f"[data-cy=sul-{name}]", state="detached")

    def menu(self, item: Any, entry: str) -> None:
        """Choose from the menu that appears over a thumbnail or a study."""
        item.hover()
        item.locator("button[aria-haspopup=menu]").first.click()
        self.page.click(f"[role=menuitem]:has-text('{entry}')")

    def mark(self, reason: str, note: str = "") -> None:
        """Fill in the dialog that is open, and send it."""
        self.page.select_option("[data-cy=sul-reason]", reason)
        self.page.fill("[data-cy=sul-note]", note)
        self.click("confirm")
        self.gone("dialog")

    def confirm(self, word: str = "") -> None:
        if word:
            self.page.fill("[data-cy=sul-typed]", word)
        self.click("confirm")
        self.gone("dialog")

    def accessible(self) -> None:
        """Nothing serious in what is ours, by axe-core; and it fits into the page."""
        for _ in range(round(100 * crowding())):  # while the page is still being laid out
            outside = self.page.evaluate(FITS)
            if not outside:
                break
            self.page.wait_for_timeout(100)
        assert outside == [], outside
        if not AXE.is_file():
            missing("axe-core is not installed (make ohif-tools)")
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            """() => axe.run(document.querySelector('dialog.sul-dialog')
                             ?? document.querySelector('.sul'))
                     .then(r => r.violations.map(v => [v.id, v.impact, v.nodes[0].html]))"""
        )
        assert [v for v in found if v[1] in ("serious", "critical")] == []

    def picture(self, name: str) -> None:
        """Keep what is seen, when ``SEGUNLEARN_PICTURES`` names a folder."""
        if PICTURES:
            folder = Path(PICTURES)
            folder.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(folder / f"{self.name}{name}.png"))


def crowding() -> float:
    """Say how many programs share each core, this one among them."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@contextmanager
def open_tab(browser: Any, url: str, name: str = "", seconds: float = 100) -> Iterator[Tab]:
    """Open a page in a browser of its own; what goes wrong in it is kept in ``faults``."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    context.set_default_timeout(1000 * seconds * crowding())
    tab = Tab(context.new_page(), url, name=name)
    _watch(tab)
    try:
        yield tab
    finally:
        context.close()


def _watch(tab: Tab) -> None:
    def is_expected(url: str) -> bool:
        return any(part in url for part in tab.expected)

    def on_console(message: Any) -> None:
        if message.type == "error" and not is_expected(message.location["url"] + message.text):
            tab.faults.append(f"{message.text} {message.location['url']}")

    def on_response(response: Any) -> None:
        if response.status >= 400 and not is_expected(response.url):
            tab.faults.append(f"{response.status} {response.url}")

    def on_request(request: Any) -> None:
        if not request.url.startswith((tab.url, "blob:", "data:")):
            tab.faults.append(f"a request to {request.url}")

    page = tab.page
    page.on("pageerror", lambda error: tab.faults.append(str(error)))
    page.on("console", on_console)
    page.on("response", on_response)
    page.on("request", on_request)
    page.on("dialog", lambda dialog: tab.faults.append(f"a script ran: {dialog.message}"))
