-- Why the hub's plugin could not hand an event over by the socket; null where it did not try. The plugin says it
-- by a setting of its transaction, so that it need not know whether this column is there.
ALTER TABLE koji_relay.outbox ADD COLUMN fallback text;
ALTER TABLE koji_relay.outbox ALTER COLUMN fallback
    SET DEFAULT nullif(pg_catalog.current_setting('koji_relay.fallback', true), '');
