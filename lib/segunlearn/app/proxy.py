"""A way to the PACS for the viewer, under ``/proxy/dicom``: one origin, no password in the browser.

The paths are those of MONAI Label's own proxy, ``/proxy/dicom/{wado|qido|stow}/…``. What differs:
the query string and the Accept header arrive, answers stream, the event loop is free meanwhile,
and only DICOMweb resources can be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import httpx
from dicomweb_client.api import DICOMwebClient
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from monailabel.config import settings

from segunlearn.app.dicomweb.common import SentenceRoute, annotator, current_archive, reader
from segunlearn.app.dicomweb.search import LARGEST_ANSWER as MOST_RESULTS
from segunlearn.app.proxy_answers import rewrite_addresses
from segunlearn.dicom.archive import Archive
from segunlearn.errors import (
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
)

logger = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes addresses: identifiers

PREFIX = "/proxy/dicom"

#: First parts of DICOMweb resources (PS3.18 section 8.2); nothing else of the PACS is reached.
_RESOURCES = ("studies", "series", "instances")
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,:@=+~-]*")
_STUDY_TO_STORE = re.compile(r"studies(/[^/]+)?")
_TO_PACS = ("accept", "content-type", "content-length", "range", "if-none-match")
_FROM_PACS = (
    "content-type", "content-length", "content-encoding", "content-range", "content-location",
    "accept-ranges", "etag", "last-modified", "warning",
)  # fmt: skip
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=15.0)
#: What a PACS says when it has given up a kept connection just as the request was sent.
_GIVEN_UP = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
#: Largest answer whose addresses are rewritten, in bytes: it is in memory as a whole.
LARGEST_JSON = 256 << 20
#: The same of a search, whose results are ``MOST_RESULTS`` at most.
LARGEST_SEARCH = 32 << 20
#: Answers above this size, in bytes, are in work ``_LARGE_AT_ONCE`` at a time.
_SMALL = 1 << 20
_LARGE_AT_ONCE = 2

_Connections = tuple[str, str, str, bool]

_router = APIRouter(
    prefix=PREFIX, tags=["DICOMweb"], route_class=SentenceRoute, include_in_schema=False
)


class PacsFaultError(SegUnlearnError):
    """The PACS answered what cannot be passed on."""

    http_status = 502


class PacsTimeoutError(SegUnlearnError):
    """The PACS did not answer in time."""

    http_status = 504


def routers() -> list[APIRouter]:
    """Return the routers to mount, before MONAI Label's own ``/proxy``."""
    return [_router]


@dataclass(frozen=True)
class Upstream:
    """The PACS behind the proxy.

    Parameters
    ----------
    root
        URL of its DICOMweb service, without a slash at the end.
    prefixes
        Paths below ``root`` for ``qido``, ``wado`` and ``stow`` where they differ.
    user, password
        HTTP basic authentication; empty for none.
    """

    root: str
    prefixes: dict[str, str] = field(default_factory=dict)
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def is_google(self) -> bool:
        """Whether the server's Google account authenticates."""
        return (urlsplit(self.root).hostname or "").endswith(".googleapis.com")


def current_upstream(
    archive: Annotated[Archive | None, Depends(current_archive)],
) -> Upstream:
    """Return the PACS that the app's studies are in now.

    Raises
    ------
    NotFoundError
        The studies are in a folder.
    """
    client = archive.client if archive is not None else None
    if not isinstance(client, DICOMwebClient):
        raise NotFoundError(
            "there is no PACS to pass this on to: the studies are in a folder. Its DICOM files are "
            "served under /dicomweb."
        )
    prefixes = {
        "qido": client.qido_url_prefix,
        "wado": client.wado_url_prefix,
        "stow": client.stow_url_prefix,
    }
    return Upstream(
        root=str(client.base_url).rstrip("/"),
        prefixes={k: v.strip("/") for k, v in prefixes.items() if v},
        user=settings.MONAI_LABEL_DICOMWEB_USERNAME,
        password=settings.MONAI_LABEL_DICOMWEB_PASSWORD,
    )


Pacs = Annotated[Upstream, Depends(current_upstream)]


@_router.get("/{path:path}", dependencies=[reader])
async def retrieve(path: str, request: Request, pacs: Pacs) -> Response:
    """Pass a search or retrieval on."""
    return await _pass_on(request, pacs, *split_service(path, "wado"))


@_router.post("/{path:path}", dependencies=[annotator])
async def store(path: str, request: Request, pacs: Pacs) -> Response:
    """Pass a store transaction on."""
    _, resource = split_service(path, "stow")
    if not _STUDY_TO_STORE.fullmatch(resource):
        raise ForbiddenError("only instances are stored through this server: POST studies.")
    return await _pass_on(request, pacs, "stow", resource)


