"""No statement of daily work reads a growing table from end to end (SQLite tells its plan)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from records_entries import digest, ledger_entry
from segunlearn.cases import Case
from segunlearn.records.forget_set import ForgetSet
from segunlearn.records.ledger import Ledger
from segunlearn.records.outbox import Outbox
from segunlearn.records.runs import Progress, Runs
from segunlearn.records.store import Store, open_store

#: Small for ever, or read in the order of its key and stopped by a LIMIT.
ALLOWED = ("ledger_head", "json_each", "VIRTUAL TABLE")

#: Read from where the last reading ended, or from the last full block.
BOUNDED = (" WHERE seq >= ", " WHERE id >= ", "WHERE ledger_set.id >= ")


def scans(store: Store, statements: list[tuple[str, Any]]) -> list[str]:
    """Statements that read all of a table, with the table."""
    found = []
    with store.read() as connection:
        for statement, parameters in dict(statements).items():
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            for step in plan.scalars(3):
                limited = "LIMIT" in statement and "USE TEMP B-TREE" not in step
                whole = step.startswith("SCAN") or "(rowid<?)" in step or "(rowid>?)" in step
                if whole and not limited and not any(a in step for a in ALLOWED):
                    found.append(f"{step}: {statement}")
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def recorded(store: Store) -> list[tuple[str, Any]]:
    """Do a day's work, and note what was asked of the database."""
    statements: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE")):
            single = parameters[0] if isinstance(parameters, list) else parameters
            statements.append((statement, single))

    event.listen(store._engine, "before_cursor_execute", note)
    forget_set, ledger = ForgetSet(store), Ledger(store)
    request, _ = forget_set.mark("series", "1.2", "quality", actor="a", study="1", person="P")
    patient, _ = forget_set.mark("patient", "P", "quality", actor="a", studies=["1.2"])
    forget_set.keep_studies(patient.request_id, ["1.3"])
    forget_set.status(studies=["1"], series=["1.2"])
    forget_set.exclude([Case("1.2", "1.2", "P", Path("x"))])
    forget_set.approve(request.request_id, actor="x")
    forget_set.history(request.request_id)
    for states in ([], ["requested"]):
        forget_set.list(states=states)
    forget_set.list(target_id="1.2")
    forget_set.list(marked_by="a")
    for i in range(1, 4):
        cases = [("1.1", "1", "A", "train")]
        ledger.append(ledger_entry(i, cases=cases, version=f"v{i}", parent=f"v{i - 1}"))
    for target in ({"study": "1"}, {"series": "1.1"}, {"person": "A"}):
        ledger.versions_that_saw(**target)
    ledger.studies_of(digest("v2"))
    ledger.row("run-1")
    ledger.rows()
    ledger.rows(model="segmentation", kind="train")
    ledger.cases_of("run-1")
    runs = Runs(store)
    run_id = runs.start("train", "segmentation", {})
    runs.update(run_id, Progress("train", 1, 2))
    runs.cancelled(run_id)
    runs.latest(model="segmentation", kind="train")
    runs.events(run_id, after=1)
    runs.finish(run_id, "done")
    Outbox(store).claim()
    event.remove(store._engine, "before_cursor_execute", note)
    return statements


def test_nothing_reads_a_growing_table_as_a_whole(store: Store) -> None:
    found = scans(store, recorded(store))
    assert [s for s in found if not any(b in s for b in BOUNDED)] == []
    store.close()


def test_the_check_itself_can_fail(store: Store) -> None:
    statements = recorded(store)
    with store.write() as connection:
        connection.exec_driver_sql("DROP INDEX ledger_node_by_parent")
        connection.exec_driver_sql("DROP INDEX forget_request_in_study")
    found = " ".join(scans(store, statements))
    assert "ledger_node" in found
    assert "forget_request" in found
    store.close()
