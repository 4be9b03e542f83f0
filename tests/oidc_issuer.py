"""A small OpenID Connect issuer with keys made on the fly."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI, Form, HTTPException
from fastapi.responses import JSONResponse, RedirectResponse

from live_server import live_server

AUDIENCE = "monailabel-app"


@dataclass
class Key:
    """A signing key, and how it is shown."""

    kid: str
    algorithm: str = "RS256"
    private: Any = None

    def __post_init__(self) -> None:
        make_rsa = self.algorithm.startswith("RS")
        self.private = (
            rsa.generate_private_key(65537, 2048)
            if make_rsa
            else ec.generate_private_key(ec.SECP256R1())
        )

    def shown(self) -> dict[str, Any]:
        """JWK of its public half."""
        kind = (
            jwt.algorithms.RSAAlgorithm if self.algorithm == "RS256" else jwt.algorithms.ECAlgorithm
        )
        shown: dict[str, Any] = kind.to_jwk(self.private.public_key(), as_dict=True)
        return {**shown, "kid": self.kid, "use": "sig", "alg": self.algorithm}


@dataclass
class TestIssuer:
    """What the issuer shows, and what it was asked."""

    __test__ = False

    keys: list[Key]
    url: str = ""
    issuer: str = ""
    down: bool = False
    answer: tuple[int, dict[str, Any]] | None = None  # of the token endpoint
    asked: list[str] = field(default_factory=list)
    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    roles: tuple[str, ...] = ("monailabel-annotator",)

    def token(
        self, key: Key | None = None, headers: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """Sign a good token, changed as asked; None leaves a claim out."""
        now = int(time.time())
        good = {
            "iss": self.issuer, "aud": AUDIENCE, "sub": "u-1", "preferred_username": "meyer",
            "iat": now, "exp": now + 300, "typ": "Bearer", "email": "meyer@example.org",
            "realm_access": {"roles": list(self.roles)},
        }  # fmt: skip
        payload = {k: v for k, v in {**good, **claims}.items() if v is not None}
        key = key or self.keys[0]
        return jwt.encode(
            payload,
            key.private,
            algorithm=key.algorithm,
            headers={"kid": key.kid, **(headers or {})},
        )


@contextmanager
def running_issuer() -> Iterator[TestIssuer]:
    """Serve an issuer on a free port."""
    state = TestIssuer([Key("rsa-1"), Key("ec-1", "ES256")])
    app = FastAPI()

    def ask(what: str) -> None:
        state.asked.append(what)
        if state.down:
            raise HTTPException(500, "down")

    @app.get("/realms/x/.well-known/openid-configuration")
    def discovery() -> dict[str, str]:
        ask("discovery")
        return {
            "issuer": state.issuer, "jwks_uri": f"{state.url}/jwks",
            "authorization_endpoint": f"{state.url}/authorize",
            "token_endpoint": f"{state.url}/token",
        }  # fmt: skip

    @app.get("/jwks")
    def jwks() -> dict[str, Any]:
        ask("jwks")
        return {"keys": [*(k.shown() for k in state.keys), {"kty": "new kind", "kid": "?"}]}

    @app.get("/authorize")
    def authorized(
        redirect_uri: str, state: str, code_challenge: str, client_id: str, response_type: str
    ) -> RedirectResponse:
        assert (client_id, response_type) == (AUDIENCE, "code")
        keep(code_challenge, redirect_uri)
        return RedirectResponse(
            f"{redirect_uri}?{urlencode({'state': state, 'code': 'c0de'})}", 303
        )

    def keep(challenge: str, redirect_uri: str) -> None:
        state.codes["c0de"] = (challenge, redirect_uri)

    @app.post("/token")
    def token(
        grant_type: str = Form(), code: str = Form(""), code_verifier: str = Form(""),
        redirect_uri: str = Form(""), password: str = Form(""),
    ) -> Any:  # fmt: skip
        if state.answer is not None:
            return JSONResponse(state.answer[1], state.answer[0])
        if grant_type == "password" and password != "right":
            raise HTTPException(401, "wrong")
        if grant_type == "authorization_code":
            challenge, where = state.codes.pop(code, ("", ""))
            digest = base64.urlsafe_b64encode(hashlib.sha256(code_verifier.encode()).digest())
            if digest.rstrip(b"=").decode() != challenge or where != redirect_uri:
                raise HTTPException(400, "invalid_grant")
        return {"access_token": state.token(), "token_type": "Bearer"}

    with live_server(app) as url:
        state.url, state.issuer = url, f"{url}/realms/x"
        yield state
