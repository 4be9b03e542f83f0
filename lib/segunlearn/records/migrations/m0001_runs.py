"""Runs of any kind, and the events of their progress."""

NAME = "runs"

STATEMENTS = {
    "all": (
        """
        CREATE TABLE run (
            seq $ID,
            id TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            model TEXT NOT NULL,
            parameters TEXT NOT NULL,
            requested_by TEXT NOT NULL,
            state TEXT NOT NULL,
            message TEXT NOT NULL,
            started TEXT NOT NULL,
            updated TEXT NOT NULL,
            ended TEXT,
            cancel_requested $INT NOT NULL,
            last_event $INT NOT NULL,
            host TEXT NOT NULL,
            boot TEXT NOT NULL,
            pid_space TEXT NOT NULL,
            pid $INT NOT NULL,
            process_start $INT NOT NULL
        ) $STRICT
        """,
        "CREATE INDEX run_by_state ON run (state)",
        "CREATE INDEX run_by_model ON run (model, kind, seq)",
        """
        CREATE TABLE run_event (
            run_id TEXT NOT NULL REFERENCES run (id),
            seq $INT NOT NULL,
            time TEXT NOT NULL,
            state TEXT NOT NULL,
            progress TEXT,
            message TEXT NOT NULL,
            PRIMARY KEY (run_id, seq)
        ) $STRICT_KEYED
        """,
    )
}
