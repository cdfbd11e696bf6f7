-- token_expiring is a word of the protocol as well: the table and the writer
-- functions refuse it like the others.

-- +goose Up
-- +goose StatementBegin
DO $do$
DECLARE
  outbox_oid regclass := 'sync_events'::regclass;
  home       text;
  outbox     text;
  ours       boolean;
BEGIN
  SELECT quote_ident(n.nspname), quote_ident(n.nspname) || '.' || quote_ident(c.relname),
         EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = 'event_type_must_not_be_empty_or_a_word_of_the_protocol')
    INTO home, outbox, ours
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = outbox_oid;

  EXECUTE format($f$
    CREATE OR REPLACE FUNCTION %1$s.broadcast_sync_event(event_type text, payload jsonb, cadet_id bigint DEFAULT NULL, user_ids bigint[] DEFAULT NULL, roles text[] DEFAULT NULL)
    RETURNS bigint LANGUAGE plpgsql AS $body$
    DECLARE
      new_id bigint;
    BEGIN
      IF coalesce($1, '') IN ('', 'pong', 'error', 'connection_established', 'replay_complete', 'token_expiring') THEN
        RAISE EXCEPTION 'event_type is %%, which is empty or a word of the protocol itself', coalesce(quote_literal($1), 'NULL')
          USING ERRCODE = 'check_violation', HINT = 'Choose another name, such as grade_update.';
      END IF;
      INSERT INTO %2$s AS e (event_type, payload, cadet_id, user_ids, roles)
      VALUES ($1, coalesce($2, '{}'), $3, $4, $5) RETURNING e.id INTO new_id;
      RETURN new_id;
    END
    $body$ $f$, home, outbox);

  -- An adopted table refuses nothing that it did not refuse before.
  IF ours THEN
    -- The constraint keeps its name, by which the table is known, and which is
    -- what a writer reads. It is not checked against the rows that are there: they
    -- are not looked through under the lock, and may be of that type.
    PERFORM set_config('lock_timeout', '5s', true);
    EXECUTE format($f$
      ALTER TABLE %s DROP CONSTRAINT event_type_must_not_be_empty_or_a_word_of_the_protocol,
        ADD CONSTRAINT event_type_must_not_be_empty_or_a_word_of_the_protocol
          CHECK (event_type NOT IN ('', 'pong', 'error', 'connection_established', 'replay_complete', 'token_expiring')) NOT VALID $f$, outbox);
    EXECUTE format($f$ COMMENT ON COLUMN %s.event_type IS 'The type that clients see; not empty, pong, error, connection_established, replay_complete or token_expiring.' $f$, outbox);
  END IF;
END
$do$;
-- +goose StatementEnd
