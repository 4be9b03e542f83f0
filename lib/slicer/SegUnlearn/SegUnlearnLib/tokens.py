"""Where the login's token lies: in the system's key store where there is one, else in memory.

The key store is reached through the package ``keyring``, which Slicer does not bring along; without
it, or without a real key store behind it, a token is forgotten when Slicer closes. It is never
written into settings or scenes.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

logger = logging.getLogger(__name__)

_SERVICE = "SegUnlearn"


class Tokens:
    """Tokens by the server's address.

    Parameters
    ----------
    store
        Something with ``get_password``, ``set_password`` and ``delete_password``, as ``keyring``
        has; None: look for it.
    """

    def __init__(self, store: Any = None) -> None:
        self._store = store if store is not None else _system_store()
        self._memory: dict[str, str] = {}

    @property
    def lasts(self) -> bool:
        """Whether tokens outlive this session."""
        return self._store is not None

    def get(self, server: str) -> str:
        """Token for a server, empty without one."""
        if server not in self._memory and self._store is not None:
            self._memory[server] = str(self._ask("get_password", server) or "")
        return self._memory.get(server, "")

    def put(self, server: str, token: str) -> None:
        """Keep a token."""
        self._memory[server] = token
        self._ask("set_password", server, token)

    def drop(self, server: str) -> None:
        """Forget a token."""
        if self._memory.pop(server, ""):
            self._ask("delete_password", server)
        self._memory[server] = ""

    def _ask(self, what: str, server: str, *values: str) -> Any:
        if self._store is None:
            return None
        try:
            return getattr(self._store, what)(_SERVICE, server, *values)
        except Exception as error:  # noqa: BLE001  each back end raises errors of its own
            logger.warning("the system's key store does not work: %s", type(error).__name__)
            self._store = None
            return None


def _system_store() -> Any:
    try:
        keyring = importlib.import_module("keyring")
        # back ends that only fail, or keep plain text, have a priority below 1
        return keyring if float(keyring.get_keyring().priority) >= 1 else None
    except Exception:  # noqa: BLE001  not installed, or no back end: both mean memory
        return None