@_router.put("/{path:path}", dependencies=[reader])
@_router.patch("/{path:path}", dependencies=[reader])
@_router.delete("/{path:path}", dependencies=[reader])
def refuse(path: str) -> Response:
    """Refuse: nothing in the PACS is changed or deleted through this server."""
    raise ForbiddenError(
        "nothing in the PACS is changed or deleted through this server. Do it in the PACS."
    )


def split_service(path: str, otherwise: str) -> tuple[str, str]:
    """Service and DICOMweb resource of a path below ``/proxy/dicom``.

    >>> split_service("qido/studies/1.2/series", "wado")
    ('qido', 'studies/1.2/series')

    Raises
    ------
    InvalidInputError
        The path is no DICOMweb resource, or it would leave the service.
    """
    first, _, rest = path.partition("/")
    service, resource = (first, rest) if first in ("qido", "wado", "stow") else (otherwise, path)
    segments = resource.rstrip("/").split("/")
    if segments[0] not in _RESOURCES or not all(_SEGMENT.fullmatch(s) for s in segments):
        raise InvalidInputError(
            "this path is no DICOMweb resource. Ask for studies, series or instances, as in "
            "/proxy/dicom/qido/studies."
        )
    if service == "qido" and segments[-1] == "metadata":
        service = "wado"  # viewers ask their search root for it
    return service, "/".join(segments)


def forwarded_query(query: str) -> str:
    """Query string for the PACS: ``includefield=a,b`` as two parameters, the rest as it came.

    Both forms mean the same (PS3.18 section 8.3.4.3); old Orthanc understands only one.

    >>> forwarded_query("PatientName=A*&includefield=00081030,00080060&limit=5")
    'PatientName=A*&includefield=00081030&includefield=00080060&limit=5'
    """
    pairs: list[tuple[str, str]] = []
    for key, value in parse_qsl(query, keep_blank_values=True):
        values = value.split(",") if key == "includefield" else [value]
        pairs.extend((key, v) for v in values)
    return urlencode(pairs, quote_via=quote, safe="*,:^")


def search_query(query: str, most: int) -> tuple[str, bool]:
    """Query string of a search with a ``limit``; and whether that is less than was asked for.

    >>> search_query("offset=50", 5000)
    ('offset=50&limit=5000', True)

    Raises
    ------
    InvalidInputError
        Its limit is no number; or it is 0, which some read as all.
    """
    pairs = parse_qsl(query, keep_blank_values=True)
    asked = [value for key, value in pairs if key == "limit"]
    for text in asked:
        if not re.fullmatch(r"0{0,9}[1-9][0-9]{0,8}", text):
            raise InvalidInputError(f"limit={text!r:.20}: give a whole number, at least 1.")
    limit = min(int(asked[-1]), most) if asked else most
    rest = [(key, value) for key, value in pairs if key != "limit"]
    cut = not asked or int(asked[-1]) > most
    return urlencode([*rest, ("limit", limit)], quote_via=quote, safe="*,:^"), cut


async def _pass_on(request: Request, pacs: Upstream, service: str, resource: str) -> Response:
    prefix = pacs.prefixes.get(service)
    url = "/".join(filter(None, (pacs.root, prefix, resource)))
    query, cut = forwarded_query(request.url.query), False
    is_search = request.method == "GET" and resource.rpartition("/")[2] in _RESOURCES
    if is_search:
        query, cut = search_query(query, MOST_RESULTS)
    headers = {k: v for k, v in request.headers.items() if k in _TO_PACS}
    headers["Accept-Encoding"] = "identity"
    if pacs.is_google:
        headers["Authorization"] = f"Bearer {await run_in_threadpool(_google_token)}"
    client = _client(request, pacs)
    message = client.build_request(
        request.method,
        f"{url}?{query}" if query else url,
        headers=headers,
        content=request.stream() if request.method == "POST" else None,
    )
    try:
        answer = await _sent(client, message)
    except httpx.TimeoutException as error:
        raise PacsTimeoutError("the PACS did not answer in time. Try again later.") from error
    except httpx.ConnectError as error:
        raise UnavailableError(
            "the PACS cannot be reached. Check that it runs, and the URL the server was started "
            "with."
        ) from error
    except httpx.HTTPError as error:
        raise PacsFaultError(
            f"the PACS broke off the connection ({type(error).__name__}). Try again later."
        ) from error
    try:
        _check(answer)
        passed = {k: answer.headers[k] for k in _FROM_PACS if k in answer.headers}
        if "json" in answer.headers.get("content-type", ""):
            here = str(request.base_url).rstrip("/") + PREFIX + "/wado"
            largest = LARGEST_SEARCH if is_search else LARGEST_JSON
            content, count = await _rewritten(answer, here, largest, _slots(request))
            passed = {k: v for k, v in passed.items() if k == "content-type"}
            if cut and count >= MOST_RESULTS:
                more = "There may be additional results; ask for them with offset"
                passed["warning"] = f'299 {request.url.netloc} "{more}"'
            return Response(content, answer.status_code, passed)
    except httpx.HTTPError as error:
        await answer.aclose()
        raise PacsFaultError("the PACS broke off its answer. Try again later.") from error
    except SegUnlearnError:
        await answer.aclose()
        raise
    if answer.status_code in (204, 304):
        await answer.aclose()
        return Response(status_code=answer.status_code)
    return StreamingResponse(_body(answer), answer.status_code, passed)


