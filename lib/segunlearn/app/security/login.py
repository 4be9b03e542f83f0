"""``/auth`` for MONAI Label's clients, ``/login`` for browsers."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import html
import os
import re
import secrets
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

import httpx
from cryptography.fernet import Fernet, InvalidToken
from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import User as PlatformUser
from monailabel.endpoints.user.auth import get_current_user
from pydantic import BaseModel

from segunlearn.app.security.gate import cookie
from segunlearn.app.security.health import page
from segunlearn.app.security.identity import GenuineTokenError, NotSignedInError
from segunlearn.app.security.oidc import Issuer
from segunlearn.app.security.protection import Protection, protection_of
from segunlearn.app.security.sessions import COOKIE, LIFE, set_cookie
from segunlearn.errors import ConflictError, UnavailableError

router = APIRouter(tags=["Login"])

#: Cookie and life (seconds) of a sign-in at the issuer that is under way.
_PENDING: Final = "segunlearn_login"
_PENDING_LIFE: Final = 600
#: Longest path in that cookie, in bytes: browsers keep 4096 of a whole cookie.
_LONGEST_PATH: Final = 2000
#: Errors of an issuer (RFC 6749, section 5.2) that are not about whom it shall sign in.
_OF_THE_SERVER: Final = frozenset(
    {"invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}
)
#: Where a browser may be led after signing in: a path of this server.
_HERE: Final = re.compile(r"/(?![/\\])[^\s\\]{0,2000}")

_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "Not accepted"},
    409: {"description": "Login is off"},
    503: {"description": "The issuer cannot be reached now"},
}

Guarded = Annotated[Protection, Depends(protection_of)]


class How(BaseModel):
    """How clients sign in, in MONAI Label's words."""

    enabled: bool
    client_id: str
    realm: str


class Token(BaseModel):
    """A token to send as ``Authorization: Bearer``."""

    access_token: str
    token_type: str


class _Pending:
    """Sign-ins at the issuer that have not come back yet: each in a cookie of its browser.

    The cookie is sealed with a key of this process (AES and HMAC, with the time), so nobody reads
    the verifier or makes one. In the server's memory, strangers could push the others' out.
    """

    def __init__(self) -> None:
        self._seal = Fernet(Fernet.generate_key())

    def begin(self, where: str) -> tuple[str, str, str]:
        """Return state, verifier and the cookie's value."""
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        where = where if len(where.encode()) <= _LONGEST_PATH else "/"
        sealed = self._seal.encrypt(f"{state} {verifier} {where}".encode())
        return state, verifier, sealed.decode().rstrip("=")

    def end(self, state: str, sealed: str) -> tuple[str, str] | None:
        """Return verifier and path where the cookie is of this state, and young enough."""
        padded = sealed + "=" * (-len(sealed) % 4)
        with contextlib.suppress(InvalidToken, ValueError):
            text = self._seal.decrypt(padded.encode(), ttl=_PENDING_LIFE).decode()
            kept, verifier, where = text.split(" ", 2)
            if hmac.compare_digest(kept.encode(), state.encode()):
                return verifier, where
        return None


_pending = _Pending()


@router.get("/auth/", summary="How to sign in")
def how(parts: Guarded) -> How:
    """Tell MONAI Label's clients whether they need a token."""
    return How(
        enabled=parts.identify is not None,
        client_id=settings.MONAI_LABEL_AUTH_CLIENT_ID,
        realm=parts.issuer.url if parts.issuer else "",
    )


@router.post("/auth/token", summary="Get a token by name and password", responses=_REFUSALS)
async def token(
    request: Request,
    parts: Guarded,
    password: Annotated[str, Form(max_length=8192)],
    username: Annotated[str, Form(max_length=200)] = "",
) -> Token:
    """Exchange name and password at the issuer; with local tokens the password is the token."""
    if parts.issuer is None:
        found = password.strip()
    else:
        form = {"grant_type": "password", "username": username, "password": password}
        found = await _from_issuer(request, parts, parts.issuer, form)
    await _accept(request, parts, found, shown=parts.issuer is None)
    return Token(access_token=found, token_type="Bearer")


@router.get("/auth/token/valid", summary="Who a token is about", responses=_REFUSALS)
def valid(user: Annotated[PlatformUser, Depends(get_current_user)]) -> PlatformUser:
    """Return the caller with their roles."""
    return user


@router.get("/login", include_in_schema=False)
def login_page(
    request: Request, next: Annotated[str, Query(max_length=4000)] = "/"
) -> HTMLResponse:
    """Send the page on which a browser signs in."""
    return _login_page(request, next)


@router.post("/login", include_in_schema=False)
async def login(
    request: Request,
    parts: Guarded,
    token: Annotated[str, Form(max_length=8192)],
    next: Annotated[str, Form(max_length=4000)] = "/",
) -> Response:
    """Begin a session with a token."""
    try:
        await _accept(request, parts, token.strip())
    except NotSignedInError as error:
        return _login_page(request, next, str(error))
    return _begun(request, parts, token.strip(), next)


