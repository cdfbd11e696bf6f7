package outbox_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// janitor makes one with the contract's window.
func (w *world) janitor(r running) *outbox.Janitor {
	return outbox.NewJanitor(w.options, outbox.Retention{Window: 168 * time.Hour, Interval: time.Hour, Retained: r.Retained})
}

func (w *world) clean(j *outbox.Janitor) {
	w.Helper()
	if err := j.Once(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// day makes the partition of a day in the past.
func (w *world) day(daysAgo int) (name string) {
	w.Helper()
	from := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -daysAgo)
	name = "sync_events_p" + from.Format("20060102")
	w.exec(`CREATE TABLE ` + name + ` PARTITION OF sync_events FOR VALUES FROM ('` + from.Format(time.RFC3339) + `') TO ('` + from.AddDate(0, 0, 1).Format(time.RFC3339) + `')`)
	w.exec(`ALTER TABLE ` + name + ` OWNER TO syncrelay_relay`)
	return name
}

func (w *world) old(daysAgo, rows int) {
	w.Helper()
	w.exec(`INSERT INTO sync_events (event_type, created_at, user_ids) SELECT 'old', now() - make_interval(days => $1), '{1}' FROM generate_series(1, $2)`, daysAgo, rows)
}

func TestRetentionDropsOldDaysAndDeletesOldRowsAndTellsClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.day(20)
	w.old(20, 3)    // in a partition of its own
	w.old(30, 5000) // in the default partition
	w.insert(grade(1), grade(2))
	waitForJournal(w, 5005)
	j := w.janitor(r)
	w.clean(j)
	if left := w.query(`SELECT count(*)::text FROM sync_events`)[0]; left != "2" {
		t.Errorf("%s rows are left, want 2", left)
	}
	if left := w.query(`SELECT concat(count(*), ' ', (SELECT count(*) FROM syncrelay.journal_audience)) FROM syncrelay.journal`)[0]; left != "2 0" {
		t.Errorf("journal and audience have %s entries, want 2 and 0", left)
	}
	if parts := w.query(`SELECT relid::text FROM pg_partition_tree('sync_events') WHERE isleaf`); len(parts) != 9 {
		t.Errorf("%d partitions are left: %v", len(parts), parts)
	}
	if work := j.Work(); work.Deleted != 5003 || work.LastSuccess.IsZero() {
		t.Errorf("the janitor says %+v, want 5003 deleted", work)
	}
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 17})
	got(t, c, 2)
	relaytest.Wait(t, "replay_complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
	if done, _ := relaytest.Last[relay.ReplayComplete](c); !done.Truncated || done.OldestEventID != 5004 {
		t.Errorf("a client of before what is left is told %+v, want truncated and the oldest event 5004", done)
	}
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 5003})
	relaytest.Wait(t, "replay_complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
	if done, _ := relaytest.Last[relay.ReplayComplete](c); done.Truncated {
		t.Errorf("a client that has missed nothing is told %+v", done)
	}
	w.clean(j) // nothing more to do
	if work := j.Work(); work.Deleted != 5003 {
		t.Errorf("the second run deleted %d", work.Deleted-5003)
	}
}

func TestRetentionNeverTouchesWhatWasNotRelayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	name := w.day(20)
	w.old(20, 2)
	waitForJournal(w, 2)
	r.stop()
	w.old(20, 1)
	w.old(30, 1)
	w.clean(w.janitor(r))
	if left := w.query(`SELECT concat((SELECT count(*) FROM ` + name + `), ' ', (SELECT count(*) FROM sync_events_default))`)[0]; left != "1 1" {
		t.Fatalf("%s rows are left, want the two that were not relayed", left)
	}
	r = w.start(relay.Options{})
	waitForJournal(w, 2)
	w.clean(w.janitor(r))
	if left := w.query(`SELECT count(*)::text FROM sync_events`)[0]; left != "0" {
		t.Errorf("%s rows are left after they were relayed", left)
	}
}

func TestWritersGoOnWhileRetentionWorksAndWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.day(20)
	w.old(20, 2)
	waitForJournal(w, 2)
	// A long transaction of a writer keeps the lock for dropping from being had.
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := outbox.Insert(t.Context(), tx, grade(1)); err != nil {
		t.Fatal(err)
	}
	j := w.janitor(r)
	done := make(chan error, 1)
	go func() { done <- j.Once(t.Context()) }()
	var longest time.Duration
	for running := true; running; {
		select {
		case err = <-done:
			running = false
		default:
			begun := time.Now()
			w.insert(grade(2))
			longest = max(longest, time.Since(begun))
		}
	}
	if err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("the run ended with %v, want that it gave up the lock", err)
	}
	t.Logf("the longest insert beside it took %s", longest)
	if longest > 2*time.Second {
		t.Errorf("a writer waited for %s", longest)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.clean(j)
	if parts := w.query(`SELECT relid::text FROM pg_partition_tree('sync_events') WHERE isleaf`); len(parts) != 9 {
		t.Errorf("%d partitions are left: %v", len(parts), parts)
	}
}

