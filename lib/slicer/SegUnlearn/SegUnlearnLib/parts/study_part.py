"""The loaded study: who it is, its state, marking it, segmenting it, submitting its label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.identity import Identity, Unknown
from SegUnlearnLib.idioms import button, column, data_of, label, row, text_of
from SegUnlearnLib.parts.confirm import Confirm
from SegUnlearnLib.parts.style import colour_of, dot, frame
from SegUnlearnLib.study import Study
from SegUnlearnLib.volumes import Volumes


class StudyPart:
    """Chooses the image; shows and marks its study.

    Parameters
    ----------
    study, volumes
        What is shown.
    identify
        Finds out whose study a volume is.
    may_mark
        Whether the one who is signed in may mark.
    """

    def __init__(
        self,
        study: Study,
        volumes: Volumes,
        identify: Callable[[Any], Identity | Unknown],
        may_mark: Callable[[], bool],
    ) -> None:
        self._study, self._volumes, self._identify = study, volumes, identify
        self._may_mark = may_mark
        self._active = ""
        self._pinned: Any = None  # an item that was chosen elsewhere than in the list of images
        self.widget = qt.QWidget()
        layout = column(self.widget)
        self.choice = qt.QComboBox()
        self.choice.setObjectName("volumeChoice")
        self.choice.currentIndexChanged.connect(lambda *_: self._chosen())
        layout.addLayout(row(label("Image", wrap=False), self.choice, stretch=1))
        layout.addWidget(self._card())
        self.form = self._form()
        layout.addWidget(self.form)
        self.confirm = Confirm()
        layout.addWidget(self.confirm.widget)
        study.changed.connect(self._changed)
        study.marked.connect(self._marked)
        volumes.changed.connect(self.fill)
        self.fill()

    # -- which image ---------------------------------------------------------------------------

    def volume(self) -> Any:
        """Return the image that is chosen, None without one."""
        node_id = data_of(self.choice)
        found = [node for node in self._volumes.all() if node.GetID() == node_id]
        return found[0] if found else None

    def fill(self) -> None:
        """Offer the images of the scene; what is chosen stays chosen while it is there."""
        everything = self._volumes.all()
        ids = [node.GetID() for node in everything]
        before, active = data_of(self.choice), self._volumes.active()
        shown = active.GetID() if active is not None else ""
        looks_elsewhere, self._active = shown != self._active, shown
        chosen = before if before in ids and not looks_elsewhere else shown
        self.choice.blockSignals(True)
        self.choice.clear()
        for node in everything:
            self.choice.addItem(node.GetName() or "(without name)", node.GetID())
        if not ids:
            self.choice.addItem("No image is loaded", "")
        pinned = self._pinned is not None and not looks_elsewhere
        self.choice.setCurrentIndex(-1 if pinned else ids.index(chosen) if chosen in ids else 0)
        self.choice.setEnabled(bool(ids))
        self.choice.blockSignals(False)
        if not pinned:
            self._chosen()

    def show_identity(self, identity: Identity | Unknown, kind: str = "study") -> None:
        """Show what was chosen in the subject hierarchy or the DICOM browser.

        Where an image of it is loaded, that one is chosen; else no image is, so that nothing is
        segmented or submitted for a study that is not on the screen.
        """
        self.fill()  # the panel may never have been shown
        self.confirm.hide()
        for node in self._volumes.all():
            if isinstance(identity, Identity) and _is_of(self._identify(node), identity):
                self.choice.setCurrentIndex(self.choice.findData(node.GetID()))
                self._chosen()
                self._choose_kind(kind)
                return
        self._pinned = identity
        self.choice.blockSignals(True)
        self.choice.setCurrentIndex(-1)
        self.choice.blockSignals(False)
        self._study.show(identity)
        self._changed()
        self._choose_kind(kind)

    def _chosen(self) -> None:
        self._pinned = None
        found = self._identify(self.volume())
        if found != self._study.identity:
            self.confirm.hide()
        self._study.show(found)
        self._changed()

    # -- what is shown -------------------------------------------------------------------------

    def _card(self) -> Any:
        card = frame("card")
        layout = column(card, 8)
        self._who = label(role="identity")
        self._who.setObjectName("studyIdentity")
        self._source = label(role="quiet")
        self._dot = qt.QLabel()
        self._state = label()
        self._state.setObjectName("studyState")
        layout.addWidget(self._who)
        layout.addWidget(self._source)
        layout.addLayout(row(self._dot, self._state, stretch=1))
        return card

    def _form(self) -> Any:
        form = qt.QWidget()
        layout = column(form)
        self.kind, self.reason = qt.QComboBox(), qt.QComboBox()
        self.kind.setObjectName("markKind")
        self.reason.setObjectName("markReason")
        self.kind.currentIndexChanged.connect(lambda *_: self._describe())
        for code, words in texts.REASONS.items():
            self.reason.addItem(words, code)
        self.reason.currentIndexChanged.connect(lambda *_: self._describe())
        self.note = qt.QLineEdit()
        self.note.setObjectName("markNote")
        self.note.setPlaceholderText("Note for the record, without the patient's name")
        self.note.textChanged.connect(lambda *_: self._describe())
        self.mark = button("Mark for forgetting…", self._ask, name="markButton")
        self._hint = label(role="quiet")
        layout.addLayout(
            row(label("Mark", wrap=False), self.kind, label("because of", wrap=False),
                self.reason, stretch=3)
        )  # fmt: skip
        layout.addWidget(self.note)
        layout.addLayout(row(self.mark, self._hint, stretch=1))
        return form

    def _changed(self) -> None:
        one = self._study.identity
        known = isinstance(one, Identity)
        self.form.setVisible(known)
        self._source.setVisible(known)
        if isinstance(one, Identity):
            names = [
                f"{word} {texts.short(uid, 28)}"
                for word, uid in (
                    ("Patient", one.patient), ("Study", one.study), ("Series", one.series),
                )
                if uid
            ]  # fmt: skip
            self._who.setText("\n".join(names))
            self._who.setToolTip("\n".join(filter(None, (one.patient, one.study, one.series))))
            known_by = ""
            if self._study.known_by >= 0:
                number = self._study.known_by
                versions = texts.count(number, "model version", "model versions")
                known_by = f" · {versions if number else 'no model version'} learned from it"
            self._source.setText(f"Known from the {one.source}{known_by}")
            state = self._study.state
            self._state.setText(self._study.meaning or "Its state is not known.")
            colour = "#b6bac2" if state in ("", "free") else colour_of(state)
            self._dot.setPixmap(dot(colour).pixmap(14, 14))
            self._kinds(one)
        else:
            self._who.setText("Nothing can be marked")
            self._state.setText(one.reason)
            self._dot.setPixmap(dot("#d23f3f").pixmap(14, 14))
        self._describe()

    def _kinds(self, one: Identity) -> None:
        kinds = [kind for kind in ("study", "series", "patient") if one.target(kind)]
        now = [self.kind.itemData(i) for i in range(int(self.kind.property("count")))]
        if kinds != now:
            self.kind.blockSignals(True)
            self.kind.clear()
            for kind in kinds:
                self.kind.addItem(texts.KINDS[kind].lower(), kind)
            self.kind.blockSignals(False)

    def _choose_kind(self, kind: str) -> None:
        for index in range(int(self.kind.property("count"))):
            if self.kind.itemData(index) == kind:
                self.kind.setCurrentIndex(index)

    # -- marking -------------------------------------------------------------------------------

    def _describe(self) -> None:
        needs_note = data_of(self.reason) == "other" and not text_of(self.note).strip()
        if not self._may_mark():
            hint = "Connect first, with a role that may mark."
        elif needs_note:
            hint = "Say why in the note."
        else:
            kind = data_of(self.kind)
            hint = f"It covers {self._study.size(kind)}." if kind else ""
        self._hint.setText(hint)
        known = isinstance(self._study.identity, Identity)
        self.mark.setEnabled(bool(known and self._may_mark() and not needs_note))

    def _ask(self) -> None:
        kind, one = data_of(self.kind), self._study.identity
        if not isinstance(one, Identity) or not kind:
            return
        target = texts.short(one.target(kind), 28)
        reason, note = data_of(self.reason), text_of(self.note).strip()
        self.confirm.ask(
            f"Mark {kind} {target} ({self._study.size(kind)})?\nFrom now on it is in no training, "
            "no adaptation and no list of next samples. The images stay in the PACS. A mark can be "
            "withdrawn until its unlearning begins.",
            "Mark for forgetting",
            lambda: self._study.mark(one, kind, reason, note),
            danger=False,
        )

    def _marked(self, request: Any) -> None:
        self.note.clear()

    def refresh_rights(self) -> None:
        """Follow a changed login."""
        self._describe()


def _is_of(found: Identity | Unknown, wanted: Identity) -> bool:
    """Whether an image belongs to what is wanted, which may be less than a series."""
    return isinstance(found, Identity) and all(
        not asked or asked == known
        for asked, known in (
            (wanted.patient, found.patient), (wanted.study, found.study),
            (wanted.series, found.series),
        )
    )  # fmt: skip
