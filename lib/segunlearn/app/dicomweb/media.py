"""What a caller accepts (PS3.18 section 8.7), and multipart/related bodies (RFC 2387)."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from fastapi import Request
from fastapi.responses import StreamingResponse

from segunlearn.errors import InvalidInputError, SegUnlearnError

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


class NotAcceptableError(SegUnlearnError):
    """The resource cannot be sent in any form that the caller accepts."""

    http_status = 406


@dataclass(frozen=True)
class Acceptable:
    """One form that the caller accepts.

    Parameters
    ----------
    media
        Media type in lower case, of the parts where it is ``multipart/related``; may hold ``*``.
    multipart
        Whether it was asked for inside ``multipart/related``.
    transfer_syntax
        UID or ``"*"``, empty when none is named: then Explicit VR Little Endian is meant.
    """

    media: str
    multipart: bool
    transfer_syntax: str

    def takes(self, media: str) -> bool:
        """Whether a media type falls under this one."""
        if self.media in ("*/*", media):
            return True
        return self.media.endswith("/*") and media.startswith(self.media[:-1])

    @property
    def anything(self) -> bool:
        """Whether it is ``*/*`` outside of multipart."""
        return self.media == "*/*" and not self.multipart


def split_quoted(text: str, separator: str) -> list[str]:
    """Split at a separator that does not stand in double quotes; empty pieces are left out.

    >>> split_quoted('a;b="x;y" ; c', ";")
    ['a', 'b="x;y"', 'c']
    """
    pieces, quoted, current = [], False, ""
    for character in text:
        if character == '"':
            quoted = not quoted
        if character == separator and not quoted:
            pieces.append(current)
            current = ""
        else:
            current += character
    pieces.append(current)
    return [p.strip() for p in pieces if p.strip()]


def parse_media(text: str) -> tuple[str, dict[str, str]]:
    """Media type in lower case, and its parameters without quotes.

    >>> parse_media('Multipart/Related; type="application/dicom"')
    ('multipart/related', {'type': 'application/dicom'})
    """
    media, *rest = split_quoted(text, ";") or ["*/*"]
    parameters = {}
    for item in rest:
        key, _, value = item.partition("=")
        parameters[key.strip().lower()] = value.strip().strip('"')
    return media.lower(), parameters


def accepted(request: Request) -> list[Acceptable]:
    """Return what the caller accepts, best first; the query's ``accept`` outweighs the header.

    Raises
    ------
    InvalidInputError
        A quality is not a number.
    """
    text = request.query_params.get("accept") or request.headers.get("accept") or "*/*"
    found: list[tuple[float, Acceptable]] = []
    for item in split_quoted(text, ","):
        media, parameters = parse_media(item)
        try:
            quality = float(parameters.get("q", 1.0))
        except ValueError as error:
            raise InvalidInputError(f"Accept: quality {parameters['q']!r} is no number.") from error
        multipart = media in ("multipart/related", "multipart/*")
        inner = parameters.get("type", "*/*").lower() if multipart else media
        syntax = parameters.get("transfer-syntax", "")
        found.append((quality, Acceptable(inner, multipart, syntax)))
    found.sort(key=lambda pair: -pair[0])  # stable: equal qualities keep their order
    return [a for quality, a in found if quality > 0]


def require(request: Request, *offered: str) -> str:
    """Choose one of the offered media types, the caller's order first.

    Raises
    ------
    NotAcceptableError
        None is accepted.
    """
    for acceptable in accepted(request):
        for media in offered:
            if acceptable.takes(media):
                return media
    raise NotAcceptableError(f"this resource is sent as {' or '.join(offered)} only.")


@dataclass(frozen=True)
class Part:
    """One part of a multipart body."""

    content_type: str
    content: bytes
    location: str = ""


def multipart(parts: Iterable[Part], media: str) -> StreamingResponse:
    """Answer with ``multipart/related``, sent while it is made.

    The first part is made at once, so that its errors are answered as errors.
    """
    boundary = secrets.token_hex(16)
    iterator = iter(parts)
    ready = [part for _, part in zip(range(1), iterator, strict=False)]

    def body() -> Iterator[bytes]:
        for part in chain(ready, iterator):
            head = f"\r\n--{boundary}\r\nContent-Type: {part.content_type}\r\n"
            head += f"Content-Length: {len(part.content)}\r\n"
            if part.location:
                head += f"Content-Location: {part.location}\r\n"
            yield head.encode() + b"\r\n"
            yield part.content
        yield f"\r\n--{boundary}--\r\n".encode()

    kind = f'multipart/related; type="{media}"; boundary={boundary}'
    return StreamingResponse(body(), media_type=kind)
