-- What became of every message. Both tables are partitioned by day (UTC), so that old days go whole.
-- Nothing in them is changed: what happens to a message later is a step of its own.

-- One row for each message when it has been handed over, with what became of it at once; and one for each
-- event that makes no message, without content.
CREATE TABLE koji_relay.history_message (
    at         timestamptz NOT NULL,            -- handed over: AMQP creation-time
    settled    timestamptz NOT NULL,            -- when it met its first fate
    message_id uuid        NOT NULL,
    commit     uuid,
    event      integer     NOT NULL,
    size       integer     NOT NULL,            -- of the body
    task       bigint      NOT NULL DEFAULT 0,
    fate       text        NOT NULL,            -- the first; steps may follow
    via        text        NOT NULL,
    callback   text        NOT NULL,
    address    text        COLLATE "C" NOT NULL,
    package    text        COLLATE "C" NOT NULL,
    build      text        COLLATE "C" NOT NULL, -- NAME-VERSION-RELEASE
    tag        text        COLLATE "C" NOT NULL,
    username   text        COLLATE "C" NOT NULL,
    broker     text        NOT NULL,
    reason     text        NOT NULL,
    content    bytea                            -- properties and body, compressed
) PARTITION BY RANGE (at);
ALTER TABLE koji_relay.history_message ALTER COLUMN content SET STORAGE EXTERNAL; -- it is compressed already
CREATE INDEX history_message_id      ON koji_relay.history_message (message_id);
CREATE INDEX history_message_at      ON koji_relay.history_message (at);
CREATE INDEX history_message_address ON koji_relay.history_message (address, at);
CREATE INDEX history_message_package ON koji_relay.history_message (package, at)  WHERE package <> '';
CREATE INDEX history_message_tag     ON koji_relay.history_message (tag, at)      WHERE tag <> '';
CREATE INDEX history_message_user    ON koji_relay.history_message (username, at) WHERE username <> '';
CREATE INDEX history_message_task    ON koji_relay.history_message (task, at)     WHERE task <> 0;
CREATE INDEX history_message_fate    ON koji_relay.history_message (fate, at)     WHERE fate <> 'accepted';

CREATE TABLE koji_relay.history_step (
    at         timestamptz NOT NULL,
    handed     timestamptz NOT NULL,            -- as in history_message.at
    message_id uuid        NOT NULL,
    kind       text        NOT NULL,
    broker     text        NOT NULL,
    reason     text        NOT NULL
) PARTITION BY RANGE (at);
CREATE INDEX history_step_id   ON koji_relay.history_step (message_id);
CREATE INDEX history_step_kind ON koji_relay.history_step (kind, handed)
    WHERE kind IN ('dead', 'expired', 'dropped');

-- Messages whose last step is to be queued. It only says where to look: their steps say what is true.
CREATE TABLE koji_relay.history_open (
    message_id uuid        PRIMARY KEY,
    handed     timestamptz NOT NULL
);
CREATE INDEX history_open_handed ON koji_relay.history_open (handed);

-- The tags and addresses there are, for questions with patterns.
CREATE TABLE koji_relay.history_word (
    kind text NOT NULL,
    word text NOT NULL,
    seen date NOT NULL,                         -- on this day or later
    PRIMARY KEY (kind, word)
);

CREATE TABLE koji_relay.history_gap (
    began    timestamptz NOT NULL,
    ended    timestamptz NOT NULL,
    messages integer     NOT NULL,              -- 0: not known
    reason   text        NOT NULL,
    writer   text        NOT NULL
);

-- The relays that write. One that was alive and did not stop was killed.
CREATE TABLE koji_relay.history_writer (
    name    text        PRIMARY KEY,
    alive   timestamptz NOT NULL,
    stopped boolean     NOT NULL
);

-- Replays, with their state as JSON. One relay works on one at a time, for as long as its lease lasts.
CREATE TABLE koji_relay.replay (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    running boolean     NOT NULL,
    holder  text        NOT NULL DEFAULT '',
    lease   timestamptz NOT NULL DEFAULT '-infinity',
    state   jsonb       NOT NULL
);

-- The messages of a replay from a file.
CREATE TABLE koji_relay.replay_line (
    replay  bigint NOT NULL REFERENCES koji_relay.replay ON DELETE CASCADE,
    line    bigint NOT NULL,
    message jsonb  NOT NULL,                    -- without what content has
    content bytea  NOT NULL,
    PRIMARY KEY (replay, line)
);

-- Days are made and dropped by the relay, whose role need not own the schema.
CREATE FUNCTION koji_relay.history_add_day(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    parent text;
    part   text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('koji_relay'), hashtext('history'));
    FOREACH parent IN ARRAY ARRAY['history_message', 'history_step'] LOOP
        part := parent || to_char(day, '_YYYYMMDD');
        IF to_regclass('koji_relay.' || part) IS NULL THEN
            -- Attaching takes a lighter lock on the parent than PARTITION OF.
            EXECUTE format('CREATE TABLE koji_relay.%I (LIKE koji_relay.%I INCLUDING DEFAULTS INCLUDING STORAGE)',
                part, parent);
            EXECUTE format('ALTER TABLE koji_relay.%I ATTACH PARTITION koji_relay.%I FOR VALUES FROM (%L) TO (%L)',
                parent, part, day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION koji_relay.history_drop_day(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS koji_relay.%I', 'history_step' || to_char(day, '_YYYYMMDD'));
    EXECUTE format('DROP TABLE IF EXISTS koji_relay.%I', 'history_message' || to_char(day, '_YYYYMMDD'));
END $$;

REVOKE ALL ON FUNCTION koji_relay.history_add_day(date), koji_relay.history_drop_day(date) FROM PUBLIC;

-- The days there are.
CREATE VIEW koji_relay.history_day AS
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day,
        sum(pg_total_relation_size(c.oid))::bigint AS bytes
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('koji_relay.history_message'::regclass, 'koji_relay.history_step'::regclass)
    GROUP BY 1;

-- Whoever takes events from the outbox is a relay: its role gets what it needs here.
DO $$
DECLARE
    r text;
BEGIN
    FOR r IN
        SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'koji_relay.outbox'::regclass AND a.privilege_type = 'DELETE' AND a.grantee <> c.relowner
    LOOP
        EXECUTE 'GRANT SELECT, INSERT ON koji_relay.history_message, koji_relay.history_step TO ' || r;
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON koji_relay.history_open, koji_relay.history_word,'
            || ' koji_relay.history_gap, koji_relay.history_writer, koji_relay.replay, koji_relay.replay_line TO ' || r;
        EXECUTE 'GRANT SELECT ON koji_relay.history_day TO ' || r;
        EXECUTE 'GRANT EXECUTE ON FUNCTION koji_relay.history_add_day(date), koji_relay.history_drop_day(date) TO ' || r;
    END LOOP;
END $$;
