"""Settings of the application; the address is the one that the MONAI Label module uses."""

from __future__ import annotations

from typing import Any

import qt

_ADDRESS = "MONAILabel/serverUrl"
_CLIENT = "MONAILabel/clientId"
_CONSENT = "SegUnlearn/allowedServers"
DEFAULT_ADDRESS = "http://127.0.0.1:8000"


class Parameters:
    """What is remembered between sessions; tokens never are, see ``tokens``.

    Parameters
    ----------
    settings
        A ``QSettings``.
    """

    def __init__(self, settings: Any = None) -> None:
        self._settings = settings or qt.QSettings()

    @property
    def address(self) -> str:
        """Address of the server, shared with the MONAI Label module."""
        return tidy(str(self._settings.value(_ADDRESS) or "")) or DEFAULT_ADDRESS

    @address.setter
    def address(self, address: str) -> None:
        self._settings.setValue(_ADDRESS, tidy(address))

    @property
    def client(self) -> str:
        """Name that is sent along where nobody signs in; of the MONAI Label module."""
        return str(self._settings.value(_CLIENT) or "")

    def is_allowed(self, address: str) -> bool:
        """Whether the user agreed to send data to this server."""
        return tidy(address) in self._allowed()

    def allow(self, address: str) -> None:
        """Remember that the user agreed."""
        allowed = [*(a for a in self._allowed() if a != tidy(address)), tidy(address)]
        self._settings.setValue(_CONSENT, " ".join(allowed))

    def _allowed(self) -> list[str]:
        return str(self._settings.value(_CONSENT) or "").split()


def tidy(address: str) -> str:
    """Return an address without blanks and trailing slashes, with a scheme.

    Examples
    --------
    >>> tidy(" pacs.example:8000/ "), tidy("")
    ('http://pacs.example:8000', '')
    """
    address = address.strip().rstrip("/")
    return address if not address or "://" in address else f"http://{address}"
