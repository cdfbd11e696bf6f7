-- The writer functions. They run with the caller's rights and need nothing but
-- INSERT on the table and SELECT on its id. They stand in the table's schema,
-- and name the table with it, so that no search_path leads them elsewhere.

-- +goose Up
-- +goose StatementBegin
DO $do$
DECLARE
  home    text;
  outbox  text;
  about   record;
BEGIN
  SELECT quote_ident(n.nspname), quote_ident(n.nspname) || '.' || quote_ident(c.relname) INTO home, outbox
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'sync_events'::regclass;

  EXECUTE format($f$
    CREATE OR REPLACE FUNCTION %1$s.broadcast_sync_event(event_type text, payload jsonb, cadet_id bigint DEFAULT NULL, user_ids bigint[] DEFAULT NULL, roles text[] DEFAULT NULL)
    RETURNS bigint LANGUAGE plpgsql AS $body$
    DECLARE
      new_id bigint;
    BEGIN
      IF coalesce($1, '') IN ('', 'pong', 'error', 'connection_established', 'replay_complete') THEN
        RAISE EXCEPTION 'event_type is %%, which is empty or a word of the protocol itself', coalesce(quote_literal($1), 'NULL')
          USING ERRCODE = 'check_violation', HINT = 'Choose another name, such as grade_update.';
      END IF;
      INSERT INTO %2$s AS e (event_type, payload, cadet_id, user_ids, roles)
      VALUES ($1, coalesce($2, '{}'), $3, $4, $5) RETURNING e.id INTO new_id;
      RETURN new_id;
    END
    $body$ $f$, home, outbox);
  EXECUTE format($f$ COMMENT ON FUNCTION %s.broadcast_sync_event IS 'Writes a sync event of any type; returns the row''s id.' $f$, home);

  FOR about IN
    SELECT * FROM (VALUES ('grade_update',      'grade_data',      'a grade update'),
                          ('attendance_update', 'attendance_data', 'an attendance update'),
                          ('exam_score_update', 'exam_data',       'an exam score update')) v(type, data, words)
  LOOP
    EXECUTE format($f$
      CREATE OR REPLACE FUNCTION %1$s.broadcast_%2$s(cadet_id bigint, %3$s jsonb)
      RETURNS bigint LANGUAGE plpgsql AS $body$
      BEGIN
        IF $1 IS NULL THEN
          RAISE EXCEPTION 'cadet_id is NULL: %4$s is about a cadet' USING ERRCODE = 'null_value_not_allowed';
        END IF;
        RETURN %1$s.broadcast_sync_event('%2$s', $2, $1);
      END
      $body$ $f$, home, about.type, about.data, about.words);
  END LOOP;

  EXECUTE format($f$
    CREATE OR REPLACE FUNCTION %1$s.broadcast_notification(user_id bigint, notification jsonb)
    RETURNS bigint LANGUAGE plpgsql AS $body$
    BEGIN
      IF $1 IS NULL THEN
        RAISE EXCEPTION 'user_id is NULL: a notification is for a user' USING ERRCODE = 'null_value_not_allowed';
      END IF;
      RETURN %1$s.broadcast_sync_event('notification', $2, NULL, ARRAY[$1]);
    END
    $body$ $f$, home);
  EXECUTE format($f$
    CREATE OR REPLACE FUNCTION %1$s.broadcast_message(user_ids bigint[], message jsonb)
    RETURNS bigint LANGUAGE plpgsql AS $body$
    BEGIN
      IF cardinality(array_remove($1, NULL)) IS NULL OR cardinality(array_remove($1, NULL)) = 0 THEN
        RAISE EXCEPTION 'user_ids names nobody: a message is for users'
          USING ERRCODE = 'null_value_not_allowed', HINT = 'For everyone: broadcast_sync_event(''message'', …, roles => ''{*}'').';
      END IF;
      RETURN %1$s.broadcast_sync_event('message', $2, NULL, $1);
    END
    $body$ $f$, home);
END
$do$;
-- +goose StatementEnd
