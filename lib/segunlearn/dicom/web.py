"""The HTTP side of a PACS: a DICOMweb client, and what its failures mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.errors import InvalidDicomError
from retrying import RetryError  # type: ignore[import-untyped]

from segunlearn.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    SegUnlearnError,
    UnavailableError,
)


def web_client(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float | tuple[float, float] = (5.0, 60.0),
    attempts: int = 3,
    ca_bundle: Path | None = None,
    url_prefixes: Mapping[str, str] | None = None,
) -> DICOMwebClient:
    """Make a DICOMweb client; nothing is sent yet. Parameters as for ``archive.open_archive``.

    Raises
    ------
    InvalidInputError
        The URL is malformed, holds a password, or two kinds of authentication are given.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidInputError(f"{url!r} is not a DICOMweb URL ({error}).") from error
    if not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise InvalidInputError(
            "the DICOMweb URL needs the form http://host:port/path, for Orthanc "
            "http://host:8042/dicom-web."
        )
    if parts.username or parts.password:
        raise InvalidInputError(
            "the DICOMweb URL holds a user name; URLs are logged. Give user and password apart."
        )
    if token and user:
        raise InvalidInputError("give the PACS either a user and password or a token, not both.")
    session = requests.Session()
    if user:
        session.auth = (user, password or "")
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    session.headers.update(dict(headers or {}))
    if ca_bundle is not None:
        if not Path(ca_bundle).is_file():
            raise InvalidInputError(f"{ca_bundle}: no such file of certificates.")
        session.verify = str(ca_bundle)
    prefixes: dict[str, Any] = {
        f"{name}_url_prefix": path for name, path in (url_prefixes or {}).items()
    }
    try:
        client = DICOMwebClient(
            url.rstrip("/"), session=session, timeout=timeout, permissive_uid=True, **prefixes
        )
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"the DICOMweb URL cannot be used ({error}).") from error
    client.set_http_retry_params(
        retry=True, max_attempts=max(1, attempts), wait_exponential_multiplier=100
    )
    return client


def fault_of(error: Exception, what: str) -> SegUnlearnError | None:
    """Say what a failed request means; None for errors that are not of the PACS.

    Parameters
    ----------
    error
        What requests, retrying or the parser of the answer raised.
    what
        What was asked for, e.g. ``"series 1.2.3"``.
    """
    if isinstance(error, RetryError):
        value = error.last_attempt.value
        if isinstance(value, requests.Response):
            error = requests.HTTPError(response=value)
        else:
            return UnavailableError(f"{what}: the PACS did not answer. Try again later.")
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _fault_of_status(error.response, what)
    if isinstance(error, requests.exceptions.SSLError):
        return UnavailableError(
            f"{what}: the PACS's certificate is not trusted. Give the file of its authority."
        )
    if isinstance(error, (requests.Timeout, TimeoutError)):
        return UnavailableError(f"{what}: the PACS did not answer in time. Try again later.")
    if isinstance(error, requests.RequestException):
        return UnavailableError(
            f"{what}: the PACS cannot be reached ({type(error).__name__}). Check its URL and that "
            "it runs."
        )
    if isinstance(error, (OSError, ValueError, KeyError, TypeError, EOFError, InvalidDicomError)):
        return UnavailableError(
            f"{what}: the PACS's answer cannot be understood ({type(error).__name__}: {error}). "
            "Check that the URL is its DICOMweb service."
        )
    return None


def _fault_of_status(response: requests.Response, what: str) -> SegUnlearnError:
    code = response.status_code
    if code in (404, 410):
        return NotFoundError(
            f"{what}: the PACS answers {code}, not found. Check the UID and the DICOMweb URL."
        )
    if code in (401, 403):
        return ForbiddenError(
            f"{what}: the PACS answers {code}, access denied. Check user, password and rights."
        )
    if code == 409:
        return ConflictError(f"{what}: the PACS answers 409, none of the instances was stored.")
    if code in (400, 406, 415):
        return InvalidInputError(
            f"{what}: the PACS answers {code}, it does not understand the request "
            f"({response.reason})."
        )
    return UnavailableError(f"{what}: the PACS answers {code} ({response.reason}). Try later.")
