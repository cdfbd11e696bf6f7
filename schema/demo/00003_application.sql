-- A role with the rights of the demo's application: its own tables, and what every
-- writer of events has. It changes grades and never touches sync_events itself.

-- +goose Up
-- +goose StatementBegin
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'syncrelay_demo') THEN
    BEGIN
      CREATE ROLE syncrelay_demo NOLOGIN;
    EXCEPTION
      -- Roles are the whole server's: another database's migrate may be quicker.
      WHEN duplicate_object OR unique_violation THEN NULL;
      WHEN insufficient_privilege THEN
        RAISE WARNING 'role syncrelay_demo is missing and % may not create roles', current_user
          USING HINT = 'write the demo''s traffic as the database''s owner';
        RETURN;
    END;
  END IF;
  BEGIN
    GRANT syncrelay_writer TO syncrelay_demo;
  EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    RAISE WARNING 'role syncrelay_demo may not write events, because % may not grant syncrelay_writer', current_user
      USING HINT = 'GRANT syncrelay_writer TO syncrelay_demo';
  END;
  GRANT USAGE ON SCHEMA demo TO syncrelay_demo;
  GRANT SELECT ON demo.cadets, demo.users TO syncrelay_demo;
  GRANT SELECT, INSERT, UPDATE, DELETE ON demo.merits, demo.attendance, demo.exam_scores TO syncrelay_demo;
END
$$;
-- +goose StatementEnd