func TestSeveralJanitorsAtOnceAreHarmless(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.old(30, 3000)
	waitForJournal(w, 3000)
	name := w.day(20)
	w.old(20, 100)
	waitForJournal(w, 3100)
	// Each batch takes long enough for the others to come, and all see what is old.
	w.exec(`CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$`)
	w.exec(`CREATE TRIGGER take_time AFTER DELETE ON syncrelay.journal FOR EACH STATEMENT EXECUTE FUNCTION take_time()`)
	done := make(chan error)
	var janitors []*outbox.Janitor
	for range 4 {
		j := w.janitor(r)
		janitors = append(janitors, j)
		go func() { done <- j.Once(t.Context()) }()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var deleted int64
	for _, j := range janitors {
		deleted += j.Work().Deleted
	}
	if deleted != 3100 {
		t.Errorf("%d events were deleted by all together, want 3100: each by one of them", deleted)
	}
	if left := w.query(`SELECT relid::text FROM pg_partition_tree('sync_events') WHERE relid::text = $1`, name); len(left) > 0 {
		t.Errorf("partition %s is left", name)
	}
	if left := w.query(`SELECT count(*)::text FROM sync_events`)[0]; left != "0" {
		t.Errorf("%s rows are left", left)
	}
}

func TestAdoptedTableIsRelayedAndCleaned(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, `CREATE TABLE sync_events (id serial PRIMARY KEY, event_type varchar(50) NOT NULL, cadet_id integer, payload jsonb NOT NULL,
		created_at timestamptz NOT NULL, processed boolean NOT NULL, processed_at timestamptz);
		INSERT INTO sync_events (event_type, payload, created_at, processed) SELECT 'old', '{"a": 1}', now() - make_interval(days => d), true FROM generate_series(1, 30) d`)
	r := w.start(relay.Options{})
	w.insert(grade(17))
	w.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('pong', '1'), ('', '2'), ('fine', 'null')`)
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	got(t, c, 32) // 30 old ones, the grade, and what is fine
	waitForJournal(w, 34)
	w.clean(w.janitor(r))
	if left := w.query(`SELECT count(*)::text FROM sync_events`)[0]; left != "10" {
		t.Errorf("%s rows are left, want those of the last 6 days and 4 of today", left)
	}
}

// Writers write while days are dropped and rows deleted. The longest that one of
// them waited is printed; without a long transaction in the way it is the time
// for which the table is locked.
func TestRetentionDoesNotKeepWritersWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	const rows = 30000
	w.day(20)
	w.day(21)
	w.old(20, rows/3)
	w.old(21, rows/3)
	w.old(30, rows/3)
	waitForJournal(w, rows)
	ctx, stop := context.WithCancel(t.Context())
	waits := make([]time.Duration, 2)
	var writers sync.WaitGroup
	for i := range waits {
		writers.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				if _, err := w.pool.Exec(t.Context(), `INSERT INTO sync_events (event_type) VALUES ('x')`); err != nil {
					t.Error(err)
					return
				}
				waits[i] = max(waits[i], time.Since(begun))
			}
		})
	}
	begun := time.Now()
	j := w.janitor(r)
	relaytest.Wait(t, "what is old is gone", func() bool {
		err := j.Once(t.Context())
		var refused *pgconn.PgError
		if err != nil && (!errors.As(err, &refused) || refused.Code != "55P03") {
			t.Fatal(err)
		}
		return err == nil // or the writers had the table, and the janitor gave way
	})
	took := time.Since(begun)
	stop()
	writers.Wait()
	if left := w.query(`SELECT count(*)::text FROM sync_events WHERE event_type = 'old'`)[0]; left != "0" {
		t.Errorf("%s old rows are left", left)
	}
	t.Logf("%d rows were removed in %s, and the slowest insert beside it took %s", rows, took, slices.Max(waits))
	if longest := slices.Max(waits); longest > 2*time.Second { // the lock's 200 ms, and a machine at work
		t.Errorf("a writer waited for %s", longest)
	}
}
