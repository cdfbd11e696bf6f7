package schema_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/schema"
)

func TestMain(m *testing.M) { pgtest.Run(m) }

func migrate(t *testing.T, databaseURL string) schema.Report {
	t.Helper()
	report, err := schema.Migrate(t.Context(), databaseURL, schema.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func connect(t *testing.T, databaseURL string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func value(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	var v *string
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if v == nil {
		return "NULL"
	}
	return *v
}

func TestMigratingAgainChangesNothing(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	if first := migrate(t, u); len(first.Applied) == 0 || len(first.Warnings) > 0 {
		t.Errorf("the first run: %+v", first)
	}
	if second := migrate(t, u); len(second.Applied) > 0 || len(second.Warnings) > 0 {
		t.Errorf("the second run: %+v", second)
	}
	conn := connect(t, u)
	if n := value(t, conn, `SELECT count(*)::text FROM pg_partition_tree('sync_events') WHERE isleaf`); n != "9" {
		t.Errorf("%s partitions, want today's, seven days ahead and the default one", n)
	}
	if err := schema.Verify(t.Context(), conn); err != nil {
		t.Error(err)
	}
}

func TestSeveralMigrateAtOnce(t *testing.T) {
	t.Parallel()
	one, other := pgtest.Database(t), pgtest.Database(t)
	var wg sync.WaitGroup
	for _, u := range []string{one, one, one, one, other, other} {
		wg.Go(func() {
			if _, err := schema.Migrate(t.Context(), u, schema.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestVerifySaysWhatToDo(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	conn := connect(t, u)
	for _, c := range []struct{ change, want string }{
		{`SELECT 1`, "has none; run syncrelay migrate"},
		{`DELETE FROM syncrelay.schema_version WHERE version_id = (SELECT max(version_id) FROM syncrelay.schema_version)`, "run syncrelay migrate"},
		{`INSERT INTO syncrelay.schema_version (version_id, is_applied) VALUES (99, true)`, "newer program"},
	} {
		exec(t, conn, c.change)
		if err := schema.Verify(t.Context(), conn); !errors.Is(err, schema.ErrVersion) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("after %s: got %v, want %q", c.change, err, c.want)
		}
		if c.change == `SELECT 1` {
			migrate(t, u)
		}
	}
}

// login makes a role that may log in, with grants, and connects as it.
func login(t *testing.T, admin *pgx.Conn, grants ...string) *pgx.Conn {
	t.Helper()
	role := "login_" + admin.Config().Database
	exec(t, admin, `CREATE ROLE `+role+` LOGIN`)
	t.Cleanup(func() {
		ctx := context.Background()
		_, err := admin.Exec(ctx, `DROP OWNED BY `+role)
		if err == nil {
			_, err = admin.Exec(ctx, `DROP ROLE `+role)
		}
		if err != nil {
			t.Error(err)
		}
	})
	for _, g := range grants {
		exec(t, admin, fmt.Sprintf(g, role))
	}
	u, err := url.Parse(admin.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	return connect(t, u.String())
}

func TestWriterMayInsertAndNothingElse(t *testing.T) { //nolint:tparallel // the two logins have one name
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	for name, grants := range map[string][]string{
		"as a member of syncrelay_writer": {`GRANT syncrelay_writer TO %s`},
		"with the bare rights":            {`GRANT INSERT, SELECT (id) ON sync_events TO %s`},
	} {
		t.Run(name, func(t *testing.T) {
			w := login(t, connect(t, u), grants...)
			for _, sql := range []string{
				`INSERT INTO sync_events (event_type) VALUES ('x') RETURNING id`,
				`SELECT broadcast_grade_update(17, '{"merits": 3}')`,
				`SELECT broadcast_attendance_update(17, '{"status": "late"}')`,
				`SELECT broadcast_exam_score_update(17, '{"score": 91}')`,
				`SELECT broadcast_notification(5, '{"title": "hi"}')`,
				`SELECT broadcast_message('{5,6}', '{"text": "hi"}')`,
				`SELECT broadcast_sync_event('parade', '[1]', roles => '{*}')`,
				`SELECT broadcast_sync_event(event_type => 'parade', payload => NULL, cadet_id => 3, user_ids => '{4}', roles => '{cadet}')`,
			} {
				if id := value(t, w, strings.Replace(sql, "RETURNING id", "RETURNING id::text", 1)); id == "NULL" {
					t.Errorf("%s: no id", sql)
				}
			}
			for _, sql := range []string{
				`SELECT payload FROM sync_events`, `UPDATE sync_events SET payload = '{}'`, `DELETE FROM sync_events`, `TRUNCATE sync_events`,
				`SELECT * FROM syncrelay.journal`, `UPDATE syncrelay.state SET tenure = 9`, `DROP TABLE sync_events`,
			} {
				var pg *pgconn.PgError
				if _, err := w.Exec(t.Context(), sql); !errors.As(err, &pg) || pg.Code != "42501" {
					t.Errorf("%s: got %v, want that it is not allowed", sql, err)
				}
			}
		})
	}
}

func TestWriterFunctionsWriteTheRowsOfTheContract(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	conn := connect(t, u)
	for call, want := range map[string]string{
		`broadcast_grade_update(17, '{"a": 1}')`:                                   `grade_update|17|||{"a": 1}`,
		`broadcast_attendance_update(17, '{"a": 1}')`:                              `attendance_update|17|||{"a": 1}`,
		`broadcast_exam_score_update(17, NULL)`:                                    `exam_score_update|17|||{}`,
		`broadcast_notification(5, '{"a": 1}')`:                                    `notification||{5}||{"a": 1}`,
		`broadcast_message('{5,6}', '[]')`:                                         `message||{5,6}||[]`,
		`broadcast_sync_event('x', '1', 2, '{3}', '{admin,"a,b"}')`:                `x|2|{3}|{admin,"a,b"}|1`,
		`broadcast_sync_event('x', 'null')`:                                        `x||||null`,
		`broadcast_sync_event(event_type => 'y', payload => '{}', roles => '{*}')`: `y|||{*}|{}`,
	} {
		row := value(t, conn, `SELECT concat_ws('|', event_type, coalesce(cadet_id::text, ''), coalesce(user_ids::text, ''), coalesce(roles::text, ''), payload::text)
			FROM sync_events WHERE id = `+value(t, conn, `SELECT (`+call+`)::text`))
		if row != want {
			t.Errorf("%s wrote %s, want %s", call, row, want)
		}
	}
	for call, want := range map[string]string{
		`broadcast_grade_update(NULL, '{}')`:                   "cadet_id is NULL",
		`broadcast_attendance_update(NULL, '{}')`:              "cadet_id is NULL",
		`broadcast_exam_score_update(NULL, '{}')`:              "cadet_id is NULL",
		`broadcast_notification(NULL, '{}')`:                   "user_id is NULL",
		`broadcast_message(NULL, '{}')`:                        "user_ids names nobody",
		`broadcast_message('{}', '{}')`:                        "user_ids names nobody",
		`broadcast_message('{NULL}', '{}')`:                    "user_ids names nobody",
		`broadcast_sync_event(NULL, '{}')`:                     "event_type is NULL",
		`broadcast_sync_event('', '{}')`:                       "event_type is ''",
		`broadcast_sync_event('pong', '{}')`:                   "event_type is 'pong'",
		`broadcast_sync_event('error', '{}')`:                  "event_type is 'error'",
		`broadcast_sync_event('replay_complete', '{}')`:        "a word of the protocol",
		`broadcast_sync_event('connection_established', '{}')`: "a word of the protocol",
		`broadcast_sync_event('token_expiring', '{}')`:         "a word of the protocol",
	} {
		if _, err := conn.Exec(t.Context(), `SELECT `+call); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", call, err, want)
		}
	}
	for _, bad := range reserved {
		if !relay.ReservedType(bad) {
			t.Errorf("the relay sends rows of type %q", bad)
		}
		if _, err := conn.Exec(t.Context(), `INSERT INTO sync_events (event_type) VALUES ($1)`, bad); err == nil || !strings.Contains(err.Error(), "event_type_must_not_be_empty_or_a_word_of_the_protocol") {
			t.Errorf("a row of type %q: got %v", bad, err)
		}
	}
	if _, err := conn.Exec(t.Context(), `INSERT INTO sync_events (event_type, created_at) VALUES ('x', 'infinity')`); err == nil {
		t.Error("an infinite created_at was taken")
	}
}

// reserved are the event types that no row may have.
var reserved = []string{"", "pong", "error", "connection_established", "replay_complete", "token_expiring"}

// A table of before token_expiring was refused may hold rows of that type.
func TestRowsThatWereTakenBeforeDoNotStopTheMigration(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	conn := connect(t, u)
	exec(t, conn, `ALTER TABLE sync_events DROP CONSTRAINT event_type_must_not_be_empty_or_a_word_of_the_protocol,
		ADD CONSTRAINT event_type_must_not_be_empty_or_a_word_of_the_protocol CHECK (event_type NOT IN ('', 'pong', 'error', 'connection_established', 'replay_complete'));
		DELETE FROM syncrelay.schema_version WHERE version_id >= 6;
		INSERT INTO sync_events (event_type) VALUES ('token_expiring');
		INSERT INTO sync_events (event_type, created_at) VALUES ('token_expiring', '2001-01-01')`)
	if report := migrate(t, u); len(report.Applied) != 1 || len(report.Warnings) > 0 {
		t.Errorf("the second migration: %+v, want the one that was missing", report)
	}
	if n := value(t, conn, `SELECT count(*)::text FROM sync_events`); n != "2" {
		t.Errorf("%s rows are left, want 2", n)
	}
	for _, at := range []string{"now()", "now() + interval '3 days'", "'2001-01-01'"} {
		_, err := conn.Exec(t.Context(), `INSERT INTO sync_events (event_type, created_at) VALUES ('token_expiring', `+at+`)`)
		if err == nil || !strings.Contains(err.Error(), "event_type_must_not_be_empty_or_a_word_of_the_protocol") {
			t.Errorf("a new row of %s: got %v", at, err)
		}
	}
	// Partitions that are made later fit the table.
	exec(t, conn, `SELECT syncrelay.make_partitions(9)`)
	if n := value(t, conn, `SELECT count(*)::text FROM pg_partition_tree('sync_events') WHERE isleaf`); n != "11" {
		t.Errorf("%s partitions, want two more than 9", n)
	}
}

// A payload that could not be sent is the writer's error, however small it is as
// it is stored; one that is merely large is not.
func TestPayloadThatCannotBeSentIsRefused(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	conn := connect(t, u)
	exec(t, conn, `CREATE TABLE source (payload jsonb);
		INSERT INTO source SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 2100)`)
	if size := value(t, conn, `SELECT pg_column_size(payload)::text FROM source`); len(size) > 4 {
		t.Fatalf("the payload is %s bytes as it is stored, want few", size)
	}
	for name, c := range map[string]struct{ payload, code string }{
		"more than 256 MiB when written out": {`SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 2100)`, "23514"},
		"the same, compressed":               {`SELECT payload FROM source`, "23514"},
		"numbers that are long":              {`SELECT jsonb_agg(1e131071::numeric) FROM generate_series(1, 30)`, ""},
		"a large text":                       {`SELECT to_jsonb(repeat('x', 20 << 20))`, ""},
		"nothing":                            {`SELECT '{}'::jsonb`, ""},
	} {
		_, err := conn.Exec(t.Context(), `INSERT INTO sync_events (event_type, payload) `+strings.Replace(c.payload, "SELECT ", "SELECT 'x', ", 1))
		var pg *pgconn.PgError
		switch {
		case c.code == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.code != "" && (!errors.As(err, &pg) || pg.Code != c.code || pg.ConstraintName != "payload_must_not_be_larger_than_256_MiB_as_text"):
			t.Errorf("%s: got %v, want that the payload is too large", name, err)
		}
	}
	exec(t, conn, `ALTER TABLE sync_events DROP CONSTRAINT "payload_must_not_be_larger_than_256_MiB_as_text"`)
	migrate(t, u)
	if n := value(t, conn, `SELECT count(*)::text FROM pg_constraint WHERE conname = 'payload_must_not_be_larger_than_256_MiB_as_text' AND conislocal AND NOT coninhcount > 0`); n != "1" {
		t.Errorf("migrate made %s constraints of the table, want the one that was missing", n)
	}
}

func TestExistingTableIsAdoptedWithoutBeingRewritten(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string]string{
		"Django's": `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type varchar(50) NOT NULL, cadet_id integer NULL, payload jsonb NOT NULL,
			created_at timestamptz NOT NULL, processed boolean NOT NULL, processed_at timestamptz NULL)`,
		"Django's with identity": `CREATE TABLE sync_events (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, event_type varchar(50) NOT NULL, cadet_id bigint,
			payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), processed boolean NOT NULL DEFAULT false)`,
		"an old one": `CREATE TABLE sync_events (id serial PRIMARY KEY, event_type text NOT NULL, payload text)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := pgtest.Database(t)
			conn := connect(t, u)
			exec(t, conn, ddl)
			exec(t, conn, `DO $$ BEGIN
				INSERT INTO sync_events (event_type, payload, created_at, processed) SELECT 'old', '{"a": 1}', now(), false FROM generate_series(1, 3);
				EXCEPTION WHEN undefined_column THEN INSERT INTO sync_events (event_type, payload) SELECT 'old', '{"a": 1}' FROM generate_series(1, 3); END $$`)
			file := value(t, conn, `SELECT pg_relation_filenode('sync_events')::text`)
			if report := migrate(t, u); len(report.Warnings) > 0 {
				t.Errorf("warnings: %v", report.Warnings)
			}
			if again := value(t, conn, `SELECT pg_relation_filenode('sync_events')::text`); again != file {
				t.Error("the table was rewritten")
			}
			if n := value(t, conn, `SELECT count(*)::text FROM sync_events WHERE event_type = 'old' AND created_at <= now()`); n != "3" {
				t.Errorf("%s old rows, want 3", n)
			}
			w := login(t, conn, `GRANT syncrelay_writer TO %s`)
			for _, call := range []string{`broadcast_grade_update(17, '{"merits": 3}')`, `broadcast_message('{5,6}', '{}')`, `broadcast_sync_event('x', '{}', roles => '{*}')`} {
				value(t, w, `SELECT (`+call+`)::text`)
			}
		})
	}
}

func TestTableThatCannotBeAdoptedIsNamedWithWhatMendsIt(t *testing.T) {
	t.Parallel()
	for ddl, want := range map[string]string{
		`CREATE TABLE sync_events (id uuid PRIMARY KEY, event_type text)`:                     "ALTER COLUMN id TYPE bigint",
		`CREATE TABLE sync_events (id bigint PRIMARY KEY, event_type text, payload bytea)`:    "ALTER COLUMN payload TYPE jsonb",
		`CREATE TABLE sync_events (id bigint PRIMARY KEY, event_type text, user_ids text)`:    "ALTER COLUMN user_ids TYPE bigint[]",
		`CREATE TABLE sync_events (id bigint PRIMARY KEY, name text)`:                         "no column event_type",
		`CREATE TABLE sync_events (id bigint PRIMARY KEY, event_type text, created_at date)`:  "created_at of table sync_events is of type date",
		`CREATE TABLE sync_events (id bigint UNIQUE, event_type text)`:                        "may be NULL, and it is what a row is found by; to mend it: ALTER TABLE sync_events ALTER COLUMN id SET NOT NULL",
		`CREATE TABLE sync_events (id bigint NOT NULL, event_type text)`:                      `is not unique, and it is what a row is found by; to mend it: CREATE UNIQUE INDEX CONCURRENTLY "sync_events_id_key" ON sync_events (id)`,
		`CREATE TABLE sync_events (id bigint, event_type text, PRIMARY KEY (id, event_type))`: "is not unique",
		`CREATE TABLE sync_events (id bigint NOT NULL, event_type text);
			CREATE UNIQUE INDEX ON sync_events (id) WHERE event_type = 'x'`: "is not unique",
		`CREATE TABLE sync_events (id bigint NOT NULL, event_type text, created_at timestamptz NOT NULL) PARTITION BY RANGE (created_at)`: "CREATE UNIQUE INDEX ON sync_events (id, created_at)",
	} {
		u := pgtest.Database(t)
		exec(t, connect(t, u), ddl)
		if _, err := schema.Migrate(t.Context(), u, schema.Options{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", ddl, err, want)
		}
	}
	u := pgtest.Database(t)
	exec(t, connect(t, u), `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type text, tenant text NOT NULL)`)
	if report := migrate(t, u); !slices.ContainsFunc(report.Warnings, func(w string) bool { return strings.Contains(w, "column tenant") }) {
		t.Errorf("warnings %v, want one of the column that every writer must give", report.Warnings)
	}
}

// What migrate and the relay say of a table that does not fit is what mends it.
func TestStatementsThatMendATableDo(t *testing.T) {
	t.Parallel()
	for _, ddl := range []string{
		`CREATE TABLE sync_events (id bigint, event_type text)`,
		`CREATE TABLE sync_events (id bigint, event_type text, created_at timestamptz NOT NULL) PARTITION BY RANGE (created_at)`,
		`CREATE TABLE sync_events (event_type text, id bigint NOT NULL); CREATE UNIQUE INDEX ON sync_events (id) INCLUDE (event_type)`, // nothing to mend
	} {
		u := pgtest.Database(t)
		conn := connect(t, u)
		exec(t, conn, ddl)
		if _, err := schema.Migrate(t.Context(), u, schema.Options{}); err != nil {
			if !errors.Is(err, schema.ErrTable) {
				t.Fatal(err)
			}
			_, mend, _ := strings.Cut(err.Error(), "to mend it: ")
			for statement := range strings.SplitSeq(mend, "; ") {
				exec(t, conn, statement)
			}
		}
		migrate(t, u)
		if err := schema.Verify(t.Context(), conn); err != nil {
			t.Errorf("after %s and what mends it: %v", ddl, err)
		}
	}
}

// A table that was made unfit after it was adopted is noticed at the next start.
func TestVerifySaysThatTheTableDoesNotFit(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	conn := connect(t, u)
	exec(t, conn, `CREATE TABLE sync_events (id bigint PRIMARY KEY, event_type text)`)
	migrate(t, u)
	exec(t, conn, `ALTER TABLE sync_events DROP CONSTRAINT sync_events_pkey`)
	if err := schema.Verify(t.Context(), conn); !errors.Is(err, schema.ErrTable) || !strings.Contains(err.Error(), "CREATE UNIQUE INDEX") {
		t.Errorf("got %v, want what makes the id unique", err)
	}
	exec(t, conn, `ALTER TABLE sync_events ADD PRIMARY KEY (id); ALTER TABLE sync_events ENABLE ROW LEVEL SECURITY`)
	if report := migrate(t, u); !slices.ContainsFunc(report.Warnings, func(w string) bool {
		return strings.Contains(w, "row security of table sync_events") && strings.HasSuffix(w, "ALTER ROLE syncrelay_relay BYPASSRLS")
	}) {
		t.Errorf("warnings %v, want one of the row security", report.Warnings)
	}
	relay := login(t, conn, `GRANT SELECT ON ALL TABLES IN SCHEMA syncrelay TO %s`, `GRANT USAGE ON SCHEMA syncrelay TO %s`, `GRANT SELECT ON sync_events TO %s`)
	want := `ALTER ROLE "` + relay.Config().User + `" BYPASSRLS`
	if err := schema.Verify(t.Context(), relay); !errors.Is(err, schema.ErrTable) || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	exec(t, conn, want)
	if err := schema.Verify(t.Context(), relay); err != nil {
		t.Error(err)
	}
}

func TestOwnerWithoutSuperuserMigrates(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	admin := connect(t, u)
	// The roles are the server's, and may be there already.
	migrate(t, pgtest.Database(t))
	role := "owner_" + admin.Config().Database
	exec(t, admin, `CREATE ROLE `+role+` LOGIN CREATEROLE`)
	exec(t, admin, `GRANT syncrelay_relay TO `+role)
	exec(t, admin, `ALTER DATABASE `+admin.Config().Database+` OWNER TO `+role)
	t.Cleanup(func() {
		ctx := context.Background()
		for _, sql := range []string{`REASSIGN OWNED BY ` + role + ` TO postgres`, `DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := admin.Exec(ctx, sql); err != nil {
				t.Errorf("%s: %v", sql, err)
			}
		}
	})
	as, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.User(role)
	for range 2 {
		migrate(t, as.String())
	}
	if owner := value(t, admin, `SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = 'sync_events'::regclass`); owner != "syncrelay_relay" {
		t.Errorf("the table is owned by %s", owner)
	}
}

func TestPartitionsAreMadeAheadByTheRelaysRoleWhateverTheDefaultHolds(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	admin := connect(t, u)
	exec(t, admin, `INSERT INTO sync_events (event_type, created_at) VALUES ('x', now() + interval '9 days'), ('x', now() - interval '9 days')`)
	relay := login(t, admin, `GRANT syncrelay_relay TO %s`)
	if made := value(t, relay, `SELECT syncrelay.make_partitions(10)::text`); made != "2" {
		t.Errorf("made %s partitions, want two: of 8 and 10 days ahead, and none of 9, of which the default partition has a row", made)
	}
	var wg sync.WaitGroup
	for range 4 {
		conn := connect(t, u)
		wg.Go(func() {
			if _, err := conn.Exec(t.Context(), `SELECT syncrelay.make_partitions(20)`); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := value(t, admin, `SELECT count(*)::text FROM pg_partition_tree('sync_events') WHERE isleaf`); n != "21" {
		t.Errorf("%s partitions, want 20 and the default one", n)
	}
}

func TestDemoTriggersWriteOneEventForEachCadetConcerned(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	for range 2 {
		if _, err := schema.MigrateDemo(t.Context(), u, schema.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	conn := connect(t, u)
	for _, c := range []struct{ change, want string }{
		{`INSERT INTO demo.merits (cadet_id, points, reason) VALUES (1, 3, 'drill'), (1, 2, 'order'), (2, -1, 'late')`,
			`grade_update 1 {"name": "Amara Okafor", "merits": 5, "cadet_id": 1, "demerits": 0}; grade_update 2 {"name": "Ben Whitfield", "merits": 0, "cadet_id": 2, "demerits": 1}; notification - {"title": "Demerits", "message": "1 demerits: late"}`},
		{`UPDATE demo.merits SET points = points + 1 WHERE points > 0`, `grade_update 1 {"name": "Amara Okafor", "merits": 7, "cadet_id": 1, "demerits": 0}`},
		{`UPDATE demo.merits SET points = points`, ``},
		{`DELETE FROM demo.merits WHERE cadet_id = 2`, `grade_update 2 {"name": "Ben Whitfield", "merits": 0, "cadet_id": 2, "demerits": 0}`},
		{`INSERT INTO demo.attendance SELECT id, '2026-01-15', 'present' FROM demo.cadets WHERE id <= 2`,
			`attendance_update 1 {"date": "2026-01-15", "status": "present", "cadet_id": 1}; attendance_update 2 {"date": "2026-01-15", "status": "present", "cadet_id": 2}`},
		{`UPDATE demo.attendance SET status = 'late' WHERE cadet_id = 2`, `attendance_update 2 {"date": "2026-01-15", "status": "late", "cadet_id": 2}`},
		{`DELETE FROM demo.attendance WHERE cadet_id = 1`, `attendance_update 1 {"date": "2026-01-15", "status": null, "cadet_id": 1}`},
		{`INSERT INTO demo.exam_scores VALUES (3, 'Navigation', 88.5)`, `exam_score_update 3 {"exam": "Navigation", "score": 88.50, "cadet_id": 3}`},
		{`UPDATE demo.exam_scores SET score = 90`, `exam_score_update 3 {"exam": "Navigation", "score": 90.00, "cadet_id": 3}`},
		{`DELETE FROM demo.exam_scores`, `exam_score_update 3 {"exam": "Navigation", "score": null, "cadet_id": 3}`},
	} {
		exec(t, conn, `DELETE FROM sync_events`)
		exec(t, conn, c.change)
		got := value(t, conn, `SELECT coalesce(string_agg(concat_ws(' ', event_type, coalesce(cadet_id::text, '-'), payload::text), '; ' ORDER BY id), '') FROM sync_events`)
		if got != c.want {
			t.Errorf("%s\n wrote %s\n want  %s", c.change, got, c.want)
		}
	}
	for range 60 {
		value(t, conn, `SELECT demo.make_traffic()`)
	}
	if n := value(t, conn, `SELECT count(*)::text FROM sync_events`); n == "0" {
		t.Error("the traffic wrote nothing")
	}
}

// A migrate that changes nothing must not make writers wait behind a long
// transaction, and one that has to change the table gives up before long.
func TestMigrateDoesNotKeepWritersWaiting(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	long, writer := connect(t, u), connect(t, u)
	exec(t, long, `BEGIN`)
	exec(t, long, `INSERT INTO sync_events (event_type) VALUES ('long')`)
	exec(t, writer, `SET lock_timeout = '2s'`)
	migrate(t, u) // it would wait for the long transaction
	exec(t, writer, `INSERT INTO sync_events (event_type) VALUES ('x')`)

	u = pgtest.Database(t)
	long = connect(t, u)
	exec(t, long, `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type text)`)
	exec(t, long, `BEGIN`)
	exec(t, long, `INSERT INTO sync_events (event_type) VALUES ('long')`)
	_, err := schema.Migrate(t.Context(), u, schema.Options{})
	if err == nil || !strings.Contains(err.Error(), "let it end") {
		t.Errorf("migrate beside a long transaction: %v", err)
	}
	exec(t, long, `COMMIT`)
	migrate(t, u)
}
