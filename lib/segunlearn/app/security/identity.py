"""Who calls: a name and MONAI Label's roles, as a token tells them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from monailabel.config import settings
from monailabel.endpoints.user.auth import User as PlatformUser
from starlette.requests import Request

from segunlearn.errors import SegUnlearnError

#: Roles as the command line names them, the weakest first: each includes those before it.
ROLES: Final = ("user", "annotator", "reviewer", "admin")


#: What is said to whom the issuer knows and this server gives no role.
NO_ROLE: Final = "{name} has no role here. Ask the administrator for one."


class NotSignedInError(SegUnlearnError):
    """The token is missing, unknown, expired, revoked or not for this server."""

    http_status = 401


class GenuineTokenError(NotSignedInError):
    """The token is genuine, but expired, revoked or not for this server: nobody has guessed."""


@dataclass(frozen=True)
class Identity:
    """A person or program that calls.

    Parameters
    ----------
    name
        As the issuer or the administrator wrote it.
    role
        The strongest of ``ROLES``; empty: none of them.
    email
        Empty when it is not known.
    """

    name: str
    role: str
    email: str = ""

    def as_user(self) -> PlatformUser:
        """Return what the routes' role checks look at: the role and the weaker ones."""
        held = ROLES[: ROLES.index(self.role) + 1] if self.role else ()
        names = role_names()
        return PlatformUser(
            username=self.name,
            email=self.email or None,
            name=self.name,
            roles=[names[role] for role in held],
        )


def role_names() -> dict[str, str]:
    """Name of each role in tokens of an issuer (``MONAI_LABEL_AUTH_ROLE_…``)."""
    return {
        "user": settings.MONAI_LABEL_AUTH_ROLE_USER,
        "annotator": settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        "reviewer": settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        "admin": settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
    }


def strongest(named: Iterable[Any]) -> str:
    """Return the strongest of some roles as an issuer names them; empty when none is known."""
    held = {name for name in named if isinstance(name, str)}
    return next((role for role in reversed(ROLES) if role_names()[role] in held), "")


async def why_not_any_more(request: Request) -> str:
    """Look at the token of a request again, which may go on for long.

    Returns
    -------
    str
        Why its caller would be refused now. Empty: they would not, login is off, or nobody can
        say now, as store or issuer are away.
    """
    again: Callable[[], Awaitable[Identity]] | None
    again = getattr(request.state, "segunlearn_identify", None)
    if again is None:
        return ""
    try:
        identity = await again()
    except NotSignedInError as error:
        return str(error)
    except SegUnlearnError:
        return ""
    return "" if identity.role else NO_ROLE.format(name=identity.name)


def current_user(request: Request) -> PlatformUser:
    """Return the caller; takes the place of the platform's own check while login is on."""
    found: Identity = request.state.segunlearn_identity
    return found.as_user()
