"""Which store the records of a home are in, so that no command asks another one.

A store that is asked by mistake knows no forget request: it would let a marked study be trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from segunlearn.app.options import Home
from segunlearn.errors import ConflictError
from segunlearn.records.durable import read_json, write_json_durably

#: In the home: the store's address, without user and password.
NOTE: Final = "store.json"


def refuse_other_store(home: Home, url: str) -> None:
    """Refuse a store that is not the one which the home's records are in.

    Parameters
    ----------
    home
        Of the installation.
    url
        As in ``open_store``; empty: SQLite in the home.

    Raises
    ------
    ConflictError
        The records are in another one; nothing was opened or made.
    IntegrityError
        The note is damaged.
    """
    note = home.root / NOTE
    if not note.is_file():
        return
    noted, asked = str(read_json(note).get("store")), address(home, url)
    if noted == asked:
        return
    how = "Leave --store out" if noted == home.database.name else "Name it with --store"
    raise ConflictError(
        f"the records of {home.root} are in the store {noted}, not in {asked}: another one knows "
        f"nothing of the studies that are to be forgotten. {how} (in the server: --conf store). If "
        f"it was moved there, with all its rows, remove {note.name} in the home first."
    )


def note_store(home: Home, url: str) -> None:
    """Note the store of a home that has none noted yet; it has just been opened."""
    if not (home.root / NOTE).is_file():
        write_json_durably(home.root / NOTE, {"store": address(home, url)})
        (home.root / NOTE).chmod(0o600)


def address(home: Home, url: str) -> str:
    """Name a store: a file by its path, from the home where it lies in it; else host and database.

    Parameters
    ----------
    home, url
        See :func:`refuse_other_store`.
    """
    if "://" not in url:
        return _relative(home, Path(url) if url else home.database)
    try:
        found = make_url(url)
    except ArgumentError:
        return url.split("@")[-1]  # opening it is an error
    if found.get_backend_name() == "sqlite":
        return _relative(home, Path(found.database or ""))
    options = found.query.get("options")
    more = f"?options={options}" if options else ""  # may name a schema
    host, port = found.host or found.query.get("host") or "localhost", found.port or 5432
    return f"postgresql://{host}:{port}/{found.database or ''}{more}"


def _relative(home: Home, path: Path) -> str:
    path = path.expanduser().absolute()
    if path.is_dir():
        path = path / home.database.name
    inside = path.is_relative_to(home.root.absolute())
    return str(path.relative_to(home.root.absolute()) if inside else path)
