-- Two conditions that each hold for many messages, and together for few or none: a build and a tag, a user and
-- a tag, a skipped event and its build. Each of three indexes takes in the other columns, so that PostgreSQL
-- compares them there. It read hundreds of thousands of rows of the table for that. With message_id in it, the
-- index of packages gives all that a search for a build needs. Queued messages were in the index of fates for no
-- question.
--
-- A day that is over is written by nobody. Its indexes are built first, so that recording waits for those of
-- today only.
DO $$
DECLARE
    day regclass;
BEGIN
    FOR day IN
        SELECT c.oid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'koji_relay.history_message'::regclass
            AND c.relname < 'history_message' || to_char(now() AT TIME ZONE 'UTC', '_YYYYMMDD')
        ORDER BY c.relname
    LOOP
        EXECUTE format($index$
            CREATE INDEX ON %1$s (package, at, message_id, tag) WHERE package <> '';
            CREATE INDEX ON %1$s (username, at, tag) WHERE username <> '';
            CREATE INDEX ON %1$s (fate, at, package, tag, username) WHERE fate <> 'accepted' AND fate <> 'queued';
            $index$, day);
    END LOOP;
END $$;
-- These take the indexes of the days that have them.
CREATE INDEX history_message_package_tag ON koji_relay.history_message (package, at, message_id, tag)
    WHERE package <> '';
CREATE INDEX history_message_user_tag ON koji_relay.history_message (username, at, tag) WHERE username <> '';
CREATE INDEX history_message_fate_what ON koji_relay.history_message (fate, at, package, tag, username)
    WHERE fate <> 'accepted' AND fate <> 'queued';
DROP INDEX koji_relay.history_message_package, koji_relay.history_message_user, koji_relay.history_message_fate;
