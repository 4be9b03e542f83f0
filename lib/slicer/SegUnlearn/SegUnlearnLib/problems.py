"""What can go wrong with a request, in a sentence that says what to do. Plain Python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

#: ``QNetworkReply::NetworkError`` by the numbers that both bindings give.
_REFUSED, _CLOSED, _NO_HOST, _TIMED_OUT, _CANCELLED, _TLS = 1, 2, 3, 4, 5, 6
_UNKNOWN_PROTOCOL = 301


@dataclass(frozen=True)
class Problem:
    """A request that did not do what was asked.

    Parameters
    ----------
    kind
        ``unreachable``, ``timeout``, ``tls``, ``cut off``, ``cancelled`` of the network; ``login``,
        ``forbidden``, ``missing``, ``refused``, ``busy``, ``server``, ``redirect`` of the server's
        answer; ``nonsense`` of an answer that is no answer; ``scene`` of this application.
    text
        What happened and what to do.
    """

    kind: str
    text: str


def of_network(code: int, words: str, server: str, *, timed_out: bool, begun: bool) -> Problem:
    """Put a network error into words.

    Parameters
    ----------
    code, words
        Of ``QNetworkReply``.
    server
        Address, for the sentence.
    timed_out
        Our own timer ended it.
    begun
        A part of the answer had arrived.
    """
    if timed_out or code == _TIMED_OUT:
        return Problem(
            "timeout", f"{server} did not answer in time. It may be busy; try again in a moment."
        )
    if code == _CANCELLED:
        return Problem("cancelled", "The request was cancelled.")
    if code == _TLS:
        return Problem(
            "tls",
            f"{server} cannot prove who it is ({_plain(words)}). Nothing was sent. Ask its "
            "administrator for a valid certificate, or have its authority added to this computer.",
        )
    if begun:
        return Problem(
            "cut off",
            f"{server} broke off in the middle of its answer. Whether it did what was asked is not "
            "known: refresh, then try again.",
        )
    if code == _NO_HOST:
        return Problem("unreachable", f"There is no computer {server}. Check the address.")
    if code == _UNKNOWN_PROTOCOL:
        return Problem("unreachable", f"{server}: write the address as http://… or https://….")
    if code in (_REFUSED, _CLOSED):
        return Problem(
            "unreachable",
            f"Nobody answers at {server}. Is the server running, and are address and port right?",
        )
    return Problem("unreachable", f"{server} cannot be reached: {_plain(words)}.")


def of_status(status: int, body: bytes, location: str = "") -> Problem:
    """Put an HTTP error into words; the server's own sentence where it sent one.

    Examples
    --------
    >>> of_status(409, b'{"detail": "nothing is approved."}').text
    'Nothing is approved.'
    """
    said = sentence_of(body)
    if status in (301, 302, 303, 307, 308):
        return Problem(
            "redirect",
            f"The server sends us on to {location or 'another address'}. Nothing was sent there; "
            "enter that address if it is the right one.",
        )
    if status == 401:
        return Problem(
            "login", "The server does not accept the login, or it has expired. Sign in again."
        )
    if status == 403:
        return Problem(
            "forbidden",
            (said or "Your role does not allow this.") + " Ask an administrator of the server.",
        )
    if status == 404:
        return Problem("missing", said or "The server does not know this.")
    if status == 429 or status == 503:
        return Problem("busy", said or "The server is busy. Try again in a moment.")
    if status >= 500:
        return Problem(
            "server", said or f"The server met an error (HTTP {status}); its log says which."
        )
    return Problem("refused", said or f"The server refused (HTTP {status}).")


def of_nonsense(server: str) -> Problem:
    """Say that what came is not what this route answers."""
    return Problem(
        "nonsense",
        f"What {server} answered cannot be read. Is it a SegUnlearn server, and is no login page "
        "or proxy in between?",
    )


def sentence_of(body: bytes) -> str:
    """Return the server's own sentence, ``{"detail": "…"}``, empty without one."""
    try:
        detail: Any = json.loads(body.decode("utf-8")).get("detail", "")
    except (ValueError, AttributeError):
        return ""
    if not isinstance(detail, str) or not detail.strip():
        return ""
    detail = detail.strip()
    detail = detail[0].upper() + detail[1:]
    return detail if detail.endswith((".", "!", "?", "…")) else f"{detail}."


def _plain(words: str) -> str:
    return str(words).strip().rstrip(".")
