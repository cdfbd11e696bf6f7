-- What tells a crash of the server, or a change of the publication, from their
-- absence. outbox/README.md explains it.

-- +goose Up
ALTER TABLE syncrelay.state ADD COLUMN resend pg_lsn NOT NULL DEFAULT '0/0';
COMMENT ON COLUMN syncrelay.state.resend IS 'Up to here the slot sends again what a crash may have taken from the journal; it has come when confirmed has passed this.';

ALTER TABLE syncrelay.state ADD COLUMN publication text NOT NULL DEFAULT '';
COMMENT ON COLUMN syncrelay.state.publication IS 'Changes when what is published does, even if it is as before again.';

-- Unlogged, because recovery from a crash empties such a table: a server that
-- begins anew after one of its processes was killed keeps its start time.
CREATE UNLOGGED TABLE syncrelay.incarnation (started_at timestamptz NOT NULL);
COMMENT ON TABLE syncrelay.incarnation IS 'When the server was started or recovered; empty after each crash.';

-- +goose Down
DROP TABLE syncrelay.incarnation;
ALTER TABLE syncrelay.state DROP COLUMN resend, DROP COLUMN publication;
