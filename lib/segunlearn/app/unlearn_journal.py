"""Journals of what changes versions, keys and requests together, so that a kill ends nowhere.

An unlearning, a restore and a purge each change several places. Before the first of them a journal
says what is to happen; every step can be done again; and whoever comes next finishes what a killed
process began (``segunlearn.app.unlearn_settle``). A journal names no patient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segunlearn.app.options import Home
from segunlearn.errors import IntegrityError
from segunlearn.records.durable import read_json, sync_folder, write_json_durably

Kind = Literal["unlearn", "restore", "purge"]


@dataclass(frozen=True)
class Journal:
    """What is to happen, and how far it is.

    Parameters
    ----------
    run_id
        Of the run; also the id of the deposit.
    kind
        What is done.
    model
        Name in the registry.
    requests
        Ids of the forget requests.
    actor
        Who asked for it.
    original, candidate
        Versions before and after; the candidate is empty until it is there.
    retire
        Versions that know what is forgotten.
    level, reached
        Assurance level that was asked for, and that the audit found.
    exact
        Ids of requests that reached ``"retrained"``, by the ledger and whatever ``reached`` says.
    audit_id
        The audit that passed it.
    interim
        It is served while work on a higher level goes on: nothing is sealed or fulfilled.
    decided
        Nothing can go wrong any more but a kill: it is finished, not undone.
    why
        Text for the history of the requests.
    again
        Of a restore: ids of requests that stay forgotten, and were unlearned again beside it.
    stay
        Of a restore: ids of requests whose keys seal ``retire`` again.
    """

    run_id: str
    kind: Kind
    model: str
    requests: tuple[str, ...]
    actor: str
    original: str
    candidate: str = ""
    retire: tuple[str, ...] = ()
    level: str = ""
    reached: str = ""
    audit_id: str = ""
    interim: bool = False
    decided: bool = False
    why: str = ""
    again: tuple[str, ...] = ()
    stay: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()

    def written(self, home: Home, **changes: Any) -> Journal:
        """Change it on the disk; returns the changed one."""
        journal = replace(self, **changes)
        write_json_durably(path_of(home, journal.run_id), asdict(journal))
        return journal

    def folder(self, home: Home) -> Path:
        """Where a run keeps what is open only while it works; removed with the journal."""
        return path_of(home, self.run_id).with_suffix("")

    def close(self, home: Home) -> None:
        """Remove it: everything it speaks of has happened."""
        path_of(home, self.run_id).unlink(missing_ok=True)
        sync_folder(home.unlearning)


def path_of(home: Home, run_id: str) -> Path:
    """File of a journal."""
    return home.unlearning / f"{run_id}.json"


def journals(home: Home) -> Iterator[Journal]:
    """Read the journals of what did not end.

    Raises
    ------
    IntegrityError
        One is damaged.
    """
    if not home.unlearning.is_dir():
        return
    for path in sorted(home.unlearning.glob("*.json")):
        data = read_json(path)
        try:
            lists = {k: tuple(data[k]) for k in ("requests", "retire")}
            added = {k: tuple(data.get(k, ())) for k in ("again", "stay", "exact")}
            yield Journal(**{**data, **lists, **added})
        except (KeyError, TypeError) as error:
            raise IntegrityError(
                f"{path.name}: the journal is damaged ({error}). Look into HOME/unlearning: the "
                "versions and requests it spoke of must be checked by a person."
            ) from error
