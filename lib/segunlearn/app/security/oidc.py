"""OpenID Connect: whether a token is from the issuer, for this server, and still good.

Any issuer that offers discovery (OpenID Connect Discovery 1.0, section 4) and signs its access
tokens as JWT (RFC 9068 or its own dialect, as Keycloak's) with RS256 or ES256.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx
import jwt
from monailabel.config import settings

from segunlearn.app.security.identity import (
    GenuineTokenError,
    Identity,
    NotSignedInError,
    strongest,
)
from segunlearn.errors import UnavailableError

logger = logging.getLogger(__name__)

#: A token cannot choose another ("none", or HMAC with a public key).
_ALGORITHMS: Final = ("RS256", "ES256")
#: Difference of clocks that is forgiven, in seconds.
LEEWAY: Final = 60.0
#: Keys are read again after this time, used at most so long while the issuer is away, and read
#: because of an unknown key no more often than this: seconds.
_FRESH, _STALE, _PAUSE = 3600.0, 86400.0, 10.0
_LARGEST_REPLY: Final = 1 << 20
#: Kinds of tokens that are not made for an interface such as this: ``typ`` (Keycloak's, or in the
#: header, where "+jwt" follows), ``token_use`` (Cognito's); and claims that only such have. An
#: access token may have a ``nonce``.
_OTHER_KINDS: Final = frozenset({"id", "id_token", "refresh", "offline", "logout", "secevent"})
_OTHER_CLAIMS: Final = frozenset({"at_hash", "c_hash", "events"})


@dataclass(frozen=True)
class Discovery:
    """What the issuer tells of itself."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class Issuer:
    """An OpenID Connect issuer and its keys.

    Parameters
    ----------
    url
        As tokens name it in ``iss``.
    audience
        What ``aud`` of a token must hold.
    """

    def __init__(self, url: str, audience: str) -> None:
        self.url, self.audience = url, audience
        self._lock = threading.Lock()
        self._discovery: Discovery | None = None
        self._keys: dict[str | None, list[jwt.PyJWK]] = {}
        self._read_at = self._tried_at = -1e9
        self._away = False

    def identify(self, token: str) -> Identity:
        """Check a token and return who it is about.

        Raises
        ------
        NotSignedInError
            It is not good; the message says why.
        UnavailableError
            The issuer cannot be reached, and its keys are not known.
        """
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise NotSignedInError("this is no token of the issuer. Sign in again.") from error
        algorithm = header.get("alg")
        if algorithm not in _ALGORITHMS:
            raise NotSignedInError(
                f"the token is signed with {str(algorithm)!r:.20}; the issuer must sign with "
                f"{' or '.join(_ALGORITHMS)}."
            )
        try:
            claims = jwt.decode(
                token,
                self._key(header.get("kid"), str(algorithm)),
                algorithms=[str(algorithm)],
                audience=self.audience,
                issuer=self.url,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise GenuineTokenError("the token has expired. Sign in again.") from error
        except (jwt.DecodeError, jwt.InvalidAlgorithmError) as error:
            raise NotSignedInError(f"the token is not good: {error}.") from error
        except jwt.InvalidTokenError as error:  # claims are looked at after the signature
            raise GenuineTokenError(f"the token is not good: {error}.") from error
        if _is_of_another_kind(header, claims):
            raise GenuineTokenError("this is no access token. Send the access token.")
        return identity_of(claims)

    def discovery(self) -> Discovery:
        """Return what the issuer tells of itself; asked once.

        Raises
        ------
        UnavailableError
            It cannot be reached, or is not the one that was configured.
        """
        if self._discovery is None:
            address = f"{self.url.rstrip('/')}/.well-known/openid-configuration"
            told = _get_json(address)
            if told.get("issuer") != self.url:
                raise UnavailableError(
                    f"the issuer calls itself {told.get('issuer')!r:.200}, and was configured as "
                    f"{self.url!r}. Set --conf issuer to what it says."
                )
            self._discovery = Discovery(
                authorization_endpoint=_address(told, "authorization_endpoint", self.url),
                token_endpoint=_address(told, "token_endpoint", self.url),
                jwks_uri=_address(told, "jwks_uri", self.url),
            )
        return self._discovery

    def _key(self, kid: Any, algorithm: str) -> jwt.PyJWK:
        """Key of a token; an unknown one makes us read the issuer's keys again, now and then."""
        found = self._find(kid, algorithm)
        due = found is None or time.monotonic() - self._read_at > _FRESH
        # one asks; whoever has a key goes on meanwhile, for an issuer may not answer for long
        if due and self._lock.acquire(blocking=found is None):
            try:
                found = self._asked_for(kid, algorithm)
            finally:
                self._lock.release()
        if time.monotonic() - self._read_at > _STALE:
            raise UnavailableError("the issuer's keys could not be read. Try again later.")
        if found is None and self._away:  # it may have shown a new one
            raise UnavailableError("the issuer's keys could not be read. Try again later.")
        if found is None:
            raise NotSignedInError("the token is signed with a key that the issuer does not show.")
        return found

    def _asked_for(self, kid: Any, algorithm: str) -> jwt.PyJWK | None:
        """Key of a token, after the keys were read again, unless somebody has just tried to."""
        found = self._find(kid, algorithm)
        if time.monotonic() - self._tried_at > _PAUSE:
            try:
                self._read_keys()
                self._away, found = False, self._find(kid, algorithm)
            except UnavailableError as error:
                self._away = True
                if found is None or time.monotonic() - self._read_at > _STALE:
                    raise
                logger.warning("the issuer's keys are used as they were: %s", error)
            finally:
                self._tried_at = time.monotonic()
        return found

    def _find(self, kid: Any, algorithm: str) -> jwt.PyJWK | None:
        listed = self._keys.get(kid, []) if kid else [k for ks in self._keys.values() for k in ks]
        fit = [k for k in listed if k.algorithm_name == algorithm]
        return fit[0] if len(fit) == 1 or (fit and kid) else None

    def _read_keys(self) -> None:
        told = _get_json(self.discovery().jwks_uri)
        found: dict[str | None, list[jwt.PyJWK]] = {}
        for entry in told.get("keys") or ():
            try:
                key = jwt.PyJWK.from_dict(entry)
            except (jwt.PyJWTError, ValueError, TypeError, KeyError):
                continue  # kinds that we do not use
            if key.public_key_use in (None, "sig"):
                found.setdefault(key.key_id, []).append(key)
        self._keys, self._read_at = found, time.monotonic()


def identity_of(claims: Mapping[str, Any]) -> Identity:
    """Return who a token is about, by MONAI Label's settings of names and roles.

    >>> identity_of({"sub": "7", "realm_access": {"roles": ["monailabel-reviewer", 3]}})
    Identity(name='7', role='reviewer', email='')
    """
    name = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or claims.get("sub")
    if not isinstance(name, str) or not name.strip():
        raise GenuineTokenError("the token names nobody; it needs preferred_username or sub.")
    roles: Any = claims
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(part) if isinstance(roles, Mapping) else None
    email = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL)
    return Identity(
        name=name[:200],
        role=strongest(roles if isinstance(roles, list) else []),
        email=email[:200] if isinstance(email, str) else "",
    )


