package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/schema"
)

// patient is a server that is broken in one way after another, and mended each
// time by what doctor prints.
type patient struct {
	testing.TB
	server  *localpg.Server
	environ []string // of a relay on it
}

// fault is one way in which a database can be broken.
type fault struct {
	check string
	state outbox.CheckState
	found string // part of what is found
	mend  string // part of the advice
	// spoil breaks it, as the superuser.
	spoil string
	// do breaks what SQL can't.
	do func(t *testing.T, p *patient)
	// environ and args are added for this fault.
	environ, args []string
	// follow does what the advice says, where that is no SQL. It may return other
	// settings to go on with.
	follow func(t *testing.T, p *patient) (environ []string)
	// tidy puts back what neither the fault nor the advice did.
	tidy string
}

// admin runs statements as the superuser, each in a transaction of its own.
func (p *patient) admin(database string, statements ...string) {
	p.Helper()
	conn, err := pgx.Connect(p.Context(), p.server.URL(database))
	if err != nil {
		p.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for _, sql := range statements {
		if _, err := conn.Exec(p.Context(), sql); err != nil {
			p.Fatalf("%s: %v", sql, err)
		}
	}
}

func (p *patient) restart() {
	p.Helper()
	if err := p.server.Shutdown(p.Context(), localpg.Fast); err != nil {
		p.Fatal(err)
	}
	if err := p.server.StartAgain(p.Context()); err != nil {
		p.Fatal(err)
	}
}

// hold keeps a session open until the end of the test.
func (p *patient) hold(parameters map[string]string, statements ...string) *pgconn.PgConn {
	p.Helper()
	c, err := pgconn.ParseConfig(p.server.URL("postgres"))
	if err != nil {
		p.Fatal(err)
	}
	c.RuntimeParams = parameters
	conn, err := pgconn.ConnectConfig(p.Context(), c)
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, sql := range statements {
		if _, err := conn.Exec(p.Context(), sql).ReadAll(); err != nil {
			p.Fatalf("%s: %v", sql, err)
		}
	}
	return conn
}

func (p *patient) migrate(database string) {
	p.Helper()
	if _, err := schema.Migrate(p.Context(), p.server.URL(database), schema.Options{}); err != nil {
		p.Fatal(err)
	}
}

// find is a check of a report.
func find(r report, name string) (found outbox.Check) {
	for _, c := range r.Checks {
		if c.Name == name && (found.Name == "" || c.State != outbox.CheckOK) {
			found = c
		}
	}
	return found
}

// as is the relay's URL of another database.
func (p *patient) as(role, database string) string {
	return "SYNCRELAY_DATABASE_URL=" + p.server.URLAs(role, "", database)
}

var faults = []fault{
	{check: "wal_level", state: outbox.CheckFails, found: "wal_level is replica", mend: "ALTER SYSTEM SET wal_level = logical, and restart Postgres"}, // as the server came
	{check: "max_slot_wal_keep_size", state: outbox.CheckWarning, found: "is -1", mend: "ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'",
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM RESET max_slot_wal_keep_size`, `SELECT pg_reload_conf()`)
		}},
	{check: "max_slot_wal_keep_size", state: outbox.CheckWarning, found: "is 512.0 MiB, not more than database.wal_warning (1.0 GiB)", mend: "ALTER SYSTEM",
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM SET max_slot_wal_keep_size = '512MB'`, `SELECT pg_reload_conf()`)
		}},
	{check: "replication_slots", state: outbox.CheckFails, found: `all 1 replication slots are in use (max_replication_slots), and slot "syncrelay" is none of them`, mend: "of those not in use now: other",
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM SET max_replication_slots = 1`)
			p.restart()
			p.admin("postgres", `SELECT pg_create_physical_replication_slot('other')`)
		}, tidy: `SELECT pg_drop_replication_slot('other')`},
	{check: "wal_senders", state: outbox.CheckFails, found: "all 1 senders are in use", mend: "ALTER SYSTEM SET max_wal_senders = 6, and restart",
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM SET max_wal_senders = 1`)
			p.restart()
			p.hold(map[string]string{"replication": "database"})
		}},
	{check: "connections", state: outbox.CheckWarning, found: "of 7 connections are in use", mend: "ALTER SYSTEM SET max_connections = 57",
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM SET max_connections = 10`)
			p.restart()
		}},
	{check: "connections", state: outbox.CheckWarning, found: "may have 5 connections", mend: `ALTER ROLE "syncrelay_relay" CONNECTION LIMIT -1`, spoil: `ALTER ROLE syncrelay_relay CONNECTION LIMIT 5`},
	{check: "primary", state: outbox.CheckFails, found: "is a standby", mend: "name the primary in database.url",
		do: func(t *testing.T, p *patient) {
			if err := p.server.Shutdown(t.Context(), localpg.Fast); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(p.server.DataDir(), "standby.signal"), nil, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(p.server.DataDir(), "standby.signal"), 0o666); err != nil {
				t.Fatal(err)
			}
			if err := p.server.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		follow: func(_ *testing.T, p *patient) []string { p.admin("postgres", `SELECT pg_promote()`); return nil }},
	{check: "replication_right", state: outbox.CheckFails, found: "has no REPLICATION", mend: `ALTER ROLE "syncrelay_relay" REPLICATION`, spoil: `ALTER ROLE syncrelay_relay NOREPLICATION`},
	{check: "database", state: outbox.CheckFails, found: "not permitted to log in", mend: `ALTER ROLE "syncrelay_relay" LOGIN`, spoil: `ALTER ROLE syncrelay_relay NOLOGIN`,
		follow: func(_ *testing.T, p *patient) []string {
			p.admin("postgres", `ALTER ROLE "syncrelay_relay" LOGIN`)
			return nil
		}},
	{check: "database", state: outbox.CheckFails, found: `database "nowhere" does not exist`, mend: `CREATE DATABASE "nowhere"`, environ: []string{"nowhere"},
		follow: func(_ *testing.T, p *patient) []string {
			p.admin("postgres", `CREATE DATABASE "nowhere"`)
			p.migrate("nowhere")
			return []string{"nowhere"}
		}},
	{check: "schema", state: outbox.CheckFails, found: "database empty has none", mend: "run syncrelay migrate", spoil: `CREATE DATABASE empty`, environ: []string{"empty"},
		follow: func(_ *testing.T, p *patient) []string { p.migrate("empty"); return []string{"empty"} }},
	{check: "schema", state: outbox.CheckFails, found: "this program needs", mend: "run syncrelay migrate",
		spoil:  `DROP TABLE syncrelay.incarnation; ALTER TABLE syncrelay.state DROP COLUMN resend, DROP COLUMN publication; DELETE FROM syncrelay.schema_version WHERE version_id >= 5`,
		follow: func(_ *testing.T, p *patient) []string { p.migrate("postgres"); return nil }},
	{check: "journal_rights", state: outbox.CheckFails, found: "lacks USAGE on schema syncrelay", mend: "GRANT USAGE ON SCHEMA syncrelay", spoil: `REVOKE USAGE ON SCHEMA syncrelay FROM syncrelay_relay`},
	{check: "journal_rights", state: outbox.CheckFails, found: "UPDATE on syncrelay.state", mend: "GRANT", spoil: `REVOKE UPDATE, INSERT ON ALL TABLES IN SCHEMA syncrelay FROM syncrelay_relay`},
	{check: "journal_state", state: outbox.CheckFails, found: "has lost its row", mend: "INSERT INTO syncrelay.state", spoil: `DELETE FROM syncrelay.state`},
	{check: "table", state: outbox.CheckFails, found: "it has no column roles", mend: "ADD COLUMN roles text[]", spoil: `ALTER TABLE sync_events DROP COLUMN roles`},
	{check: "table", state: outbox.CheckFails, found: "column cadet_id is of type text", mend: "ALTER COLUMN cadet_id TYPE bigint", spoil: `ALTER TABLE sync_events ALTER COLUMN cadet_id TYPE text`},
	{check: "table", state: outbox.CheckFails, found: "in schema apps, which role syncrelay_relay may not use", mend: "GRANT USAGE ON SCHEMA", spoil: `CREATE SCHEMA apps; ALTER TABLE sync_events SET SCHEMA apps`,
		tidy: `ALTER ROLE syncrelay_relay IN DATABASE postgres RESET search_path; ALTER TABLE apps.sync_events SET SCHEMA public; DROP TABLE IF EXISTS apps.sync_events_default; DROP SCHEMA apps CASCADE`},
	{check: "table_rights", state: outbox.CheckFails, found: "may not read", mend: "GRANT SELECT, DELETE", spoil: `REVOKE SELECT ON sync_events FROM syncrelay_relay`},
	{check: "table_rights", state: outbox.CheckWarning, found: "may not delete", mend: "GRANT SELECT, DELETE", spoil: `REVOKE DELETE ON sync_events FROM syncrelay_relay`},
	{check: "row_security", state: outbox.CheckFails, found: "row security hides rows", mend: `BYPASSRLS`, spoil: `ALTER TABLE sync_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY`,
		tidy: `ALTER TABLE sync_events DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY; ALTER ROLE syncrelay_relay NOBYPASSRLS`},
	{check: "partitions", state: outbox.CheckWarning, found: "no default partition", mend: "PARTITION OF", spoil: `DROP TABLE sync_events_default`},
	{check: "partitions", state: outbox.CheckWarning, found: "no partition for", mend: "SELECT syncrelay.make_partitions(7)",
		spoil: `DO $$ BEGIN EXECUTE 'DROP TABLE sync_events_p' || to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD'); END $$`},
	{check: "partitions", state: outbox.CheckFails, found: "no default partition", mend: "make_partitions",
		spoil: `DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT relid FROM pg_partition_tree('sync_events') WHERE isleaf LOOP EXECUTE 'DROP TABLE ' || p; END LOOP; END $$`},
	{check: "partition_rights", state: outbox.CheckWarning, found: "does not own all partitions", mend: "OWNER TO syncrelay_relay", spoil: `ALTER TABLE sync_events_default OWNER TO postgres; REVOKE CREATE ON SCHEMA public FROM syncrelay_relay`},
	{check: "writers", state: outbox.CheckWarning, found: "may not write rows", mend: "GRANT INSERT, SELECT (id)", spoil: `REVOKE INSERT ON sync_events FROM syncrelay_writer; REVOKE USAGE ON SCHEMA public FROM PUBLIC, syncrelay_writer`},
	{check: "writers", state: outbox.CheckWarning, found: "may not write rows", mend: "GRANT USAGE ON SEQUENCE", environ: []string{"adopted"},
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `CREATE DATABASE adopted`)
			p.admin("adopted", `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type varchar(50) NOT NULL, processed boolean NOT NULL)`)
			p.migrate("adopted")
			p.admin("adopted", `REVOKE USAGE ON SEQUENCE sync_events_id_seq FROM syncrelay_writer`)
		}},
	{check: "publication", state: outbox.CheckFails, found: "the publication is missing (syncrelay), and role syncrelay_relay may not mend that", mend: "CREATE PUBLICATION",
		spoil: `DROP PUBLICATION syncrelay; REVOKE CREATE ON DATABASE postgres FROM syncrelay_relay`, tidy: `GRANT CREATE ON DATABASE postgres TO syncrelay_relay; ALTER PUBLICATION syncrelay OWNER TO syncrelay_relay`},
	{check: "publication", state: outbox.CheckWarning, found: "serve mends that", mend: "CREATE PUBLICATION", spoil: `DROP PUBLICATION syncrelay`, tidy: `ALTER PUBLICATION syncrelay OWNER TO syncrelay_relay`},
	{check: "publication", state: outbox.CheckWarning, found: "does not publish all inserts", mend: "publish = 'insert'", spoil: `ALTER PUBLICATION syncrelay SET (publish = 'update')`},
	{check: "publication", state: outbox.CheckWarning, found: "through its root", mend: "publish_via_partition_root = true", spoil: `ALTER PUBLICATION syncrelay SET (publish_via_partition_root = false)`},
	{check: "publication", state: outbox.CheckWarning, found: "does not publish all inserts", mend: "DROP TABLE", spoil: `ALTER PUBLICATION syncrelay SET TABLE sync_events WHERE (id > 5)`},
	{check: "publication", state: outbox.CheckWarning, found: "publishes big besides", mend: "SET TABLE", spoil: `CREATE TABLE big (); ALTER PUBLICATION syncrelay ADD TABLE big`, tidy: `DROP TABLE big`},
	{check: "publication", state: outbox.CheckWarning, found: "publishes all tables besides", mend: "CREATE PUBLICATION", spoil: `DROP PUBLICATION syncrelay; CREATE PUBLICATION syncrelay FOR ALL TABLES WITH (publish_via_partition_root = true)`},
	{check: "slot", state: outbox.CheckFails, found: `is there already, and is a logical slot of database "postgres" with plugin "test_decoding"`, mend: "set database.slot to another name",
		spoil: `SELECT pg_create_logical_replication_slot('syncrelay', 'test_decoding')`, follow: func(*testing.T, *patient) []string { return []string{"SYNCRELAY_DATABASE_SLOT=another"} },
		tidy: `SELECT pg_drop_replication_slot('syncrelay')`},
	{check: "slot", state: outbox.CheckFails, found: `(application "somebody")`, mend: "SELECT pg_terminate_backend(", spoil: `SELECT pg_create_logical_replication_slot('syncrelay', 'pgoutput')`,
		do: func(t *testing.T, p *patient) {
			conn := p.hold(map[string]string{"replication": "database", "application_name": "somebody"})
			err := pglogrepl.StartReplication(t.Context(), conn, "syncrelay", 0, pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names 'syncrelay'"}})
			if err != nil {
				t.Fatal(err)
			}
		}, tidy: `SELECT pg_drop_replication_slot('syncrelay')`},
	{check: "slot", state: outbox.CheckWarning, found: "is lost", mend: "SELECT pg_drop_replication_slot('syncrelay')", spoil: `SELECT pg_create_logical_replication_slot('syncrelay', 'pgoutput')`,
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`, `SELECT pg_reload_conf()`)
			for range 5 {
				p.admin("postgres", `SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 5)`, `SELECT pg_switch_wal()`, `CHECKPOINT`)
			}
			p.admin("postgres", `ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'`, `SELECT pg_reload_conf()`)
		}},
	{check: "retained_wal", state: outbox.CheckWarning, found: "more than database.wal_warning (1.0 MiB)", mend: "start a relay (syncrelay serve), or give the slot up", environ: []string{"SYNCRELAY_DATABASE_WAL_WARNING=1MiB"},
		spoil: `SELECT pg_create_logical_replication_slot('syncrelay', 'pgoutput'); SELECT pg_logical_emit_message(false, 'x', repeat('x', 3000000))`},
	{check: "durability", state: outbox.CheckWarning, found: "fsync is off", mend: "ALTER SYSTEM SET fsync = on",
		do: func(_ *testing.T, p *patient) {
			p.admin("postgres", `ALTER SYSTEM SET fsync = off`, `SELECT pg_reload_conf()`)
		}},
	{check: "transactions", state: outbox.CheckWarning, found: "(django)", mend: "SELECT pg_terminate_backend(", args: []string{"--long-transaction", "1ms"},
		do: func(_ *testing.T, p *patient) {
			p.hold(map[string]string{"application_name": "django"}, `BEGIN`, `SELECT pg_current_xact_id()`)
		}},
	{check: "transactions", state: outbox.CheckWarning, found: "a prepared one, 'forgotten'", mend: "ROLLBACK PREPARED 'forgotten'", args: []string{"--long-transaction", "1ms"},
		do: func(_ *testing.T, p *patient) {
			p.hold(nil, `BEGIN`, `SELECT pg_current_xact_id()`, `PREPARE TRANSACTION 'forgotten'`)
		}},
	{check: "statistics_right", state: outbox.CheckWarning, found: "may not see the sessions of others", mend: "GRANT pg_read_all_stats", spoil: `REVOKE pg_read_all_stats FROM syncrelay_relay`},
	{check: "identity_query", state: outbox.CheckFails, found: "permission denied for table people", mend: `GRANT SELECT ON what it reads TO "syncrelay_relay"`,
		spoil:   `CREATE TABLE people (id bigint, role text, cadet_id bigint, is_approved boolean)`,
		environ: []string{"SYNCRELAY_AUTH_IDENTITY=database", "SYNCRELAY_AUTH_IDENTITY_QUERY=SELECT * FROM people WHERE id = ANY ($1)"},
		follow: func(_ *testing.T, p *patient) []string {
			p.admin("postgres", `GRANT SELECT ON people TO "syncrelay_relay"`)
			return []string{"SYNCRELAY_AUTH_IDENTITY=database", "SYNCRELAY_AUTH_IDENTITY_QUERY=SELECT * FROM people WHERE id = ANY ($1)"}
		}},
	{check: "identity_query", state: outbox.CheckFails, found: `relation "nobody" does not exist`, mend: "correct it",
		environ: []string{"SYNCRELAY_AUTH_IDENTITY=database", "SYNCRELAY_AUTH_IDENTITY_QUERY=SELECT * FROM nobody WHERE id = ANY ($1)"},
		follow: func(*testing.T, *patient) []string {
			return []string{"SYNCRELAY_AUTH_IDENTITY=database", "SYNCRELAY_AUTH_IDENTITY_QUERY=SELECT * FROM people WHERE id = ANY ($1)"}
		}},
}

