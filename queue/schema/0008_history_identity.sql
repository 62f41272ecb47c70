-- Rows that are deleted can be told apart. Without that PostgreSQL refuses to delete them where a publication has
-- all tables, and then nothing of the history was tidied up.
ALTER TABLE koji_relay.history_gap REPLICA IDENTITY FULL;
