package outbox

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/schema"
)

// planNode is a node of an EXPLAIN in JSON.
type planNode struct {
	Node      string     `json:"Node Type"`
	Relation  string     `json:"Relation Name"`
	IndexCond string     `json:"Index Cond"`
	Loops     int64      `json:"Actual Loops"`
	Removed   float64    `json:"Rows Removed by Filter"`
	Plans     []planNode `json:"Plans"`
}

// scans calls each with the scans of tables that were executed, and with what gathers
// those of other processes.
func (n *planNode) scans(each func(*planNode)) {
	if (n.Relation != "" || strings.HasPrefix(n.Node, "Gather")) && n.Loops > 0 {
		each(n)
	}
	for i := range n.Plans {
		n.Plans[i].scans(each)
	}
}

// explained executes a statement and returns its plan.
func explained(ctx context.Context, t *testing.T, conn *pgx.Conn, sql string, args ...any) *planNode {
	t.Helper()
	var text []byte
	if err := conn.QueryRow(ctx, `EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) `+sql, args...).Scan(&text); err != nil {
		t.Fatalf("explain %s: %v", sql, err)
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal(text, &plans); err != nil {
		t.Fatal(err)
	}
	return &plans[0].Plan
}

// fillLog makes a log of many rows, over days and for many: one for a cadet in
// most, one for a user and a role in every hundredth.
const fillLog = `
INSERT INTO sync_events (event_type, cadet_id, user_ids, roles, created_at)
SELECT 'x', CASE WHEN n % 100 > 0 THEN n % 2000 END, CASE WHEN n % 100 = 0 THEN ARRAY[n % 1000] END, CASE WHEN n % 100 = 0 THEN ARRAY['rare'] END, now() + n % 5 * interval '1 day'
  FROM generate_series(1, 150000) n;
INSERT INTO syncrelay.journal (event_id, row_id, created_at, cadet_id, staff) SELECT id, id, created_at, cadet_id, cadet_id IS NOT NULL FROM sync_events ORDER BY id;
INSERT INTO syncrelay.journal_audience (audience, event_id)
SELECT a, id FROM sync_events, unnest(ARRAY['role_rare', 'user_' || user_ids[1]]) a WHERE cadet_id IS NULL;
UPDATE syncrelay.state SET last_event_id = 150000`

// migrated is a database with the schema, and a session of its owner's.
func migrated(t *testing.T) (url string, admin *pgx.Conn) {
	t.Helper()
	url = pgtest.Database(t)
	if _, err := schema.Migrate(t.Context(), url, schema.Options{}); err != nil {
		t.Fatal(err)
	}
	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeConn(admin) })
	return url, admin
}

// TestAReplayIsRangesOfIndexes: whoever asks for whatever part of a long log, no
// table is read through, and nothing is looked at that is for others, with the
// planner's statistics and before there are any.
func TestAReplayIsRangesOfIndexes(t *testing.T) {
	t.Parallel()
	url, admin := migrated(t)
	for _, sql := range []string{`SELECT syncrelay.make_partitions(6)`, `ALTER TABLE syncrelay.journal SET (autovacuum_enabled = off)`, fillLog} {
		if _, err := admin.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	conn, err := connect(t.Context(), url, readSettings)
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(conn)
	outboxTable, err := lookUpTable(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	look := func(when string, mayFilter bool, sql string, args ...any) {
		t.Helper()
		seen := 0
		explained(t.Context(), t, conn, sql, args...).scans(func(n *planNode) {
			seen++
			if n.IndexCond == "" || n.Node != "Index Scan" && n.Node != "Index Only Scan" {
				t.Errorf("%s: %s of %s, without a range of an index", when, n.Node, n.Relation)
			}
			if n.Removed > 0 && !mayFilter {
				t.Errorf("%s: %s of %s looks at %g rows for nothing in each of %d times", when, n.Node, n.Relation, n.Removed, n.Loops)
			}
		})
		if seen == 0 {
			t.Errorf("%s: no table was read by %s", when, sql)
		}
	}
	for _, stage := range []string{"without statistics", "with statistics"} {
		if stage == "with statistics" {
			if _, err := admin.Exec(t.Context(), `ANALYZE`); err != nil {
				t.Fatal(err)
			}
		}
		for name, after := range map[string]int64{"everything": 0, "the second half": 75_000, "the end": 149_900} {
			when := stage + ", " + name
			r := request{after: after, through: 150_000, limit: 1024, groups: []relay.Group{
				relay.CadetGroup(17), relay.CadetGroup(5000), relay.UserGroup(100), relay.RoleGroup("rare"), relay.Everyone, relay.Staff,
			}}
			all := newSearches([]*request{&r})
			look(when, false, findAudience, all.audience, all.audiences.after, all.audiences.through, all.limit)
			look(when, false, findCadet, all.cadet, all.cadets.after, all.cadets.through, all.limit)
			look(when, true, findStaff, all.staff.after, all.staff.through, all.limit) // in the order of the log
			var entries []entry
			for id := after + 1; id <= 150_000 && len(entries) < 1024; id += 7 {
				created := time.Now().Add(time.Duration(id%5) * 24 * time.Hour)
				entries = append(entries, entry{id, id%2 == 0, id, created.UnixMicro()})
			}
			look(when, false, eventsQuery(outboxTable, theseEntries, pageBytes, false), columnsOf(entries)...)
		}
	}
}
