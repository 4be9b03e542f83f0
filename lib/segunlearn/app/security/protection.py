"""Puts the gate before the server, and its routes into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fastapi import APIRouter, FastAPI, Request
from monailabel.config import settings
from monailabel.endpoints.user.auth import get_current_user
from starlette.middleware import Middleware

from segunlearn.app.options import AppOptions, Login
from segunlearn.app.security.gate import Gate, Rules
from segunlearn.app.security.identity import (
    GenuineTokenError,
    Identity,
    NotSignedInError,
    current_user,
)
from segunlearn.app.security.metrics import Metrics
from segunlearn.app.security.oidc import Issuer
from segunlearn.app.security.sessions import Sessions
from segunlearn.app.security.witness import Witness
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.store import Store

if TYPE_CHECKING:
    from segunlearn.app.application import SegUnlearnApp


@dataclass(frozen=True)
class Protection:
    """What the routes of this package work with.

    Parameters
    ----------
    login
        How people sign in.
    identify
        Turns a token into who it is about; None while login is off.
    issuer
        Of OpenID Connect, None without.
    sessions, witness, metrics
        Of this server.
    """

    login: Login
    identify: Callable[[str], Identity] | None
    issuer: Issuer | None
    sessions: Sessions
    witness: Witness
    metrics: Metrics


def protection_of(request: Request) -> Protection:
    """Return what protects the server that was called."""
    return cast(Protection, request.app.state.segunlearn_protection)


def protect(server: FastAPI, app: SegUnlearnApp | None) -> None:
    """Put the gate before a server; without an app it lets nobody in but this machine."""
    options = app.options if app is not None else AppOptions()

    def store() -> Store:
        assert app is not None
        return app.records.store

    def holder(text: str) -> Identity:
        found = AccessTokens(store()).find(text)
        if found is None:
            raise NotSignedInError("the token is unknown. Ask for another.")
        if found.state != "good":
            raise GenuineTokenError(f"the token is {found.state}. Ask for another.")
        return Identity(found.name, found.role)

    issuer: Issuer | None = None
    identify: Callable[[str], Identity] | None = None
    if options.login == "oidc":
        issuer = Issuer(options.issuer, options.audience or settings.MONAI_LABEL_AUTH_CLIENT_ID)
        identify = issuer.identify
    elif options.login == "tokens":
        identify = holder
    settings.MONAI_LABEL_AUTH_ENABLE = identify is not None  # what the routes' role checks ask
    if identify is not None:
        server.dependency_overrides[get_current_user] = current_user
    metrics = Metrics()
    witness = Witness((lambda: app.records.trail) if app is not None else None, metrics)
    parts = Protection(options.login, identify, issuer, Sessions(), witness, metrics)
    server.state.segunlearn_protection = parts
    rules = Rules(identify, options.let_everyone_in, options.max_upload << 20)
    server.user_middleware.append(
        Middleware(
            Gate, rules=rules, sessions=parts.sessions, witness=parts.witness,
            metrics=parts.metrics,
        )
    )  # fmt: skip


def routers() -> list[APIRouter]:
    """Return the routers to mount."""
    from segunlearn.app.security import health, login

    return [login.router, health.router]
