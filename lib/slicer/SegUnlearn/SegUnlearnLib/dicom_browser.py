"""A button in Slicer's DICOM browser for the series that is selected there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from SegUnlearnLib import identity
from SegUnlearnLib.identity import Identity, Unknown
from SegUnlearnLib.idioms import button


class BrowserButton:
    """Asks the browser at the click, so that no signal of it is needed.

    Parameters
    ----------
    browser
        ``SlicerDICOMBrowser``: has ``actionButtonLayout`` and ``dicomBrowser``.
    database
        Gives the DICOM database.
    propose
        Opens the module with an identity and a kind of target.
    """

    def __init__(
        self,
        browser: Any,
        database: Callable[[], Any],
        propose: Callable[[Identity | Unknown, str], Any],
    ) -> None:
        self._browser, self._database, self._propose = browser, database, propose
        self.button = button(
            "Mark for forgetting…",
            self._clicked,
            "Mark the study of the selected series in SegUnlearn",
            "SegUnlearnMarkButton",
        )
        browser.actionButtonLayout.addWidget(self.button)

    def _clicked(self) -> None:
        tables = self._browser.dicomBrowser.dicomTableManager()
        found = identity.of_series(list(tables.currentSeriesSelection()), self._database())
        self._propose(found, "study")
