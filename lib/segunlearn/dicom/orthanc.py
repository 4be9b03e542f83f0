"""Orthanc's change counter, which tells cheaply that nothing has happened.

Orthanc (<https://orthanc.uclouvain.be/book/users/rest.html#tracking-changes>) numbers what it
receives. It does not number deletions, so these are still looked for by searching.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests

from segunlearn.errors import UnavailableError

#: Seconds to wait for an answer; bytes of an answer that are read.
_TIMEOUT = (3.0, 10.0)
_LONGEST = 1 << 20


class OrthancChanges:
    """The counter of one Orthanc.

    Parameters
    ----------
    root
        URL of its REST API, e.g. ``http://pacs:8042``.
    session
        Session with the authentication of the PACS.
    """

    def __init__(self, root: str, session: requests.Session | None = None) -> None:
        self.root = root.rstrip("/")
        self._session = session or requests.Session()

    def last(self) -> int:
        """Return the number of the last change.

        Raises
        ------
        UnavailableError
            Orthanc does not answer, or with something else.
        """
        answer = _get(self._session, f"{self.root}/changes?last")
        number = answer.get("Last") if answer is not None else None
        if not isinstance(number, int):
            raise UnavailableError("the PACS gives no change counter now. Try again later.")
        return number


def find_orthanc(
    dicomweb_url: str, session: requests.Session | None = None
) -> OrthancChanges | None:
    """Look whether an Orthanc lies behind a DICOMweb URL; None when not, or not reachable.

    Only ``/system`` and ``/changes`` at the root of the same server are read, and no redirect is
    followed: credentials of the PACS go nowhere else.
    """
    parts = urlsplit(dicomweb_url)
    root = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
    session = session or requests.Session()
    system = _get(session, f"{root}/system")
    if system is None or "ApiVersion" not in system or "DatabaseVersion" not in system:
        return None
    changes = OrthancChanges(root, session)
    try:
        changes.last()
    except UnavailableError:
        return None
    return changes


def _get(session: requests.Session, url: str) -> dict[str, Any] | None:
    """GET a JSON object; None for anything else."""
    headers = {"Accept": "application/json"}
    try:
        with session.get(
            url, headers=headers, timeout=_TIMEOUT, allow_redirects=False, stream=True
        ) as response:
            if response.status_code != 200:
                return None
            body = response.raw.read(_LONGEST, decode_content=True)
        answer = json.loads(body)
    except (requests.RequestException, OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None
