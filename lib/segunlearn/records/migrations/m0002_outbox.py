"""Documents that wait for the PACS, and what was seen there."""

NAME = "outbox"

STATEMENTS = {
    "all": (
        """
        CREATE TABLE outbox (
            seq $ID,
            lane TEXT NOT NULL,
            document_uid TEXT NOT NULL UNIQUE,
            request_id TEXT NOT NULL,
            payload TEXT NOT NULL,
            created TEXT NOT NULL,
            attempts $INT NOT NULL,
            due TEXT NOT NULL,
            claimed_until TEXT,
            last_error TEXT NOT NULL,
            sent TEXT
        ) $STRICT
        """,
        "CREATE INDEX outbox_waiting ON outbox (seq) WHERE sent IS NULL",
        "CREATE INDEX outbox_waiting_by_lane ON outbox (lane, seq) WHERE sent IS NULL",
        "CREATE INDEX outbox_by_request ON outbox (request_id)",
        """
        CREATE TABLE pacs_seen (
            kind TEXT NOT NULL,
            uid TEXT NOT NULL,
            note TEXT NOT NULL,
            time TEXT NOT NULL,
            PRIMARY KEY (kind, uid)
        ) $STRICT_KEYED
        """,
    )
}
