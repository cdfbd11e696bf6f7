-- Partitions made ahead. The relay calls this; a day that nobody has made rows
-- of goes to a partition of its own, and retention later drops it whole.

-- +goose Up
-- +goose StatementBegin
CREATE FUNCTION syncrelay.make_partitions(days_ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
  outbox   regclass := to_regclass('sync_events');
  home     text;
  owner    name;
  today    date := (now() AT TIME ZONE 'UTC')::date;
  day      date;
  name     text;
  made     integer := 0;
BEGIN
  -- Only a table that migrate has made: a scheme of somebody else's is theirs.
  SELECT n.nspname, pg_get_userbyid(c.relowner) INTO home, owner
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_constraint k ON k.conrelid = c.oid AND k.conname = 'event_type_must_not_be_empty_or_a_word_of_the_protocol'
   WHERE c.oid = outbox AND c.relkind = 'p';
  IF home IS NULL THEN
    RETURN 0;
  END IF;
  PERFORM pg_advisory_xact_lock(hashtext('syncrelay.make_partitions'));
  FOR day IN SELECT today + n FROM generate_series(0, days_ahead) n LOOP
    name := 'sync_events_p' || to_char(day, 'YYYYMMDD');
    CONTINUE WHEN to_regclass(format('%I.%I', home, name)) IS NOT NULL;
    BEGIN
      -- Made apart and attached, rather than as a PARTITION OF, because that
      -- would lock all writers out; attaching locks only the default partition,
      -- which is empty but for rows of days that nobody has made ahead.
      EXECUTE format('CREATE TABLE %I.%I (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)', home, name, outbox);
      EXECUTE format('ALTER TABLE %s ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)', outbox, home, name,
        day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
      EXECUTE format('ALTER TABLE %I.%I OWNER TO %I', home, name, owner);
      made := made + 1;
    EXCEPTION WHEN check_violation THEN
      -- The default partition has rows of that day already: they stay there.
      RAISE LOG 'sync_events_default has rows of %, which gets no partition of its own', day;
    END;
  END LOOP;
  RETURN made;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION syncrelay.make_partitions IS 'Makes the daily partitions of sync_events from today to days_ahead days from now (UTC); returns how many were made.';
