"""The store: one database for runs, ledger, forget set and outbox.

SQLite in WAL mode by default, PostgreSQL by URL. Both are safe with the server, its child
processes and the command line writing at once. The database holds raw identifiers of patients:
it stays inside the hospital, and its file is readable by its owner only.

What an acknowledged write survives
    ``write()`` returns after the commit is on the disk (SQLite ``synchronous=FULL``, which syncs
    the WAL at each commit; PostgreSQL ``synchronous_commit=on``), so neither ``kill -9`` nor a
    power cut loses it, as far as the disk keeps its own promises. ``write(durable=False)`` is for
    progress: it survives ``kill -9``, and a power cut may lose the last seconds of it.

SQLite's WAL needs a local disk; a database on a network share is refused by SQLite or, worse,
damaged. Use PostgreSQL when several machines write.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    Row,
    any_,
    cast,
    create_engine,
    event,
    func,
    literal,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError as UrlError
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
)

from segunlearn.errors import IntegrityError, InvalidInputError, UnavailableError
from segunlearn.records.migrations import MIGRATIONS, check_not_newer, migrate, schema_version

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
"""A row of any statement."""

#: What the name of a new SQLite file ends in: a mistyped address makes none.
_NEW: Final = (".db", ".sqlite")
#: Name of the SQLite file inside the home folder.
DATABASE_NAME: Final = "segunlearn.db"

#: Ending of a file beside a SQLite store: there was a store, so none in its place is a loss.
KEPT: Final = ".kept"
#: Smallest SQLite database, in bytes (one page).
_SMALLEST: Final = 512

#: How long a writer waits for other writers before it gives up, in seconds.
BUSY_SECONDS: Final = 60.0

#: How long PostgreSQL may take to answer a new connection, in seconds.
CONNECT_SECONDS: Final = 5

#: What is to be done after the transaction of a connection, among what is known of it.
_AFTER: Final = "segunlearn after commit"

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def utc_now() -> str:
    """Now, UTC, ISO 8601 with microseconds and ``Z``: text order is time order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces, no NaN: one text for one value, fit for a digest.

    Raises
    ------
    InvalidInputError
        The value holds something that JSON cannot say (NaN, infinity, an object).
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"a record holds a value that JSON cannot say ({error}); give numbers that are finite, "
            "strings, booleans, lists and dicts with string keys."
        ) from error


class Store:
    """A database with the current schema; made by ``open_store``."""

    def __init__(self, engine: Engine, path: Path | None) -> None:
        self._engine = engine
        self.path = path
        """The SQLite file, or None for PostgreSQL."""
        self._file: tuple[int, int] | None = None

    @property
    def dialect(self) -> str:
        """``"sqlite"`` or ``"postgresql"``."""
        return self._engine.dialect.name

    @property
    def name(self) -> str:
        """File name or URL, without a password: fit for messages."""
        if self.path is not None:
            return self.path.name
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection to read with; on SQLite it sees one consistent state.

        Raises
        ------
        UnavailableError
            The database cannot be reached.
        """
        with self._translated(), self._engine.connect() as connection:
            self._check_file()
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """Open a write transaction: committed when the block ends, undone when it raises.

        Never open one inside another: on SQLite the inner one would wait for the outer one.

        Parameters
        ----------
        durable
            On return the write is on the disk. False only for progress, which may be lost in a
            power cut.

        Raises
        ------
        UnavailableError
            The database cannot be reached, or other writers held it for ``BUSY_SECONDS``.
        """
        with self._translated(), self._engine.connect() as connection:
            self._check_file()
            if self.dialect == "sqlite":
                level = "FULL" if durable else "NORMAL"
                connection.connection.cursor().execute(f"PRAGMA synchronous={level}")
                connection = connection.execution_options(sqlite_begin="IMMEDIATE")
            after: list[Callable[[], None]] = []
            connection.info[_AFTER] = after
            with connection.begin():
                if self.dialect == "postgresql" and not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
                yield connection
            self._check_file()
        for action in after:
            action()

    def after_commit(self, connection: Connection, action: Callable[[], None]) -> None:
        """Do something after the write transaction of a connection, unless that is undone.

        Parameters
        ----------
        connection
            From :meth:`write`, whose block has not ended.
        action
            What it raises, ``write`` raises, though the transaction is committed.
        """
        connection.info[_AFTER].append(action)

    def among(
        self, column: ColumnElement[Any], values: Sequence[str] | Sequence[int]
    ) -> ColumnElement[bool]:
        """``column IN values`` for any number of values, all texts or all integers.

        They travel as one bound parameter: a list of a million is no longer statement.
        """
        listed = list(values)
        if self.dialect == "sqlite":
            each = func.json_each(json.dumps(listed)).table_valued("value")
            return column.in_(select(each.c.value))
        kind = ARRAY(column.type)
        return column == any_(cast(literal(listed, kind), kind))

    def close(self) -> None:
        """Close pooled connections; the store may be used again afterwards."""
        self._engine.dispose()
        self._file = None

    def _check_file(self) -> None:
        """Refuse to go on in a file that has lost its name: nobody would find what is written."""
        if self.path is None:
            return
        try:
            stat = self.path.stat()
            found = (stat.st_dev, stat.st_ino)
        except OSError:
            found = (0, 0)
        self._file = self._file or found
        if found != self._file or found == (0, 0):
            raise IntegrityError(
                f"the store {self.name} was removed or replaced while it was in use, so nothing is "
                "written any more. Stop the server, put the file back (or a copy from a backup), "
                "and start it again."
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the driver's errors into ours."""
        try:
            yield
        except (OperationalError, InterfaceError) as error:
            raise UnavailableError(
                f"the store {self.name} cannot be used now ({_cause(error)}); nothing was changed. "
                "See that its disk is not full and its server runs, then try again."
            ) from error
        except (DataError, UnicodeEncodeError) as error:  # PostgreSQL keeps no NUL
            raise InvalidInputError(
                "a text holds a character that the store cannot keep (NUL, or half of a pair of "
                "UTF-16); nothing was changed. Leave it out."
            ) from error
        except DatabaseError as error:
            if type(error) is not DatabaseError:
                raise
            raise IntegrityError(
                f"the store {self.name} is damaged or not a database ({_cause(error)}). Restore it "
                "from a backup; do not delete it, it holds the forget requests."
            ) from error