// settled makes environment entries of a fault's: a bare name is a database's.
func (p *patient) settled(more []string) []string {
	environ := slices.Clone(p.environ)
	for _, entry := range more {
		if !strings.Contains(entry, "=") {
			entry = p.as("syncrelay_relay", entry)
		}
		environ = append(environ, entry)
	}
	return environ
}

// Whatever is wrong with a database, doctor names it, and doing what it says mends
// it: the statements are run as they are printed.
func TestDoctorNamesEachFaultAndItsAdviceMendsIt(t *testing.T) { //nolint:tparallel // its parts are one after another on one server
	t.Parallel()
	s := pgtest.Own(t, localpg.Options{Settings: map[string]string{
		"wal_level": "", "max_replication_slots": "", "max_wal_senders": "", "max_connections": "", "max_prepared_transactions": "5", "min_wal_size": "32MB",
	}})
	p := &patient{TB: t, server: s}
	p.migrate("postgres")
	p.admin("postgres", `ALTER ROLE syncrelay_relay LOGIN`)
	p.environ = []string{p.as("syncrelay_relay", "postgres"), "SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret,
		"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0", "SYNCRELAY_LIMITS_CONNECTIONS=1000"}
	for _, f := range faults {
		t.Run(f.check+": "+f.found, func(t *testing.T) { p.undergo(t, f) })
	}
	r := examine(t, p.environ)
	for _, c := range r.Checks {
		if c.State != outbox.CheckOK {
			t.Errorf("at the end %s: %s, %s", c.Name, c.State, c.Found)
		}
	}
	serve := launch(t, p.environ, "serve")
	public, _ := serve.addresses()
	serve.ready(public)
	p.admin("postgres", `SELECT broadcast_grade_update(17, '{}')`)
	if sent := follow(t, overSSE, public, staffToken(t), 0).await(t, 1); sent[0].EventID < 1_000_000_000_000_000 {
		t.Errorf("the event is %d: a state that was lost must not make numbers come again", sent[0].EventID)
	}
}

