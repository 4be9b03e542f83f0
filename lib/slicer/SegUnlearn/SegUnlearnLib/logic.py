"""Puts together what the panel works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

import slicer
from SegUnlearnLib import hierarchy, identity
from SegUnlearnLib.api import Api
from SegUnlearnLib.evidence import Evidence
from SegUnlearnLib.forget_set import ForgetSet
from SegUnlearnLib.identity import Identity, Unknown
from SegUnlearnLib.masks import Masks
from SegUnlearnLib.parameters import Parameters
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.run_view import RunView
from SegUnlearnLib.runs import Runs
from SegUnlearnLib.session import Session
from SegUnlearnLib.signals import Signal
from SegUnlearnLib.site import Site
from SegUnlearnLib.study import Study
from SegUnlearnLib.tokens import Tokens
from SegUnlearnLib.transport import Transport
from SegUnlearnLib.tree_icons import TreeIcons
from SegUnlearnLib.volumes import Volumes
from SegUnlearnLib.watch import Watch

#: Looks at a run in the time of one look at all that runs.
_WATCH = 5


class Logic:
    """Everything but widgets.

    Signals: ``failed(Problem)`` and ``told(text)``, of whatever part.

    Parameters
    ----------
    transport, parameters, tokens
        To the server; what is remembered.
    scene, database, monai_label
        Give the scene, the DICOM database and the widget of the MONAI Label module.
    open_file
        Shows a report.
    poll
        Seconds between two looks at a run; at all that runs it is looked more seldom.
    """

    def __init__(
        self,
        transport: Transport | None = None,
        parameters: Parameters | None = None,
        tokens: Tokens | None = None,
        scene: Callable[[], Any] | None = None,
        database: Callable[[], Any] | None = None,
        monai_label: Callable[[], Any] | None = None,
        open_file: Callable[[str], Any] | None = None,
        poll: float = 1.0,
    ) -> None:
        self.parameters = parameters or Parameters()
        self.tokens = tokens or Tokens()
        self.scene = scene or _scene
        self.database = database or _database
        self.monai_label = monai_label or _monai_label
        self.api = Api(transport or Transport())
        self.session = Session(self.api, self.parameters, self.tokens)
        self.volumes = Volumes(self.scene)
        self.icons = TreeIcons(self.scene)
        self.runs = Runs(self.api, poll)
        self.watch = Watch(self.api, self.runs, _WATCH * poll)
        self.study = Study(self.api, lambda: self.watch.unlearned)
        self.forget_set = ForgetSet(self.api)
        self.evidence = Evidence(self.api, open_file or _open)
        self.site = Site(self.api)
        self.masks = Masks(self.api, self.scene)
        self.failed, self.told = Signal(), Signal()
        for part in (self.study, self.forget_set, self.runs, self.evidence, self.site, self.masks):
            part.failed.connect(self.fail)
        self.session.failed.connect(self.failed.emit)
        self.session.changed.connect(self._other_server)
        self.runs.changed.connect(self._run_changed)
        self.runs.ended.connect(self._run_ended)
        self.runs.gone.connect(self.study.tell)
        self.watch.changed.connect(self.study.tell)
        self.watch.began.connect(self._began)
        self.watch.ended.connect(self._look_again)
        self.study.changed.connect(self._remember)
        self.study.marked.connect(lambda *_: self._marked())
        self.forget_set.done.connect(self._decided)
        self.forget_set.broken_off.connect(self.told.emit)
        self.site.done.connect(self._decided)
        self.masks.saved.connect(lambda *_: self.site.load())
        self._shown: Any = None
        self._runs_of: Any = None
        self._at_work = ""
        self._is_away = False  # another module is shown

    def identify(self, volume: Any) -> Identity | Unknown:
        """Find out whose study a volume is."""
        return identity.of_volume(volume, self.scene(), self.database(), self.monai_label())

    def reload(self) -> None:
        """Ask the server for everything that is shown."""
        if self.session.server is not None:
            for part in (self.forget_set, self.evidence, self.site):
                part.load()
            self.study.refresh()

    def come_back(self) -> None:
        """Ask for what others may have changed; the list of images, which is long, is kept."""
        self._is_away = False
        if self.session.server is not None:
            self._look_again()
            self.runs.resume()
            self.watch.start()

    def leave(self) -> None:
        """Ask for nothing by itself while another module is shown."""
        self._is_away = True
        self.runs.stop()
        self.watch.stop()

    def close(self) -> None:
        """Break off requests and delete reports, for the panel goes away."""
        self.leave()
        self.volumes.stop()
        self.icons.stop()
        self.api.transport.cancel_all()
        self.evidence.close()

    def _look_again(self) -> None:
        self.session.refresh()
        for part in (self.forget_set, self.evidence):
            part.load()
        self.site.load_adapters()
        self.study.refresh()

    def _other_server(self) -> None:
        server = self.session.server
        self.masks.labels = server.labels if server else {}
        known = (self.session.address, server.user) if server else None
        if known == self._shown:
            return  # the same one told its newest version
        self._shown = known
        if server is None:
            for part in (self.forget_set, self.evidence, self.site):
                part.clear()
            self.masks.clear()
            self.runs.hide()
            self.watch.clear()
            self.study.refresh()
        else:
            if known != self._runs_of:
                self.runs.forget()
            self._runs_of = known
            self.reload()
            if not self._is_away:
                self.runs.resume()
                self.watch.start()

    def _remember(self) -> None:
        """Note the study's state in the subject hierarchy, for its icon and its menu."""
        one = self.study.identity
        if isinstance(one, Identity) and one.study and self.study.state:
            hierarchy.remember(self.scene(), one.study, self.study.state, self.study.words)
            self.icons.start()

    def _run_changed(self, view: RunView) -> None:
        """Show what a run works on, once it does: its requests are in another state by then."""
        self.study.tell()
        if view.phase and not view.is_over and view.run_id != self._at_work:
            self._at_work = view.run_id
            self._began()

    def _began(self) -> None:
        """Ask what the requests are that a run works on now."""
        self.forget_set.load()
        self.study.refresh()

    def _run_ended(self, view: Any) -> None:
        self.session.refresh()
        self.reload()

    def _marked(self) -> None:
        """Ask again for what a mark changes: it destroys the adapters that saw the study."""
        self.forget_set.load()
        self.site.load_adapters()

    def _decided(self, text: str) -> None:
        self.told.emit(text)
        self.session.refresh()
        self.study.refresh()

    def fail(self, problem: Problem) -> None:
        """Tell of a problem; a login that expired asks for a new one."""
        self.session.note(problem)
        self.failed.emit(problem)


def _scene() -> Any:
    return slicer.mrmlScene


def _database() -> Any:
    return getattr(slicer, "dicomDatabase", None)


def _monai_label() -> Any:
    return getattr(getattr(slicer, "modules", None), "MONAILabelWidget", None)


def _open(path: str) -> None:
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(path))
