"""Tokens that the administrator of a home gives to people and programs.

Only a token's SHA-256 is kept. It holds 256 random bits, so that a slow password hash would add
nothing: whoever reads the store cannot find the token, and nobody guesses one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import insert, select, update

from segunlearn.errors import ConflictError, InvalidInputError, NotFoundError
from segunlearn.records.store import AnyRow, Store, utc_now
from segunlearn.records.tables import ACCESS_TOKEN

#: Begins every token, so that scanners of repositories and mails find them.
PREFIX: Final = "segunlearn"
#: Longest life, in days.
LONGEST: Final = 3660

_TOKEN: Final = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_([A-Za-z0-9_-]{{43}})")
_NAME: Final = re.compile(r"\S(?:.{0,98}\S)?")


@dataclass(frozen=True)
class AccessToken:
    """A token as it is listed; its text is shown once, when it is made.

    Parameters
    ----------
    token_id
        Twelve hexadecimal digits; part of the token, and no secret.
    name
        Who holds it.
    role
        What its holder may do.
    created, expires, revoked
        UTC ISO 8601; ``revoked`` is empty while it is good.
    """

    token_id: str
    name: str
    role: str
    created: str
    expires: str
    revoked: str

    @property
    def state(self) -> str:
        """``good``, ``expired`` or ``revoked``."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires <= utc_now() else "good"


class AccessTokens:
    """The tokens of a home, in its store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, role: str, days: int) -> tuple[str, AccessToken]:
        """Make a token.

        Parameters
        ----------
        name
            Who holds it; stands in the trail as who did something.
        role
            Checked by the caller.
        days
            Until it expires.

        Returns
        -------
        str, AccessToken
            Its text, which is kept nowhere, and what is kept.

        Raises
        ------
        InvalidInputError
            The name or the number of days is wrong.
        """
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise InvalidInputError(
                f"{name!r:.120} is no name; give 1 to 100 characters that tell who holds the token."
            )
        if not 1 <= days <= LONGEST:
            raise InvalidInputError(f"a token lives 1 to {LONGEST} days, not {days}.")
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        expires = datetime.now(UTC) + timedelta(days=days)
        made = AccessToken(
            token_id, name, role, utc_now(), expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), ""
        )
        with self._store.write() as connection:
            connection.execute(
                insert(ACCESS_TOKEN).values(
                    id=token_id, digest=_digest(secret), name=name, role=role,
                    created=made.created, expires=made.expires, revoked="",
                )
            )  # fmt: skip
        return f"{PREFIX}_{token_id}_{secret}", made

    def find(self, text: str) -> AccessToken | None:
        """Return the token of this text, in whatever ``state``; None: there is none."""
        parts = _TOKEN.fullmatch(text)
        if parts is None:
            return None
        with self._store.read() as connection:
            query = select(ACCESS_TOKEN).where(ACCESS_TOKEN.c.id == parts[1])
            row = connection.execute(query).one_or_none()
        kept = str(row.digest) if row is not None else "0" * 64
        same = hmac.compare_digest(kept, _digest(parts[2]))
        return _token(row) if row is not None and same else None

    def list(self) -> Sequence[AccessToken]:
        """All tokens that were ever made, the oldest first."""
        with self._store.read() as connection:
            rows = connection.execute(select(ACCESS_TOKEN).order_by(ACCESS_TOKEN.c.created)).all()
        return [_token(row) for row in rows]

    def revoke(self, token_id: str) -> AccessToken:
        """Make a token useless from the next request on.

        Raises
        ------
        NotFoundError
            There is no such token.
        ConflictError
            It is revoked already.
        """
        known = {token.token_id: token for token in self.list()}
        if token_id not in known:
            raise NotFoundError(f"there is no token {token_id!r:.40}; see 'segunlearn token list'.")
        if known[token_id].revoked:
            raise ConflictError(f"token {token_id} was revoked at {known[token_id].revoked}.")
        with self._store.write() as connection:
            good = (ACCESS_TOKEN.c.id == token_id) & (ACCESS_TOKEN.c.revoked == "")
            connection.execute(update(ACCESS_TOKEN).where(good).values(revoked=utc_now()))
        return next(token for token in self.list() if token.token_id == token_id)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: AnyRow) -> AccessToken:
    return AccessToken(row.id, row.name, row.role, row.created, row.expires, row.revoked)
