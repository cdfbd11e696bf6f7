-- The relay's own tables: which row has which event ID, and what the assignment
-- of the next one depends on. outbox/README.md explains them.

-- +goose Up
CREATE TABLE syncrelay.state (
  singleton         boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
  tenure            bigint      NOT NULL DEFAULT 0,
  epoch             text        NOT NULL DEFAULT '',
  epoch_after       bigint      NOT NULL DEFAULT 0,
  last_event_id     bigint      NOT NULL DEFAULT 0,
  high_commit       pg_lsn      NOT NULL DEFAULT '0/0',
  high_ordinal      bigint      NOT NULL DEFAULT 0,
  confirmed         pg_lsn      NOT NULL DEFAULT '0/0',
  floors            jsonb       NOT NULL DEFAULT '[]',
  system_id         text        NOT NULL DEFAULT '',
  timeline          integer     NOT NULL DEFAULT 0,
  server_started_at timestamptz,
  slot              text        NOT NULL DEFAULT '',
  backlog           boolean     NOT NULL DEFAULT false,
  clean             boolean     NOT NULL DEFAULT false,
  deleted_event_id  bigint      NOT NULL DEFAULT 0
) WITH (
  -- One row, updated with every batch of events: room on the page keeps its
  -- versions in place, and vacuum comes when some hundreds have gathered.
  fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0
);
INSERT INTO syncrelay.state DEFAULT VALUES;
COMMENT ON TABLE syncrelay.state IS 'One row: what the assignment of the next event ID depends on.';
COMMENT ON COLUMN syncrelay.state.tenure IS 'The number of the present owner; a write of an earlier one changes nothing.';
COMMENT ON COLUMN syncrelay.state.epoch IS 'Changes when earlier event IDs can no longer be compared.';
COMMENT ON COLUMN syncrelay.state.epoch_after IS 'The last event ID of the epochs before.';
COMMENT ON COLUMN syncrelay.state.high_commit IS 'The commit record of the newest journaled row, and high_ordinal the row''s place in its transaction.';
COMMENT ON COLUMN syncrelay.state.confirmed IS 'The position up to which the slot may have been confirmed.';
COMMENT ON COLUMN syncrelay.state.floors IS 'What committed at or after Since is numbered above ID.';
COMMENT ON COLUMN syncrelay.state.server_started_at IS 'The start of the server that the floors know.';
COMMENT ON COLUMN syncrelay.state.backlog IS 'The reading of a backlog has begun and is not through.';
COMMENT ON COLUMN syncrelay.state.clean IS 'The last owner ended with everything on disk.';
COMMENT ON COLUMN syncrelay.state.deleted_event_id IS 'The newest event ID that retention has deleted.';

CREATE TABLE syncrelay.journal (
  event_id   bigint      PRIMARY KEY,
  row_id     bigint      NOT NULL,
  created_at timestamptz NOT NULL,
  cadet_id   bigint,
  staff      boolean     NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX journal_cadet ON syncrelay.journal (cadet_id, event_id) WHERE cadet_id IS NOT NULL;
CREATE INDEX journal_created_at ON syncrelay.journal USING brin (created_at) WITH (autosummarize = on);
COMMENT ON TABLE syncrelay.journal IS 'Which row of sync_events has which event ID; kept as long as the row.';
COMMENT ON COLUMN syncrelay.journal.staff IS 'The staff roles may see the event.';

CREATE TABLE syncrelay.journal_audience (
  audience text   NOT NULL,
  event_id bigint NOT NULL,
  PRIMARY KEY (audience, event_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.02);
CREATE INDEX journal_audience_event ON syncrelay.journal_audience USING brin (event_id) WITH (autosummarize = on);
COMMENT ON TABLE syncrelay.journal_audience IS 'The users'' and roles'' groups that an event is for: user_5, role_admin, role_*.';
