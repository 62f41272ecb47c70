-- Which callbacks make messages, as each relay that reads the outbox says: the hub's plugin drops all others at once. A relay
-- writes its row when it starts, after a reload, and every minute.
CREATE TABLE koji_relay.reader (
    name   text        PRIMARY KEY,           -- of the relay; empty for the one without a name
    events text        NOT NULL,              -- patterns of callback names (Python's fnmatch), between spaces
    seen   timestamptz NOT NULL DEFAULT now() -- when the relay last said so
);

-- Roles that have rights on the outbox get what they need here, so that an upgrade needs no grants by hand: who adds
-- events reads it, who takes them writes it.
DO $$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS name,
            bool_or(a.privilege_type = 'DELETE') AS takes
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'koji_relay.outbox'::regclass AND a.privilege_type IN ('INSERT', 'DELETE') AND a.grantee <> c.relowner
        GROUP BY a.grantee
    LOOP
        EXECUTE 'GRANT SELECT ON koji_relay.reader TO ' || r.name;
        IF r.takes THEN
            EXECUTE 'GRANT INSERT, UPDATE, DELETE ON koji_relay.reader TO ' || r.name;
        END IF;
    END LOOP;
END $$;
