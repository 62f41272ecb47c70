-- A build is looked for by itself. By the index of its package all messages of the package would be read: seconds
-- where a package has hundreds of thousands.
CREATE INDEX history_message_build ON koji_relay.history_message (build, at) WHERE build <> '';
