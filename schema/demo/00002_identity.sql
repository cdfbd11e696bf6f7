-- What the relay reads of the demo's users with auth.identity: database, and no
-- more than that.

-- +goose Up
-- +goose StatementBegin
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'syncrelay_relay') THEN
    GRANT USAGE ON SCHEMA demo TO syncrelay_relay;
    GRANT SELECT (id, role, cadet_id, is_approved) ON demo.users TO syncrelay_relay;
  END IF;
END
$$;
-- +goose StatementEnd