// undergo breaks the server, looks, does what is said, and looks again.
func (p *patient) undergo(t *testing.T, f fault) {
	q := &patient{t, p.server, p.environ} // what is held is let go at the end of the fault
	if f.spoil != "" {
		q.admin("postgres", f.spoil)
	}
	if f.do != nil {
		f.do(t, q)
	}
	environ := q.settled(f.environ)
	r := examine(t, environ, f.args...)
	c := find(r, f.check)
	if c.State != f.state || !strings.Contains(c.Found, f.found) || !strings.Contains(c.Mend, f.mend) {
		t.Fatalf("%s: %s, %s; to mend it: %s\nwant %s, %q, %q", c.Name, c.State, c.Found, c.Mend, f.state, f.found, f.mend)
	}
	if f.follow != nil {
		environ = q.settled(f.follow(t, q))
		r = examine(t, environ, f.args...)
	}
	database := "postgres"
	if len(f.environ) == 1 && !strings.Contains(f.environ[0], "=") {
		database = f.environ[0]
	}
	// One thing may stand on another: "run it again" is what it says.
	for round := 0; round < 3; round++ {
		restart, done := false, 0
		for _, c := range r.Checks {
			if c.State == outbox.CheckWarning && c.Name != f.check && r.Fails > 0 {
				continue
			}
			for _, sql := range c.SQL {
				done++
				q.admin(database, sql)
			}
			restart = restart || c.Restart
		}
		if done == 0 {
			break
		}
		if restart {
			q.restart()
		}
		r = examine(t, environ, f.args...)
	}
	if c := find(r, f.check); c.State != outbox.CheckOK || r.Fails > 0 {
		all := ""
		for _, c := range r.Checks {
			if c.State == outbox.CheckFails {
				all += fmt.Sprintf("\n%s: %s; to mend it: %s", c.Name, c.Found, c.Mend)
			}
		}
		t.Errorf("after its advice %s: %s, %s; what fails:%s", c.Name, c.State, c.Found, all)
	}
	if f.tidy != "" {
		q.admin("postgres", f.tidy)
	}
}
