-- The outbox is a log with named readers. Each row of koji_relay.reader is a reader, and an event goes when each has
-- taken it. Where there is one reader only, events are deleted at once, and this table stays empty.
CREATE TABLE koji_relay.outbox_taken (
    id     bigint NOT NULL,                   -- outbox.id
    reader text   NOT NULL,                   -- reader.name
    commit uuid   NOT NULL,                   -- outbox.commit: after a crash the server may give an id again
    PRIMARY KEY (id, reader)
);

-- A relay from before this step deletes what it took. Its deletion is held here as long as another reader needs the
-- event. Relays since then count the readers themselves, and say so in their sessions.
CREATE FUNCTION koji_relay.outbox_hold() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM koji_relay.reader r WHERE r.name <> '' AND r.name <> ALL (ARRAY(
            SELECT t.reader FROM koji_relay.outbox_taken t WHERE t.id = OLD.id AND t.commit = OLD.commit))) THEN
        INSERT INTO koji_relay.outbox_taken (id, reader, commit) VALUES (OLD.id, '', OLD.commit)
        ON CONFLICT (id, reader) DO UPDATE SET commit = excluded.commit;
        RETURN NULL;
    END IF;
    DELETE FROM koji_relay.outbox_taken t WHERE t.id = OLD.id;
    RETURN OLD;
END $$;
CREATE TRIGGER outbox_hold BEFORE DELETE ON koji_relay.outbox FOR EACH ROW
    WHEN (pg_catalog.current_setting('koji_relay.counts_readers', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION koji_relay.outbox_hold();

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
        EXECUTE 'GRANT SELECT, INSERT, UPDATE, DELETE ON koji_relay.outbox_taken TO ' || r;
    END LOOP;
END $$;
