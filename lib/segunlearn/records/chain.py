"""What the hash-chained tables share: the chain's end, kept a second time outside the database."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Table, select

from segunlearn.errors import IntegrityError, UnavailableError
from segunlearn.records.durable import clear_parts, read_json, write_json_durably
from segunlearn.records.store import Store


class ChainHead(NamedTuple):
    """How many rows there are, and the digest of the last: what to write down elsewhere."""

    rows: int
    digest: str


@dataclass(frozen=True)
class HeadFile:
    """A file beside the store that tells where a chain ends, so that rows cut off are missed.

    Parameters
    ----------
    path
        None: it is kept nowhere (PostgreSQL).
    what
        The chain, for messages: ``ledger``, ``trail``.
    """

    path: Path | None
    what: str

    def keep(self, head: ChainHead, store: Store, rows: Table) -> None:
        """Write the chain's end, unless a later one stands there, or one that the chain left.

        That one tells of rows that are gone: it stays until somebody who knows why removes it.

        Parameters
        ----------
        head
            Of rows that are committed.
        store, rows
            Where the chain is, with ``seq`` and ``digest`` of each row.

        Raises
        ------
        UnavailableError
            The file cannot be written; the row itself is recorded.
        """
        if self.path is None:
            return
        try:
            with self._locked(self.path):
                kept = self.read()
                if kept is None or (kept.rows < head.rows and _leads_on(kept, store, rows)):
                    write_json_durably(self.path, {"rows": head.rows, "digest": head.digest})
        except IntegrityError:
            return  # a damaged note is left as it is: verify tells of it
        except OSError as error:
            raise UnavailableError(
                f"the {self.what}'s row {head.rows} is recorded, but {self.path.name} beside the "
                f"store cannot be written ({error.strerror}). Make room or repair its rights: the "
                "next row writes it."
            ) from error

    def clear(self) -> None:
        """Remove what a killed writer left half written beside it."""
        if self.path is not None:
            with self._locked(self.path):
                clear_parts(self.path)

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        with path.with_name(f"{path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> ChainHead | None:
        """Read the chain's end; None when it is not kept.

        Raises
        ------
        IntegrityError
            The file is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        kept = read_json(self.path)
        try:
            return ChainHead(int(kept["rows"]), str(kept["digest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{self.path.name}: does not say where the {self.what} ends. Restore it from a "
                "backup."
            ) from error


def _leads_on(kept: ChainHead, store: Store, rows: Table) -> bool:
    with store.read() as connection:
        query = select(rows.c.digest).where(rows.c.seq == kept.rows)
        return bool(connection.execute(query).scalar() == kept.digest)
