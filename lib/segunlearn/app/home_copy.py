"""A copy of a home that can be trusted, and a home made from one.

::

    <copy>/manifest.json       what is in it: SHA-256 and size of each file; written last
    <copy>/home/…              the files, as below the home

What is left out: keys of deposits (a purge must stay a purge), caches, sessions and what runs have
not finished. A copy without a manifest is not whole and is never used.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Final

from segunlearn import __version__
from segunlearn.app.adapter_store import SiteAdapters
from segunlearn.app.locks import training_lock
from segunlearn.app.options import Home
from segunlearn.app.unlearn_journal import journals
from segunlearn.errors import ConflictError, IntegrityError, InvalidInputError
from segunlearn.records.access_tokens import AccessTokens
from segunlearn.records.chain import ChainHead
from segunlearn.records.durable import read_json, sync_file, sync_folder, write_json_durably
from segunlearn.records.ledger import Ledger
from segunlearn.records.ledger_entries import row_digest
from segunlearn.records.numbered import names_in
from segunlearn.records.store import DATABASE_NAME, canonical_json, open_store, utc_now
from segunlearn.records.trail import Trail
from segunlearn.records.version_files import check_weights
from segunlearn.records.version_info import file_sha256, read_info
from segunlearn.records.versions import VersionRegistry

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
#: What is copied beside the database; everything else is a key, a cache, a lock, or under way.
#: Results and images are what was stored here because the folder of studies is read-only.
_FOLDERS: Final = (
    "models", "sites", "replay", "deposits", "audits", "labels", "infos", "results", "images",
)  # fmt: skip
_FILES: Final = ("site.key", "audit.key", "audit-public-key.pem", "ledger.head", "trail.head")
#: Names of files that are being written, and of locks.
_UNFINISHED: Final = (".part", ".lock", ".tmp")


@dataclass(frozen=True)
class Copied:
    """What was copied.

    Parameters
    ----------
    files, size
        How many, and how many bytes together.
    manifest_sha256
        To be written down elsewhere: it stands for every file.
    """

    files: int
    size: int
    manifest_sha256: str


def copy_home(home: Home, target: Path, *, wait: float = 5.0) -> Copied:
    """Copy a home, also while its server runs.

    No version is published, restored or purged meanwhile. The database comes last, so that it holds
    every mark and every row that any file of the copy needs.

    Parameters
    ----------
    home
        Its store is SQLite.
    target
        Folder that does not exist yet.
    wait
        Seconds to wait for a training or unlearning.

    Raises
    ------
    InvalidInputError
        There is no home, its store is elsewhere, or the target exists.
    ConflictError
        A training or unlearning runs, or one that was killed is not settled.
    IntegrityError
        The database is damaged.
    """
    if not home.database.is_file():
        raise InvalidInputError(
            f"{home.root}: no store is here. Name the home of the server; a store in PostgreSQL is "
            "copied by its own tools (pg_dump)."
        )
    if target.exists():
        raise InvalidInputError(f"{target}: is there already. Name a new folder for the copy.")
    if home.root.resolve() in [target.resolve(), *target.resolve().parents]:
        raise InvalidInputError(f"{target}: lies inside the home. Name a folder elsewhere.")
    with ExitStack() as stack:
        for model in home.models():
            stack.enter_context(training_lock(home, model, "backup", wait))
        if any(True for _ in journals(home)):
            raise ConflictError(
                "an unlearning, restore or purge was interrupted and is not settled. Start the "
                "server once, or run 'segunlearn unlearn', then copy."
            )
        target.mkdir(mode=0o700, parents=True)
        try:
            return _copy_into(home, target)
        except BaseException:  # a copy without a manifest is never used
            shutil.rmtree(target, ignore_errors=True)
            raise


def _copy_into(home: Home, target: Path) -> Copied:
    place = target / "home"
    files = {name: _copy(home.root / name, place / name) for name in _names(home.root)}
    _copy_database(home.database, place / DATABASE_NAME)
    files[DATABASE_NAME] = _described(place / DATABASE_NAME)
    kept = {name: about for name, about in files.items() if about is not None}
    manifest = {
        "format": _FORMAT,
        "program": __version__,
        "created": utc_now(),
        "files": kept,
        **_heads(place / DATABASE_NAME),
    }
    write_json_durably(
        target / MANIFEST, {**manifest, "seal": row_digest(canonical_json(manifest))}
    )
    sync_folder(target)
    return Copied(
        len(kept), sum(int(f["size"]) for f in kept.values()), file_sha256(target / MANIFEST)
    )


def restore_home(source: Path, target: Path) -> dict[str, Any]:
    """Make a home from a copy, after every byte of it was checked.

    Parameters
    ----------
    source
        Folder that ``copy_home`` made.
    target
        Home that does not exist yet; it appears whole, by one rename.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    IntegrityError
        A file is missing, changed or was added; or a chain in the database is broken.
    InvalidInputError
        It is no copy, or the target exists.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInputError(
            f"{target}: is there already, and nothing is overwritten. Name a new folder."
        )
    manifest = check_copy(source)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir(mode=0o700)
    try:
        for name, about in manifest["files"].items():
            if _copy(source / "home" / name, part / name) != about:
                raise IntegrityError(f"{name}: was changed while it was copied. Copy again.")
        check_records(part / DATABASE_NAME, manifest)
        _close_doors(part / DATABASE_NAME)
        if target.exists():
            target.rmdir()
        part.rename(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return manifest


def check_copy(source: Path) -> dict[str, Any]:
    """Compare every file of a copy with its manifest; returns the manifest.

    Raises
    ------
    InvalidInputError
        It is no copy.
    IntegrityError
        A file is missing, changed or was added, or the manifest is damaged.
    """
    if not (source / MANIFEST).is_file():
        raise InvalidInputError(
            f"{source}: has no {MANIFEST}: it is no copy of a home, or one that was interrupted."
        )
    told: Any = read_json(source / MANIFEST)
    manifest: dict[str, Any] = told if isinstance(told, dict) else {}
    listed = manifest.get("files")
    if not isinstance(listed, dict) or manifest.get("format") != _FORMAT:
        raise IntegrityError(f"{source / MANIFEST}: is damaged, or of another program.")
    if row_digest(
        canonical_json({k: v for k, v in manifest.items() if k != "seal"})
    ) != manifest.get("seal"):
        raise IntegrityError(f"{source / MANIFEST}: was changed. Use another copy.")
    for name in listed:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
            raise IntegrityError(f"the manifest names {name!r:.80}, which lies outside the copy.")
        if name not in (DATABASE_NAME, *_FILES) and (
            path.parts[0] not in _FOLDERS or _hidden(path)
        ):
            raise IntegrityError(f"the copy holds {name!r:.80}, which is no part of a home.")
    place = source / "home"
    found = {
        p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_symlink() or p.is_file()
    }
    for name in sorted(found ^ set(listed)):
        what = "was added to" if name in found else "is missing in"
        raise IntegrityError(f"{name} {what} the copy. Use another copy.")
    for name, about in listed.items():
        if (place / name).is_symlink() or _described(place / name) != about:
            raise IntegrityError(f"{name} was changed in the copy. Use another copy.")
    return manifest


def faults_of(home: Home) -> list[str]:
    """Say what of the models is missing or was changed, in a home or in a copy's ``home``.

    A copy is compared with its manifest; what was damaged before it was made is in it as it was.
    """
    found: list[str] = []
    for model in home.models():
        registry, versions = VersionRegistry(home.model(model)), home.model(model) / "versions"
        looks: list[Callable[[], object]] = [registry.active]
        looks += [partial(_look_at, versions / name) for name in names_in(versions)]
        for look in looks:
            try:
                look()
            except IntegrityError as error:
                found.append(f"{model}: {error}")
        found += [f"{model}: {fault}" for fault in SiteAdapters(home.sites / model).damaged()]
    return list(dict.fromkeys(found))


def check_records(database: Path, manifest: Mapping[str, Any]) -> None:
    """Check the database of a copy and its chains, down to the heads that the manifest names.

    Raises
    ------
    IntegrityError
        Something in it is not as it was.
    """
    _check_database(database)
    store = open_store(database)
    try:
        heads = {k: ChainHead(int(v[0]), str(v[1])) for k, v in manifest["chains"].items()}
        faults = [
            *Ledger(store).verify(witness=heads["ledger"]),
            *Trail(store).verify(witness=heads["trail"]),
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise IntegrityError("the manifest does not tell where the chains end.") from error
    finally:
        store.close()
    if faults:
        raise IntegrityError(f"the copy's records were changed: {faults[0].message}")


def _look_at(version: Path) -> None:
    info = read_info(version)
    if info.weights_state == "here":
        check_weights(info)


def _close_doors(database: Path) -> None:
    """Revoke every token: one that was revoked since the copy was made would be good again."""
    store = open_store(database)
    try:
        tokens = AccessTokens(store)
        for token in tokens.list():
            if not token.revoked:
                tokens.revoke(token.token_id)
    finally:
        store.close()


def _names(root: Path) -> Iterator[str]:
    yield from (name for name in _FILES if (root / name).is_file())
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and not _hidden(name) and not path.name.endswith(_UNFINISHED):
                yield name.as_posix()


def _hidden(name: PurePath) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _copy(source: Path, target: Path) -> dict[str, Any] | None:
    """Copy one file and flush it; None where it went away meanwhile, as a mark makes adapters."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with source.open("rb") as read:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
    except FileNotFoundError:
        return None
    sync_file(target)
    return _described(target)


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path), "size": path.stat().st_size}


def _copy_database(source: Path, target: Path) -> None:
    """SQLite's own online copy: one consistent state, whoever writes meanwhile."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as read,
            closing(sqlite3.connect(target)) as write,
        ):
            read.backup(write, pages=4096, sleep=0.01)
            write.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"the store cannot be copied ({error}). Restore a backup.") from error
    _check_database(target)
    sync_file(target)


def _check_database(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            told = connection.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"the store is damaged ({error}). Use another copy.") from error
    if told != ("ok",):
        raise IntegrityError(f"the store is damaged ({told[0]!s:.200}). Use another copy.")


def _heads(database: Path) -> dict[str, Any]:
    """Read the ends of the chains in a copied database without changing a byte of it."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        return {
            "chains": {
                name: list(connection.execute(f"SELECT rows, digest FROM {name}_head").fetchone())
                for name in ("ledger", "trail")
            }
        }
