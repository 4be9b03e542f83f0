"""The server: its address, consent, login and what it is."""

from __future__ import annotations

from typing import Any

import qt

from SegUnlearnLib import texts
from SegUnlearnLib.idioms import button, column, label, restyle, row, text_of
from SegUnlearnLib.parameters import Parameters, tidy
from SegUnlearnLib.parts.confirm import Confirm
from SegUnlearnLib.session import Session


class ServerPart:
    """Address and Connect; the login appears when the server asks for one."""

    def __init__(self, session: Session, parameters: Parameters, lasts: bool) -> None:
        self._session, self._parameters = session, parameters
        self.widget = qt.QWidget()
        layout = column(self.widget)
        self.address = qt.QLineEdit(parameters.address)
        self.address.setObjectName("serverAddress")
        self.address.setPlaceholderText("http://…")
        self.address.setToolTip("Shared with the MONAI Label module")
        self.address.returnPressed.connect(lambda *_: self.connect())
        self.go = button("Connect", self.connect, "Ask the server what it is", "connectButton")
        layout.addLayout(row(label("Server", wrap=False), self.address, self.go, stretch=1))
        self.confirm = Confirm()
        layout.addWidget(self.confirm.widget)
        self.state = label("Not connected.", role="quiet")
        layout.addWidget(self.state)
        self.login = self._login(lasts)
        layout.addWidget(self.login)
        session.changed.connect(self._changed)
        session.login_needed.connect(self._changed)
        self._changed()

    def connect(self) -> None:
        """Connect; nothing is sent to a server that the user has not agreed to."""
        address = tidy(text_of(self.address))
        if not address:
            return
        if self._parameters.is_allowed(address):
            self._session.connect(address)
            return
        self.confirm.ask(
            f"This module will send to {address}: identifiers of the studies that you load or mark "
            "(UIDs, PatientID), your notes, and labels that you submit. Nothing is sent to anybody "
            "else.",
            "Allow and connect",
            lambda: self._session.connect(address),
            danger=False,
        )

    def auto_connect(self) -> None:
        """Connect by itself only to a server that the user agreed to before."""
        if self._parameters.is_allowed(self._parameters.address):
            self._session.connect(self._parameters.address)

    def _login(self, lasts: bool) -> Any:
        box = qt.QWidget()
        layout = column(box)
        self.user, self.password, self.token = qt.QLineEdit(), qt.QLineEdit(), qt.QLineEdit()
        for edit, name, hint in (
            (self.user, "loginUser", "User name"),
            (self.password, "loginPassword", "Password"),
            (self.token, "loginToken", "or paste a bearer token"),
        ):
            edit.setObjectName(name)
            edit.setPlaceholderText(hint)
        for secret in (self.password, self.token):
            secret.setEchoMode(qt.QLineEdit.Password)
            secret.returnPressed.connect(lambda *_: self._sign_in())
        sign_in = button("Sign in", self._sign_in, name="signInButton")
        where = (
            "The token is kept in this computer's key store."
            if lasts
            else "The token is kept until Slicer closes; with the Python package keyring it is in "
            "this computer's key store."
        )
        self.password.setMinimumWidth(190)
        layout.addLayout(row(self.user, self.password, stretch=0))
        layout.addLayout(row(self.token, sign_in, stretch=0))
        layout.addWidget(label(where, role="quiet"))
        return box

    def _sign_in(self) -> None:
        token = text_of(self.token).strip()
        user, password = text_of(self.user).strip(), text_of(self.password)
        self.token.clear()
        self.password.clear()
        if token:
            self._session.use_token(token)
        elif user and password:
            self._session.sign_in(user, password)

    def _changed(self) -> None:
        session, server = self._session, self._session.server
        self.login.setVisible(bool(session.login))
        self.go.setText("Reconnect" if server else "Connect")
        if session.connecting:
            text, role = f"Asking {session.address} …", "quiet"
        elif server is not None:
            served = f"version {server.served}" if server.served else "nothing trained yet"
            who = f" · signed in as {server.user}" if server.user else ""
            if not server.may_decide:
                who += " · may mark" if server.may_mark else " · may only look"
            structures = texts.count(len(server.labels), "structure", "structures")
            text = f"SegUnlearn {server.version} · {server.model}, {structures}, {served}{who}"
            role = "good"
        elif session.login:
            text, role = "Sign in to go on.", "bad"
        else:
            text, role = "Not connected.", "quiet"
        self.state.setText(text)
        restyle(self.state, role)
