"""Which server this is, what it can do, and who is signed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from SegUnlearnLib.api import Api
from SegUnlearnLib.parameters import Parameters, tidy
from SegUnlearnLib.problems import Problem
from SegUnlearnLib.signals import Signal
from SegUnlearnLib.tokens import Tokens

#: Trainers without which a SegUnlearn server is older than this module.
_NEEDED = ("unlearn", "site_adapt")
#: Who calls where no login is needed: the server takes everybody on its machine for its owner.
_NOBODY = {"name": "", "may_mark": True, "may_decide": True}


@dataclass(frozen=True)
class Server:
    """What a server said of itself.

    Parameters
    ----------
    version
        Of SegUnlearn.
    model, labels
        Name of the segmentation model and its structures with their values.
    served
        Version of the model that is served, empty before the first training.
    sites
        Values of the model's option ``site``.
    trainers
        Names.
    user, may_mark, may_decide
        Who is signed in, and what they may do; no name where the server needs no login.
    """

    version: str
    model: str
    labels: dict[str, int] = field(default_factory=dict)
    served: str = ""
    sites: tuple[str, ...] = ()
    trainers: tuple[str, ...] = ()
    user: str = ""
    may_mark: bool = True
    may_decide: bool = True


class Session:
    """Connects, signs in and out; one server at a time.

    Signals: ``changed()``; ``failed(Problem)``; ``login_needed()``.
    """

    def __init__(self, api: Api, parameters: Parameters, tokens: Tokens) -> None:
        self._api, self._parameters, self._tokens = api, parameters, tokens
        self.server: Server | None = None
        self.address = ""
        self.connecting = False
        self.login = False
        self.changed, self.failed, self.login_needed = Signal(), Signal(), Signal()
        self._attempt = 0

    def connect(self, address: str) -> None:
        """Ask the server what it is; the user has agreed to it."""
        self._attempt += 1
        self.address = tidy(address)
        self._parameters.address = self.address
        self._parameters.allow(self.address)
        self._api.transport.cancel_all()
        self._api.transport.server = self.address
        self._api.transport.token = self._tokens.get(self.address)
        self.server, self.connecting, self.login = None, True, False
        self.changed.emit()
        mine = self._attempt
        self._api.authentication(
            lambda answer: self._authentication(mine, answer),
            lambda problem: self._no_authentication(mine, problem),
        )

    def refresh(self) -> None:
        """Ask again what is served, without letting go of what is known."""
        mine = self._attempt
        if self.server is not None:
            self._api.info(lambda answer: self._info(mine, answer), lambda problem: None)

    def sign_in(self, user: str, password: str) -> None:
        """Ask the server for a token."""
        mine = self._attempt

        def done(answer: Any) -> None:
            token = answer.get("access_token")
            if not token:
                raise ValueError("no token in the answer")
            if mine == self._attempt:
                self.use_token(str(token))

        self._api.token(user, password, done, self._sign_in_failed)

    def use_token(self, token: str) -> None:
        """Sign in with a token that was got elsewhere."""
        self._tokens.put(self.address, token.strip())
        self.connect(self.address)

    def sign_out(self) -> None:
        """Forget the token."""
        self._tokens.drop(self.address)
        self.connect(self.address)

    def note(self, problem: Problem) -> None:
        """Be told of a problem elsewhere: an expired login asks for a new one."""
        if problem.kind == "login" and not self.login:
            self.login = True
            self.login_needed.emit()

    def _sign_in_failed(self, problem: Problem) -> None:
        if problem.kind in ("login", "refused", "server", "forbidden"):
            problem = Problem(
                "login",
                "The server did not accept user name and password. Check them; if they are right, "
                "its login service may be down: ask its administrator, or use a token.",
            )
        self.failed.emit(problem)

    def _authentication(self, mine: int, answer: Any) -> None:
        if mine != self._attempt:
            return
        if answer.get("enabled"):
            if not self._api.transport.token:
                self._need_login()
                return
            self._api.caller(
                lambda who: self._caller(mine, who), lambda problem: self._no_caller(mine, problem)
            )
            return
        self._ask_info(mine)

    def _no_authentication(self, mine: int, problem: Problem) -> None:
        if mine != self._attempt:
            return
        if problem.kind in ("missing", "nonsense", "refused"):
            self._ask_info(mine)  # a server without that route may still be one of MONAI Label
        else:
            self._fail(mine, problem)

    def _ask_info(self, mine: int, who: Any = None) -> None:
        self._api.info(
            lambda answer: self._info(mine, answer, who or _NOBODY),
            lambda problem: self._no_info(mine, problem),
        )

    def _caller(self, mine: int, who: Any) -> None:
        if mine == self._attempt:
            self._ask_info(mine, {key: who[key] for key in _NOBODY})

    def _no_caller(self, mine: int, problem: Problem) -> None:
        if problem.kind == "missing" and mine == self._attempt:
            self._ask_info(mine)  # a stock or an old server; what it says of itself decides
        else:
            self._fail(mine, problem)

    def _need_login(self) -> None:
        self.connecting, self.login = False, True
        self.changed.emit()
        self.login_needed.emit()

    def _info(self, mine: int, answer: Any, who: Any = None) -> None:
        if mine != self._attempt:
            return
        if not isinstance(answer, dict) or not answer.get("models"):
            self._fail(mine, _not_monai_label(self.address))
            return
        if answer.get("name") != "SegUnlearn":
            self._fail(mine, _stock(self.address, str(answer.get("name") or "")))
            return
        trainers = tuple(answer.get("trainers") or ())
        missing = [name for name in _NEEDED if name not in trainers]
        if missing:
            self._fail(mine, _old(self.address, str(answer.get("version") or "?"), missing))
            return
        known = self.server
        if who is None and known is not None:  # the same one tells what it serves by now
            who = {"name": known.user, "may_mark": known.may_mark, "may_decide": known.may_decide}
        model, about = next(iter(answer["models"].items()))  # the marker comes last
        self.server = Server(
            version=str(answer.get("version") or ""),
            model=model,
            labels={str(k): int(v) for k, v in dict(about.get("labels") or {}).items()},
            served=str(about.get("version") or ""),
            sites=tuple(map(str, (about.get("config") or {}).get("site") or ())),
            trainers=trainers,
            user=str(who["name"]),
            may_mark=bool(who["may_mark"]),
            may_decide=bool(who["may_decide"]),
        )
        self.connecting = False
        self.changed.emit()

    def _no_info(self, mine: int, problem: Problem) -> None:
        if problem.kind in ("missing", "nonsense"):
            problem = _not_monai_label(self.address)
        self._fail(mine, problem)

    def _fail(self, mine: int, problem: Problem) -> None:
        if mine != self._attempt:
            return
        self.connecting, self.server = False, None
        if problem.kind == "login":
            self._tokens.drop(self.address)
            self._api.transport.token = ""
            self.login = True
        self.changed.emit()
        if problem.kind == "login":
            self.login_needed.emit()
        if problem.kind != "cancelled":
            self.failed.emit(problem)


def _not_monai_label(address: str) -> Problem:
    return Problem(
        "nonsense",
        f"{address} answers, but is no MONAI Label server. Check address, port and path: the page "
        "at this address in a web browser must show MONAI Label's REST description.",
    )


def _stock(address: str, name: str) -> Problem:
    return Problem(
        "stock",
        f"{address} is a MONAI Label server with the app {name or 'without a name'}, not "
        "SegUnlearn: it keeps no forget set. Use the MONAI Label module for it, or have it started "
        "with SegUnlearn (segunlearn serve).",
    )


def _old(address: str, version: str, missing: list[str]) -> Problem:
    return Problem(
        "old",
        f"{address} runs SegUnlearn {version}, which lacks {' and '.join(missing)}. Have the "
        "server updated to the release that this module came with.",
    )