@router.get("/login/oidc", include_in_schema=False)
def to_issuer(
    request: Request, parts: Guarded, next: Annotated[str, Query(max_length=4000)] = "/"
) -> Response:
    """Lead to the issuer's page: authorization code flow with PKCE (RFC 7636)."""
    issuer = _issuer(parts)
    endpoint = issuer.discovery().authorization_endpoint
    state, verifier, sealed = _pending.begin(next)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest())
    query = {
        "response_type": "code",
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "redirect_uri": str(request.url_for("from_issuer")),
        "scope": "openid profile email",
        "state": state,
        "code_challenge": challenge.rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    sign = "&" if "?" in endpoint else "?"
    response = RedirectResponse(f"{endpoint}{sign}{urlencode(query)}", 303)
    set_cookie(response, request, _PENDING, sealed, _PENDING_LIFE)
    return response


@router.get("/login/callback", include_in_schema=False)
async def from_issuer(
    request: Request, parts: Guarded, state: str = "", code: str = "", error: str = ""
) -> Response:
    """Take the code that the issuer sent the browser back with, and begin a session."""
    issuer = _issuer(parts)
    found = _pending.end(state, cookie(request.scope, _PENDING))
    if found is None or not code or error:
        return _login_page(request, "/", "The issuer did not sign you in, or it took too long.")
    verifier, where = found  # good for ten minutes; the code is good once
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "code_verifier": verifier,
        "redirect_uri": str(request.url_for("from_issuer")),
    }
    try:
        accepted = await _from_issuer(request, parts, issuer, form)
        await _accept(request, parts, accepted, shown=False)
        response = _begun(request, parts, accepted, where)
    except NotSignedInError as refused:
        response = _login_page(request, where, str(refused))
    response.delete_cookie(_PENDING, path=request.scope.get("root_path") or "/")
    return response


@router.post("/logout", include_in_schema=False)
def logout(request: Request, parts: Guarded) -> Response:
    """End the session."""
    parts.sessions.end(cookie(request.scope, COOKIE))
    response = RedirectResponse(f"{request.scope.get('root_path') or ''}/login", 303)
    response.delete_cookie(COOKIE, path=request.scope.get("root_path") or "/")
    return response


def _issuer(parts: Protection) -> Issuer:
    if parts.issuer is None:
        raise ConflictError("this server has no OpenID Connect issuer (--conf login oidc).")
    return parts.issuer


async def _accept(request: Request, parts: Protection, token: str, *, shown: bool = True) -> None:
    """Check a token that somebody signs in with, and record how that ended.

    One that the caller has not shown, but the issuer has just given, is no guess.
    """
    if parts.identify is None:
        raise ConflictError("login is off here: no token is needed.")
    try:
        identity = await run_in_threadpool(parts.identify, token)
    except NotSignedInError as error:
        guessed = shown and not isinstance(error, GenuineTokenError)
        await parts.witness.turned_away(request.scope, str(error), guessed=guessed)
        raise
    await parts.witness.login(request.scope, identity)


async def _from_issuer(
    request: Request, parts: Protection, issuer: Issuer, form: dict[str, str]
) -> str:
    """Exchange what the caller has shown for a token; records where the issuer refuses it."""
    form = {"client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID, **form}
    if os.environ.get("SEGUNLEARN_CLIENT_SECRET"):
        form["client_secret"] = os.environ["SEGUNLEARN_CLIENT_SECRET"]
    endpoint = (await run_in_threadpool(issuer.discovery)).token_endpoint
    try:
        async with httpx.AsyncClient(timeout=settings.MONAI_LABEL_AUTH_TIMEOUT) as client:
            answer = await client.post(endpoint, data=form)
            told = answer.json() if answer.status_code < 500 else {}
    except (httpx.HTTPError, ValueError) as error:
        raise UnavailableError("the issuer cannot be reached. Try again later.") from error
    told = told if isinstance(told, dict) else {}
    found, fault = told.get("access_token"), told.get("error")
    if answer.status_code == 200 and isinstance(found, str):
        return found
    if str(fault) in _OF_THE_SERVER:
        raise UnavailableError(
            f"the issuer does not let this server sign people in ({fault}). The administrator "
            "checks the client, its secret and its flows there."
        )
    if answer.status_code not in (400, 401, 403):
        raise UnavailableError("the issuer met an error. Try again later.")
    why, guessed = "the issuer did not accept this.", form["grant_type"] == "password"
    await parts.witness.turned_away(request.scope, why, guessed=guessed)
    raise NotSignedInError(f"{why} Check name and password.")


def _begun(request: Request, parts: Protection, token: str, where: str) -> Response:
    root = request.scope.get("root_path") or ""
    response = RedirectResponse(root + (where if _HERE.fullmatch(where) else "/"), 303)
    set_cookie(response, request, COOKIE, parts.sessions.begin(token), LIFE)
    return response


def _login_page(request: Request, where: str, fault: str = "") -> HTMLResponse:
    parts, root = protection_of(request), request.scope.get("root_path") or ""
    where = where if _HERE.fullmatch(where) else "/"
    body = f"<p><strong>{html.escape(fault)}</strong></p>" if fault else ""
    if parts.identify is None:
        return page("No login is needed", f'<p>Login is off. <a href="{root}/ohif/">Viewer</a></p>')
    if parts.issuer is not None:
        body += f'<p><a href="{root}/login/oidc?next={quote(where, safe="")}">Sign in</a></p>'
        body += "<p>Or, with an access token of the issuer:</p>"
    body += (
        f'<form method="post" action="{root}/login"><p><label>Token<br>'
        '<input type="password" name="token" autocomplete="off" required></label></p>'
        f'<input type="hidden" name="next" value="{html.escape(where, quote=True)}">'
        "<p><button>Sign in</button></p></form>"
    )
    return page("Sign in", body, 401 if fault else 200)
