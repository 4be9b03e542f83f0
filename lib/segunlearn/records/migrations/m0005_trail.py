"""The trail of who did what, chained as the ledger is; tokens of people and programs."""

from segunlearn.records.migrations.m0004_ledger import _guards_postgresql, _guards_sqlite

NAME = "trail"

STATEMENTS = {
    "all": (
        """
        CREATE TABLE trail (
            seq $INT NOT NULL PRIMARY KEY,
            time TEXT NOT NULL,
            action TEXT NOT NULL,
            actor TEXT NOT NULL,
            body TEXT NOT NULL,
            digest TEXT NOT NULL UNIQUE
        ) $STRICT
        """,
        "CREATE INDEX trail_by_action ON trail (action, seq)",
        "CREATE INDEX trail_by_actor ON trail (actor, seq)",
        """
        CREATE TABLE trail_head (
            id $INT NOT NULL PRIMARY KEY CHECK (id = 1),
            rows $INT NOT NULL,
            digest TEXT NOT NULL
        ) $STRICT
        """,
        f"INSERT INTO trail_head VALUES (1, 0, '{'0' * 64}')",
        """
        CREATE TABLE access_token (
            id TEXT NOT NULL PRIMARY KEY,
            digest TEXT NOT NULL,
            name TEXT NOT NULL,
            role TEXT NOT NULL,
            created TEXT NOT NULL,
            expires TEXT NOT NULL,
            revoked TEXT NOT NULL
        ) $STRICT
        """,
    ),
    "sqlite": _guards_sqlite("trail"),
    "postgresql": _guards_postgresql("trail"),
}