def storable(text: str) -> str:
    """Replace what a store cannot keep: for words that must be kept, whatever they hold."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _cause(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "no reason given"


def open_store(place: str | Path) -> Store:
    """Open the store, make it when it is missing, and bring its schema up to date.

    Any number of processes may do so at the same time: one of them migrates, the others wait.

    Parameters
    ----------
    place
        A SQLite file, an existing folder (the file in it is ``segunlearn.db``), or a URL:
        ``sqlite:///…`` or ``postgresql+psycopg://user:password@host/database``.

    Returns
    -------
    Store

    Raises
    ------
    InvalidInputError
        The URL is not one of the two kinds of databases, PostgreSQL's driver is missing, or a text
        that names no file there is no name for a new one (``.db``, ``.sqlite``).
    UnavailableError
        The database cannot be reached.
    IntegrityError
        A newer program wrote it, it is not a database of this program, or it was lost: there was
        one, and the file is gone or was emptied by a power cut.
    """
    if isinstance(place, str) and "://" in place:
        store = _from_url(place)
    else:
        path = Path(place)
        mistyped = isinstance(place, str) and not path.exists()
        if mistyped and (path.suffix not in _NEW or "@" in path.name or ":" in path.parts[0]):
            raise InvalidInputError(
                "the store's address names no file or folder that is there. Give one, a new file "
                f"whose name ends in {' or '.join(_NEW)}, or an address like "
                "postgresql+psycopg://user:password@host:5432/database."
            )
        store = _from_path(path)
    try:
        with store.read() as connection:
            version = schema_version(connection)
        check_not_newer(version, len(MIGRATIONS))
        if version < len(MIGRATIONS):
            with store.write() as connection:
                migrate(connection, utc_now())
        if store.path is not None:
            os.close(os.open(_kept(store.path), os.O_WRONLY | os.O_CREAT, 0o600))
    except BaseException:
        store.close()
        raise
    return store


def _from_url(place: str) -> Store:
    try:
        url = make_url(place)
        if url.drivername in ("sqlite", "sqlite+pysqlite"):
            if not url.database or url.database == ":memory:":
                raise InvalidInputError(
                    "the store must outlive the program, so it cannot be in memory; give a file."
                )
            return _from_path(Path(url.database))
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername != "postgresql+psycopg":
            raise InvalidInputError(
                f"a store of kind {url.drivername!r} is not supported. Use a file (SQLite) or "
                "postgresql+psycopg://user:password@host/database."
            )
        # libpq's own limit is none: a host that swallows packets would be waited for by minutes
        limit = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS}
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=limit)
    except (UrlError, NoSuchModuleError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            "the store's URL cannot be read. Write it like "
            "postgresql+psycopg://user:password@host:5432/database."
        ) from error
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            "a store in PostgreSQL needs the package psycopg; install segunlearn[postgresql]."
        ) from error
    _engines.add(engine)
    return Store(engine, None)


def _from_path(path: Path) -> Store:
    if path.is_dir():
        path = path / DATABASE_NAME
    path = path.absolute()
    _check_not_lost(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite itself would make it 0644
    except OSError as error:
        raise UnavailableError(
            f"the store {path.name} cannot be opened or made ({error.strerror}). Check the rights "
            "of the home folder."
        ) from error
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    _engines.add(engine)
    return Store(engine, path)


def _kept(path: Path) -> Path:
    return path.with_name(path.name + KEPT)


def _check_not_lost(path: Path) -> None:
    """Refuse to begin anew where a store was: its marks would be forgotten without a word."""
    try:
        empty = path.stat().st_size < _SMALLEST
    except FileNotFoundError:
        empty = True
    except OSError:
        return  # opening it says why
    if empty and _kept(path).exists():
        raise IntegrityError(
            f"the store {path.name} is gone or empty, and there was one in this folder: with it "
            "the forget requests are lost. Put it back, or restore the home from a backup. To "
            f"begin anew without what it held, remove {_kept(path).name} as well."
        )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where this module says so
    cursor = connection.cursor()
    # The change to WAL does not wait for other processes by itself; later it is a no-op.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA temp_store=MEMORY")
    cursor.execute("PRAGMA cache_size=-32000")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _forget_inherited_connections() -> None:
    """Drop them in a forked child: it must not speak on its parent's sockets and file locks."""
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_inherited_connections)
