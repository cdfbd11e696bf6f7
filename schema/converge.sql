-- What must hold after each migrate, whatever was changed meanwhile: roles,
-- ownership, grants and partitions. Run in one transaction under an advisory
-- lock. A role that may not do something is told so, and what it would have
-- done; it is not stopped.

-- A role for writers, with what the contract says and nothing else.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'syncrelay_writer') THEN
    CREATE ROLE syncrelay_writer NOLOGIN;
  END IF;
EXCEPTION
  -- Roles are the whole server's: another database's migrate may be quicker.
  WHEN duplicate_object OR unique_violation THEN NULL;
  WHEN insufficient_privilege THEN
    RAISE WARNING 'role syncrelay_writer is missing and % may not create roles', current_user
      USING HINT = 'CREATE ROLE syncrelay_writer NOLOGIN, and run syncrelay migrate again';
END
$$;

-- A role for the relay.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'syncrelay_relay') THEN
    BEGIN
      CREATE ROLE syncrelay_relay NOLOGIN REPLICATION;
    EXCEPTION WHEN insufficient_privilege THEN
      CREATE ROLE syncrelay_relay NOLOGIN;
      RAISE WARNING 'role syncrelay_relay was created without REPLICATION, which % may not give', current_user
        USING HINT = 'ALTER ROLE syncrelay_relay REPLICATION';
    END;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN NULL;
  WHEN insufficient_privilege THEN
    RAISE WARNING 'role syncrelay_relay is missing and % may not create roles', current_user
      USING HINT = 'CREATE ROLE syncrelay_relay NOLOGIN REPLICATION, and run syncrelay migrate again';
END
$$;

DO $$
DECLARE
  outbox  regclass := 'sync_events'::regclass;
  home    text;
  ours    boolean;
  member  boolean;
  seq     text;
  part    regclass;
  wanted  text;
BEGIN
  SELECT n.nspname, EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = 'event_type_must_not_be_empty_or_a_word_of_the_protocol')
    INTO home, ours
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = outbox;

  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'syncrelay_writer') THEN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO syncrelay_writer', home);
    EXECUTE format('GRANT INSERT, SELECT (id) ON %s TO syncrelay_writer', outbox);
    seq := pg_get_serial_sequence(outbox::text, 'id');
    -- An identity column needs nothing more; a serial one does.
    IF seq IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = outbox AND attname = 'id' AND attidentity <> '') THEN
      EXECUTE format('GRANT USAGE ON SEQUENCE %s TO syncrelay_writer', seq);
    END IF;
  END IF;

  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'syncrelay_relay') THEN
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO syncrelay_relay', home);
    GRANT USAGE ON SCHEMA syncrelay TO syncrelay_relay;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA syncrelay TO syncrelay_relay;
    -- CREATE on the database is what making a publication again needs.
    EXECUTE format('GRANT CREATE ON DATABASE %I TO syncrelay_relay', current_database());
    BEGIN
      GRANT pg_read_all_stats TO syncrelay_relay;
    EXCEPTION WHEN insufficient_privilege THEN NULL; -- who owns the slot is told less well then
    END;
    EXECUTE format('GRANT SELECT, DELETE ON %s TO syncrelay_relay', outbox);
    -- A policy would not do: a restrictive one may stand beside it. The attribute
    -- is the whole server's, so it is not given without being asked for.
    IF (SELECT relrowsecurity FROM pg_class WHERE oid = outbox)
       AND NOT (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = 'syncrelay_relay')
       AND (SELECT relforcerowsecurity OR NOT pg_has_role('syncrelay_relay', relowner, 'USAGE') FROM pg_class WHERE oid = outbox) THEN
      RAISE WARNING 'row security of table % would hide rows from syncrelay_relay, which does not serve then', outbox
        USING HINT = 'ALTER ROLE syncrelay_relay BYPASSRLS';
    END IF;
    IF ours THEN
      -- Detaching and dropping a day's partition needs the ownership.
      member := pg_has_role(current_user, 'syncrelay_relay', 'MEMBER');
      IF NOT member THEN
        BEGIN
          EXECUTE format('GRANT syncrelay_relay TO %I', current_user);
          member := true;
        EXCEPTION WHEN insufficient_privilege THEN
          RAISE WARNING 'table % stays %''s, because % is no member of syncrelay_relay: the relay will delete old rows instead of dropping partitions', outbox, current_user, current_user
            USING HINT = format('GRANT syncrelay_relay TO %I, and run syncrelay migrate again', current_user);
        END;
      END IF;
      IF member THEN
        -- The change needs a lock against all writers, so it is made only where
        -- it is needed, and given up when a long transaction is in the way:
        -- all other writers would wait behind it.
        PERFORM set_config('lock_timeout', '5s', true);
        FOR part IN SELECT relid FROM pg_partition_tree(outbox) t JOIN pg_class c ON c.oid = t.relid
                     WHERE c.relowner <> 'syncrelay_relay'::regrole LOOP
          EXECUTE format('ALTER TABLE %s OWNER TO syncrelay_relay', part);
        END LOOP;
        PERFORM set_config('lock_timeout', '0', true);
      END IF;
    END IF;
  END IF;
  -- A payload must not become larger than can be sent when it is written out: a
  -- kilobyte of numerics can be a gigabyte of digits. The writer's own statement
  -- fails then, rather than the relay. Only what may be so is written out to be
  -- measured: 2,000 bytes that are not compressed hold too few numbers. On an
  -- insert of a small row this costs 4 %, writing out each payload 75 %.
  IF ours AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = outbox AND conname = 'payload_must_not_be_larger_than_256_MiB_as_text') THEN
    wanted := format('ALTER TABLE %s ADD CONSTRAINT "payload_must_not_be_larger_than_256_MiB_as_text" CHECK (
      pg_column_size(payload) < 2000 AND pg_column_compression(payload) IS NULL OR octet_length(payload::text) <= 268435456) NOT VALID', outbox);
    BEGIN
      PERFORM set_config('lock_timeout', '5s', true);
      EXECUTE wanted;
      PERFORM set_config('lock_timeout', '0', true);
    EXCEPTION WHEN insufficient_privilege THEN
      RAISE WARNING 'table % does not refuse payloads that are too large to be sent, because it is not %''s', outbox, current_user
        USING HINT = wanted;
    END;
  END IF;
  PERFORM syncrelay.make_partitions(7);
END
$$;
