"""Forget requests and their history."""

NAME = "forget set"

STATEMENTS = {
    "all": (
        """
        CREATE TABLE forget_request (
            seq $ID,
            id TEXT NOT NULL UNIQUE,
            target_kind TEXT NOT NULL,
            target_id TEXT NOT NULL,
            issuer TEXT NOT NULL,
            model TEXT NOT NULL,
            study TEXT NOT NULL,
            person_id TEXT NOT NULL,
            person_issuer TEXT NOT NULL,
            reason TEXT NOT NULL,
            note TEXT NOT NULL,
            state TEXT NOT NULL,
            is_open $INT NOT NULL,
            is_live $INT NOT NULL,
            needed TEXT NOT NULL,
            reached TEXT NOT NULL,
            source TEXT NOT NULL,
            marked_by TEXT NOT NULL,
            marked_role TEXT NOT NULL,
            created TEXT NOT NULL,
            updated TEXT NOT NULL
        ) $STRICT
        """,
        # One open request for a target: marking twice is the same request, in any two processes.
        "CREATE UNIQUE INDEX forget_request_open "
        "ON forget_request (target_kind, target_id, issuer, model) WHERE is_open = 1",
        "CREATE INDEX forget_request_by_target ON forget_request (target_id)",
        "CREATE INDEX forget_request_by_state ON forget_request (state, seq)",
        "CREATE INDEX forget_request_by_actor ON forget_request (marked_by, seq)",
        "CREATE INDEX forget_request_in_study "
        "ON forget_request (study) WHERE is_live = 1 AND study <> ''",
        """
        CREATE TABLE forget_history (
            seq $ID,
            request_seq $INT NOT NULL REFERENCES forget_request (seq),
            time TEXT NOT NULL,
            actor TEXT NOT NULL,
            role TEXT NOT NULL,
            from_state TEXT NOT NULL,
            to_state TEXT NOT NULL,
            needed TEXT NOT NULL,
            reached TEXT NOT NULL,
            why TEXT NOT NULL
        ) $STRICT
        """,
        "CREATE INDEX forget_history_of ON forget_history (request_seq, seq)",
    ),
    "sqlite": (
        """
        CREATE TRIGGER forget_request_stays BEFORE DELETE ON forget_request
        BEGIN SELECT RAISE(ABORT, 'forget requests are never deleted'); END
        """,
        """
        CREATE TRIGGER forget_request_target_stays
        BEFORE UPDATE OF id, target_kind, target_id, issuer, model, created, marked_by
        ON forget_request
        BEGIN SELECT RAISE(ABORT, 'the target of a forget request never changes'); END
        """,
        """
        CREATE TRIGGER forget_history_stays BEFORE DELETE ON forget_history
        BEGIN SELECT RAISE(ABORT, 'history is only added to'); END
        """,
        """
        CREATE TRIGGER forget_history_same BEFORE UPDATE ON forget_history
        BEGIN SELECT RAISE(ABORT, 'history is only added to'); END
        """,
    ),
    "postgresql": (
        """
        CREATE FUNCTION segunlearn_append_only() RETURNS trigger LANGUAGE plpgsql AS '
        BEGIN
            RAISE EXCEPTION ''%% is only added to'', TG_TABLE_NAME
                USING ERRCODE = ''integrity_constraint_violation'';
        END'
        """,
        """
        CREATE TRIGGER forget_request_stays BEFORE DELETE ON forget_request
        FOR EACH ROW EXECUTE FUNCTION segunlearn_append_only()
        """,
        """
        CREATE TRIGGER forget_request_target_stays
        BEFORE UPDATE OF id, target_kind, target_id, issuer, model, created, marked_by
        ON forget_request FOR EACH ROW EXECUTE FUNCTION segunlearn_append_only()
        """,
        """
        CREATE TRIGGER forget_request_whole BEFORE TRUNCATE ON forget_request
        FOR EACH STATEMENT EXECUTE FUNCTION segunlearn_append_only()
        """,
        """
        CREATE TRIGGER forget_history_stays BEFORE UPDATE OR DELETE ON forget_history
        FOR EACH ROW EXECUTE FUNCTION segunlearn_append_only()
        """,
        """
        CREATE TRIGGER forget_history_whole BEFORE TRUNCATE ON forget_history
        FOR EACH STATEMENT EXECUTE FUNCTION segunlearn_append_only()
        """,
    ),
}
