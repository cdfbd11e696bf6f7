package pgtest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/outbox/localpg"
)

// farewell is how long the server may take to notice that a client has gone: one
// that was killed, or whose last words were lost.
const farewell = 20 * time.Second

// findLeft lists what is at work in a database, or in all of them if $1 is empty:
// sessions, and slots that nobody needs any more.
const findLeft = `
SELECT format('session %s of %s (%s %s): %s', pid, coalesce(nullif(application_name, ''), 'no name'), backend_type, state, left(query, 100))
  FROM pg_stat_activity
 WHERE ($1 = '' OR datname = $1) AND pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')
   AND application_name NOT IN ('walreceiver')
UNION ALL
SELECT format('%s slot %s', CASE WHEN temporary THEN 'temporary' ELSE 'active' END, slot_name)
  FROM pg_replication_slots
 WHERE ($1 = '' OR database = $1) AND slot_type = 'logical' AND (active OR temporary)`

// nothingLeft fails the test if it has left sessions or slots in use on a server
// after everything that it started has ended.
func nothingLeft(t testing.TB, s *localpg.Server, database string) {
	t.Helper()
	if t.Failed() {
		return // what it has left is no wonder
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return // a test may end with its server down
	}
	defer func() { _ = conn.Close(ctx) }()
	for deadline := time.Now().Add(farewell); ; time.Sleep(10 * time.Millisecond) {
		rows, err := conn.Query(ctx, findLeft, database)
		if err != nil {
			t.Errorf("ask what is left on the server: %v", err)
			return
		}
		left, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Errorf("ask what is left on the server: %v", err)
			return
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Error(fmt.Sprintf("the test has left on the server after %s:\n", farewell) + strings.Join(left, "\n"))
			return
		}
	}
}
