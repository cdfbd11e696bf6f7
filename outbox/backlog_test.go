package outbox_test

import (
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// types are the event types in the order of their event IDs.
func (w *world) types() []string {
	w.Helper()
	return w.query(`SELECT event_type FROM syncrelay.journal j JOIN sync_events s ON s.id = j.row_id ORDER BY event_id`)
}

// interleave writes the rows of two transactions by turns; b commits first. What
// the writers say of the time does not follow it.
func interleave(w *world) {
	w.Helper()
	begin := func() pgx.Tx {
		tx, err := w.pool.Begin(w.Context())
		if err != nil {
			w.Fatal(err)
		}
		return tx
	}
	a, b, now := begin(), begin(), time.Now()
	insert := func(tx pgx.Tx, name string, at time.Duration) {
		if _, err := tx.Exec(w.Context(), `INSERT INTO sync_events (event_type, created_at) VALUES ($1, $2)`, name, now.Add(at)); err != nil {
			w.Fatal(err)
		}
	}
	insert(a, "a1", 0)
	insert(b, "b1", time.Second)
	insert(a, "a2", 2*time.Second)
	insert(b, "b2", -time.Second)
	insert(a, "a3", time.Second)
	nested, err := a.Begin(w.Context()) // a savepoint
	if err != nil {
		w.Fatal(err)
	}
	insert(nested, "a4", 0)
	for _, tx := range []pgx.Tx{nested, b} {
		if err := tx.Commit(w.Context()); err != nil {
			w.Fatal(err)
		}
	}
	insert(a, "a5", 0)
	if err := a.Commit(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// A backlog keeps the rows of a transaction together and in their order.
func TestBacklogDoesNotTearTransactionsApart(t *testing.T) {
	t.Parallel()
	t.Run("where the server keeps commit times", func(t *testing.T) {
		t.Parallel()
		server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"track_commit_timestamp": "on", "fsync": "off"}})
		w := newWorldAt(t, server.URL("postgres"))
		interleave(w)
		w.start(relay.Options{})
		if rows, want := w.types(), []string{"b1", "b2", "a1", "a2", "a3", "a4", "a5"}; !slices.Equal(rows, want) {
			t.Errorf("the backlog came as %v, want %v", rows, want)
		}
	})
	// By the earliest created_at; what a savepoint holds counts by itself.
	t.Run("where it does not", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		interleave(w)
		w.start(relay.Options{})
		if rows, want := w.types(), []string{"b1", "b2", "a1", "a2", "a3", "a5", "a4"}; !slices.Equal(rows, want) {
			t.Errorf("the backlog came as %v, want %v", rows, want)
		}
	})
}

// Writers go on all the while that slots are made and backlogs are read: what
// commits just then comes once, by one way or the other.
func TestRowsThatCommitWhileTheSlotIsMadeComeOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := w.pool.Exec(t.Context(), `INSERT INTO sync_events (event_type) SELECT 'x' FROM generate_series(1, 2)`); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	end := sync.OnceFunc(func() { close(stop); writers.Wait() })
	defer end()
	rows := func() string { return w.query(`SELECT count(*)::text FROM sync_events`)[0] }
	for range 5 {
		before := rows()
		relaytest.Wait(t, "the writers write", func() bool { return rows() != before })
		r := w.start(relay.Options{})
		r.stop()
		w.waitForFreeSlot()
		w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
	}
	w.start(relay.Options{})
	end()
	relaytest.Wait(t, "all rows are journaled", func() bool {
		return w.query(`SELECT (count(DISTINCT row_id) = (SELECT count(*) FROM sync_events))::text FROM syncrelay.journal`)[0] == "true"
	})
	if twice := w.query(`SELECT row_id::text FROM syncrelay.journal GROUP BY row_id HAVING count(*) > 1`); len(twice) > 0 {
		t.Errorf("%d rows were given two event IDs", len(twice))
	}
}

// What was read from the table rather than streamed is told of and counted.
func TestRecoveredRowsAreToldOfWithTheirNumber(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log lines
	var told failures
	w.options.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
	r := w.start(relay.Options{Observer: &told})
	if n := told.recovered.Load(); n != 0 || strings.Contains(log.String(), "read rows that the slot does not bring") {
		t.Errorf("%d rows were recovered of none", n)
	}
	w.insert(grade(1))
	waitForJournal(w, 1)
	r.stop()
	w.waitForFreeSlot()
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
	w.insert(grade(2), grade(3), grade(4))
	w.start(relay.Options{Observer: &told})
	if n := told.recovered.Load(); n != 3 {
		t.Errorf("%d rows were counted as recovered, want 3", n)
	}
	for _, want := range []string{`msg="replacing the replication slot; rows that it would not bring are read from the table"`, `reason="the slot is missing"`,
		`msg="read rows that the slot does not bring" rows=3 `} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %s", want)
		}
	}
}
