"""Studies that a request about a patient goes on covering, whatever number they get."""

from segunlearn.records.migrations.m0004_ledger import _guards_postgresql, _guards_sqlite

NAME = "studies of marked patients"

STATEMENTS = {
    "all": (
        """
        CREATE TABLE forget_study (
            request_seq $INT NOT NULL REFERENCES forget_request (seq),
            study TEXT NOT NULL,
            added TEXT NOT NULL,
            PRIMARY KEY (request_seq, study)
        ) $STRICT_KEYED
        """,
        "CREATE INDEX forget_study_by_study ON forget_study (study)",
        # What is known of the requests that are there: what runs recorded of these patients.
        """
        INSERT INTO forget_study (request_seq, study, added)
        SELECT DISTINCT r.seq, c.study, r.created
        FROM forget_request r JOIN ledger_case c ON c.person_id = r.target_id
        WHERE r.target_kind = 'patient' AND c.study <> ''
        AND (c.person_issuer = r.issuer OR c.person_issuer = '' OR r.issuer = '')
        """,
    ),
    "sqlite": _guards_sqlite("forget_study"),
    "postgresql": _guards_postgresql("forget_study"),
}
