-- A condition on the day was tried on the names of all tables first, and failed on those that end otherwise. CASE
-- keeps what is no day from being read as one.
CREATE OR REPLACE VIEW koji_relay.history_day AS
    SELECT CASE WHEN c.relname ~ '_[0-9]{8}$' THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day,
        sum(pg_total_relation_size(c.oid))::bigint AS bytes
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent IN ('koji_relay.history_message'::regclass, 'koji_relay.history_step'::regclass)
        AND c.relname ~ '_[0-9]{8}$'
    GROUP BY 1;
