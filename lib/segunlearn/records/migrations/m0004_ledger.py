"""The ledger: rows, case lists, cases; and what is derived from them to answer fast."""

NAME = "ledger"

#: Only added to; triggers refuse everything else.
_KEPT = ("ledger_row", "ledger_set", "ledger_case")


def _guards_sqlite(table: str) -> tuple[str, ...]:
    return tuple(
        f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is only added to'); END"
        for action in ("UPDATE", "DELETE")
    )


def _guards_postgresql(table: str) -> tuple[str, ...]:
    call = "EXECUTE FUNCTION segunlearn_append_only()"  # made with the forget set
    return (
        f"CREATE TRIGGER {table}_stays BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {call}",
        f"CREATE TRIGGER {table}_whole BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {call}",
    )


STATEMENTS = {
    "all": (
        """
        CREATE TABLE ledger_case (
            id $INT NOT NULL PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            series TEXT NOT NULL,
            study TEXT NOT NULL,
            person_id TEXT NOT NULL,
            person_issuer TEXT NOT NULL,
            role TEXT NOT NULL,
            image_digest TEXT NOT NULL,
            label_digest TEXT NOT NULL
        ) $STRICT
        """,
        "CREATE INDEX ledger_case_by_series ON ledger_case (series)",
        "CREATE INDEX ledger_case_by_study ON ledger_case (study)",
        "CREATE INDEX ledger_case_by_person ON ledger_case (person_id)",
        """
        CREATE TABLE ledger_set (
            id $INT NOT NULL PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            size $INT NOT NULL,
            members $BYTES NOT NULL
        ) $STRICT
        """,
        """
        CREATE TABLE ledger_row (
            seq $INT NOT NULL PRIMARY KEY,
            run_id TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            model TEXT NOT NULL,
            version_sha256 TEXT,
            parent_sha256 TEXT,
            set_id $INT NOT NULL REFERENCES ledger_set (id),
            started TEXT NOT NULL,
            ended TEXT NOT NULL,
            outcome TEXT NOT NULL,
            body TEXT NOT NULL,
            digest TEXT NOT NULL UNIQUE
        ) $STRICT
        """,
        "CREATE INDEX ledger_row_by_model ON ledger_row (model, kind, seq)",
        # One row: the chain's end, and how far the derived tables go. Appends lock it.
        """
        CREATE TABLE ledger_head (
            id $INT NOT NULL PRIMARY KEY CHECK (id = 1),
            rows $INT NOT NULL,
            digest TEXT NOT NULL,
            cases $INT NOT NULL,
            sets $INT NOT NULL,
            sealed_blocks $INT NOT NULL
        ) $STRICT
        """,
        f"INSERT INTO ledger_head VALUES (1, 0, '{'0' * 64}', 0, 0, 0)",
        # Derived, and made again by Ledger.rebuild_index():
        """
        CREATE TABLE ledger_node (
            seq $INT NOT NULL PRIMARY KEY,
            version_sha256 TEXT NOT NULL,
            parent_sha256 TEXT NOT NULL,
            set_id $INT NOT NULL,
            parent_seq $INT NOT NULL,
            twin_seq $INT NOT NULL,
            hops $INT NOT NULL
        ) $STRICT
        """,
        "CREATE INDEX ledger_node_by_version ON ledger_node (version_sha256)",
        "CREATE INDEX ledger_node_by_parent ON ledger_node (parent_sha256, seq)",
        """
        CREATE TABLE ledger_posting (
            case_id $INT NOT NULL,
            block $INT NOT NULL,
            sets $BYTES NOT NULL,
            PRIMARY KEY (case_id, block)
        ) $STRICT_KEYED
        """,
        """
        CREATE TABLE ledger_lineage (
            seq $INT NOT NULL PRIMARY KEY,
            members $BYTES NOT NULL
        ) $STRICT
        """,
    ),
    "sqlite": tuple(s for table in _KEPT for s in _guards_sqlite(table)),
    "postgresql": tuple(s for table in _KEPT for s in _guards_postgresql(table)),
}
