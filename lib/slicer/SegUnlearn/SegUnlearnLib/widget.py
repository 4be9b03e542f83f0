"""The panel: one banner, the server, the run, and a tab for each matter."""

from __future__ import annotations

from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.identity import Identity, Unknown
from SegUnlearnLib.idioms import column
from SegUnlearnLib.logic import Logic
from SegUnlearnLib.parts.banner import Banner
from SegUnlearnLib.parts.evidence_part import EvidencePart
from SegUnlearnLib.parts.forget_part import ForgetPart
from SegUnlearnLib.parts.mask_part import MaskPart
from SegUnlearnLib.parts.run_part import RunPart
from SegUnlearnLib.parts.server_part import ServerPart
from SegUnlearnLib.parts.site_part import SitePart
from SegUnlearnLib.parts.study_part import StudyPart
from SegUnlearnLib.parts.style import SHEET
from SegUnlearnLib.problems import Problem


class Widget:
    """What the module shows.

    Parameters
    ----------
    logic
        Everything that it does.
    """

    def __init__(self, logic: Logic) -> None:
        self.logic = logic
        self.widget = qt.QWidget()
        self.widget.setStyleSheet(SHEET)
        layout = column(self.widget, 6)
        self.banner = Banner()
        self.server = ServerPart(logic.session, logic.parameters, logic.tokens.lasts)
        self.study = StudyPart(logic.study, logic.volumes, logic.identify, self._may_mark)
        self.masks = MaskPart(
            logic.masks, logic.session, self.study.volume, lambda: logic.study.identity,
            logic.scene, lambda: logic.parameters.client,
        )  # fmt: skip
        self.forget = ForgetPart(
            logic.forget_set, logic.runs, logic.watch, logic.api, self._may_decide, logic.fail
        )
        self.evidence = EvidencePart(logic.evidence)
        self.site = SitePart(logic.site, logic.runs, self._may_decide)
        self.run = RunPart(logic.runs, logic.watch, self._may_decide)
        self._questions = (
            self.study.confirm.hide, self.masks.drop, self.forget.drop, self.site.confirm.hide,
        )  # fmt: skip
        self.tabs = qt.QTabWidget()
        study_tab = qt.QWidget()
        in_tab = column(study_tab, 6)
        in_tab.addWidget(self.study.widget)
        in_tab.addWidget(self.masks.widget)
        in_tab.addStretch(1)
        for title, page in (
            ("Study", study_tab),
            ("Forget set", _page(self.forget.widget)),
            ("Audits", _page(self.evidence.widget)),
            ("This site", _page(self.site.widget)),
        ):
            self.tabs.addTab(page, title)
        layout.addWidget(self.banner.widget)
        layout.addWidget(self.server.widget)
        layout.addWidget(self.run.widget)
        layout.addWidget(self.tabs, 1)
        logic.failed.connect(self._failed)
        logic.told.connect(self.banner.notice)
        logic.session.changed.connect(self._server_changed)
        logic.study.changed.connect(self.masks.update)
        logic.study.marked.connect(self._marked)
        self._server_changed()

    # -- Slicer's life cycle -------------------------------------------------------------------

    def enter(self) -> None:
        """Be shown."""
        self.logic.volumes.start()
        self.study.fill()
        self.logic.come_back()
        if self.logic.session.server is None and not self.logic.session.connecting:
            self.server.auto_connect()

    def exit(self) -> None:
        """Ask for nothing while another module is shown."""
        self.logic.leave()

    def cleanup(self) -> None:
        """End with the module."""
        self.logic.close()

    # -- from elsewhere ------------------------------------------------------------------------

    def propose_mark(self, identity: Identity | Unknown, kind: str) -> None:
        """Show what was chosen in the subject hierarchy or DICOM browser, ready to be marked."""
        self.tabs.setCurrentIndex(0)
        self.study.show_identity(identity, kind)

    # -- what happens --------------------------------------------------------------------------

    def _may_mark(self) -> bool:
        server = self.logic.session.server
        return server is not None and server.may_mark

    def _may_decide(self) -> bool:
        server = self.logic.session.server
        return server is not None and server.may_decide

    def _server_changed(self) -> None:
        connected = self.logic.session.server is not None
        if connected and self.banner.role == "error":
            self.banner.hide()
        if not connected:  # a question is about the server that it was asked of
            for drop in self._questions:
                drop()
        for part in (self.forget, self.site, self.masks):
            part.update()
        self.study.refresh_rights()

    def _failed(self, problem: Problem) -> None:
        if problem.kind != "cancelled":
            self.banner.error(problem.text)

    def _marked(self, request: Any) -> None:
        kind = request["target"]["kind"]
        if request["state"] != "requested":
            meaning = texts.meaning_of(request, self.logic.watch.unlearned)
            text = f"The {kind} was marked before. {meaning}"
        else:
            text = (
                f"The {kind} is marked and out of training. An administrator's approval is needed "
                "before it is unlearned."
            )
        self.banner.notice(text)


def _page(inner: Any) -> Any:
    page = qt.QWidget()
    column(page, 6).addWidget(inner)
    return page