def _is_of_another_kind(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    """Whether this is an ID, refresh or logout token, as far as it says."""
    media = str(header.get("typ", "")).lower().removeprefix("application/").removesuffix("+jwt")
    said = {media, *(str(claims.get(name, "")).lower() for name in ("typ", "token_use"))}
    return not said.isdisjoint(_OTHER_KINDS) or not _OTHER_CLAIMS.isdisjoint(claims)


def _address(told: Mapping[str, Any], name: str, issuer: str) -> str:
    found = told.get(name)
    secure = ("https://",) if issuer.startswith("https://") else ("https://", "http://")
    if not isinstance(found, str) or not found.startswith(secure):
        raise UnavailableError(f"the issuer gives no safe {name}; it must begin with https://.")
    return found


def _get_json(address: str) -> dict[str, Any]:
    try:
        with httpx.stream(
            "GET", address, timeout=settings.MONAI_LABEL_AUTH_TIMEOUT, follow_redirects=False
        ) as answer:
            answer.raise_for_status()
            body = b""
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > _LARGEST_REPLY:
                    raise UnavailableError("the issuer's answer is too long to be believed.")
        told = httpx.Response(200, content=body).json()
    except (httpx.HTTPError, ValueError) as error:
        raise UnavailableError(
            f"the issuer cannot be asked ({type(error).__name__}). Check that it runs, and --conf "
            "issuer."
        ) from error
    if not isinstance(told, dict):
        raise UnavailableError("the issuer's answer is no JSON object.")
    return told