async def _sent(client: httpx.AsyncClient, message: httpx.Request) -> httpx.Response:
    """Send a request; what only reads is sent once more when a kept connection was given up."""
    try:
        return await client.send(message, stream=True)
    except _GIVEN_UP:
        if message.method != "GET":
            raise
        return await client.send(message, stream=True)


async def _rewritten(
    answer: httpx.Response, here: str, largest: int, slots: asyncio.Semaphore
) -> tuple[bytes, int]:
    """Read an answer as a whole and rewrite it; a large one when it is its turn."""
    content = bytearray()
    async with contextlib.AsyncExitStack() as turn:
        async for chunk in answer.aiter_bytes():
            if len(content) <= _SMALL < len(content) + len(chunk):
                await turn.enter_async_context(slots)
            content += chunk
            if len(content) > largest:
                raise PacsFaultError(
                    f"the answer of the PACS is larger than {largest >> 20} MiB. Ask for it in "
                    "parts: a search with limit and offset, metadata of one series."
                )
        await answer.aclose()
        return await run_in_threadpool(rewrite_addresses, bytes(content), here)


def _slots(request: Request) -> asyncio.Semaphore:
    state = request.app.state
    state.pacs_slots = getattr(state, "pacs_slots", None) or asyncio.Semaphore(_LARGE_AT_ONCE)
    return cast(asyncio.Semaphore, state.pacs_slots)


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Pass the body on; a broken one must break here too, never look complete."""
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:
        logger.warning("the PACS broke off its answer: %s", type(error).__name__)
        raise
    finally:
        await answer.aclose()


def _check(answer: httpx.Response) -> None:
    """Raise for answers that concern this server and the PACS, and not the caller."""
    status = answer.status_code
    if status in (401, 407):
        raise PacsFaultError(
            "the PACS does not accept this server's user and password. Set "
            "MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD."
        )
    if 300 <= status < 400 and status != 304:
        raise PacsFaultError(
            "the PACS sends this server elsewhere. Start it with the final URL of the DICOMweb "
            "service."
        )
    if status == 503:
        raise UnavailableError("the PACS is busy. Try again later.")
    if status >= 500:
        raise PacsFaultError(f"the PACS met an error (status {status}); its own log says which.")


def _client(request: Request, pacs: Upstream) -> httpx.AsyncClient:
    """Return the connections to a PACS; they are kept for the next request.

    What is stored goes over a new one: it cannot be sent twice if an old one was given up.
    """
    kept: dict[_Connections, httpx.AsyncClient]
    kept = getattr(request.app.state, "pacs_connections", None) or {}
    request.app.state.pacs_connections = kept
    reads = request.method == "GET"
    key = (pacs.root, pacs.user, pacs.password, reads)
    if key not in kept:
        kept[key] = httpx.AsyncClient(
            auth=(pacs.user, pacs.password) if pacs.user and not pacs.is_google else None,
            timeout=_TIMEOUT,
            limits=_LIMITS if reads else httpx.Limits(max_keepalive_connections=0),
            follow_redirects=False,
        )
    return kept[key]


async def close_connections(app: FastAPI) -> None:
    """Close the connections to the PACS; for the end of a server."""
    kept: dict[_Connections, httpx.AsyncClient]
    kept = getattr(app.state, "pacs_connections", None) or {}
    while kept:
        await kept.popitem()[1].aclose()


@lru_cache(maxsize=1)
def _google_credentials() -> Any:
    import google.auth

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    return credentials


def _google_token() -> str:
    """Access token of the server's Google account, renewed when it ran out."""
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request as GoogleRequest

    try:
        credentials = _google_credentials()
        if not credentials.valid:
            credentials.refresh(GoogleRequest())
    except GoogleAuthError as error:
        raise UnavailableError(
            "Google does not give this server a token. Set GOOGLE_APPLICATION_CREDENTIALS to the "
            "file of a service account that may read the DICOM store."
        ) from error
    return str(credentials.token)
