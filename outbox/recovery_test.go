package outbox_test

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/schema"
)

// got waits until the client has n events and returns their IDs.
func got(t testing.TB, c *relaytest.Client, n int) []int64 {
	t.Helper()
	relaytest.Wait(t, "the client has its events", func() bool { return len(c.Got()) >= n })
	ids := c.Got()
	if len(ids) != n {
		t.Fatalf("the client got %d events, want %d: from %d to %d", len(ids), n, ids[0], ids[len(ids)-1])
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != n {
		t.Fatalf("the %d IDs do not ascend", n)
	}
	return ids
}

func TestRowsOfBeforeTheFirstStartAreDelivered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	want := w.insert(grade(1), grade(2))
	want = append(want, w.insert(grade(3))...)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	want = append(want, w.insert(grade(4))...)
	got(t, c, 4)
	if rows := w.journaled(); !slices.Equal(rows, want) {
		t.Fatalf("journaled %v, want %v", rows, want)
	}
}

// A slot that can't bring everything is replaced, and the table is read.
func TestSlotThatCannotGoOnLosesNothingAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	faults := map[string]func(w *world){
		"dropped": func(w *world) {
			w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
		},
		"made by somebody else": func(w *world) {
			w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
			w.insert(grade(50))
			w.exec(`SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, w.options.Slot)
		},
		"advanced by somebody else": func(w *world) {
			w.insert(grade(50))
			w.exec(`SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, w.options.Slot)
		},
		"without its publication for a while": func(w *world) {
			w.exec(`DROP PUBLICATION syncrelay`)
			w.insert(grade(50))
		},
		"with a publication that was emptied": func(w *world) {
			w.exec(`ALTER PUBLICATION syncrelay DROP TABLE sync_events`)
			w.insert(grade(50))
		},
		"with its table out of the publication for a while": func(w *world) {
			w.exec(`ALTER PUBLICATION syncrelay DROP TABLE sync_events`)
			w.insert(grade(50))
			w.exec(`ALTER PUBLICATION syncrelay ADD TABLE sync_events`)
		},
		"with a publication that was made anew": func(w *world) {
			w.exec(`DROP PUBLICATION syncrelay`)
			w.insert(grade(50))
			if _, err := schema.Migrate(w.Context(), w.url, schema.Options{}); err != nil {
				w.Fatal(err)
			}
		},
		"with a publication that filtered": func(w *world) {
			w.exec(`ALTER PUBLICATION syncrelay SET TABLE sync_events WHERE (cadet_id < 10)`)
			w.insert(grade(50))
		},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			first := w.start(relay.Options{})
			w.insert(grade(1), grade(2))
			waitForJournal(w, 2)
			epoch := first.Status().Epoch
			first.stop()
			w.waitForFreeSlot()
			fault(w)
			w.insert(grade(3))
			committed := w.query(`SELECT count(*)::text FROM sync_events`)[0]
			second := w.start(relay.Options{})
			w.insert(grade(4))
			c := relaytest.Connect(t, second.Relay, admin, relay.Start{Resume: true, After: 2})
			n := 2
			if committed == "4" {
				n = 3
			}
			got(t, c, n)
			if e := second.Status().Epoch; e != epoch {
				t.Errorf("the epoch changed from %s to %s although every ID can be compared", epoch, e)
			}
			rows := w.journaled()
			if len(slices.Compact(slices.Sorted(slices.Values(rows)))) != n+2 {
				t.Errorf("journaled rows %v, want %d, each once", rows, n+2)
			}
		})
	}
}

func TestSlotLostWhileStreamingIsReplacedUnderItsClients(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	w.exec(`SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1`, w.options.Slot)
	for { // the relay may be quicker and hold the slot again
		if _, err := w.pool.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, w.options.Slot); err == nil {
			break
		}
		w.exec(`SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1 AND active`, w.options.Slot)
	}
	w.insert(grade(2))
	w.insert(grade(3))
	got(t, c, 3)
}

func TestKilledServerRepeatsTheSameIDsAndJumpsAboveTheRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"wal_writer_delay": "10s"}})
	w := newWorldAt(t, server.URL("postgres"))
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	for range 20 {
		w.insert(grade(1))
	}
	before := got(t, c, 20)
	r.stop() // without its clean end: the server is killed under it below
	r = w.start(relay.Options{})
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{})
	for range 20 {
		w.insert(grade(2))
	}
	shown := got(t, c, 20)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := server.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.pool.Reset() // its sessions died with the server
	if left := len(w.journaled()); left == 40 {
		t.Fatal("the crash took nothing from the journal: this test shows nothing")
	}
	again := w.start(relay.Options{})
	w.insert(grade(3))
	c = relaytest.Connect(t, again.Relay, admin, relay.Start{Resume: true, After: before[19]})
	after := got(t, c, 21)
	if !slices.Equal(after[:20], shown) {
		t.Errorf("after the crash the same rows have IDs %v, before they had %v", after[:20], shown)
	}
	if after[20] < 1e15 {
		t.Errorf("a row of after the restart has ID %d, which a forgotten time could have given too", after[20])
	}
}

func TestStandbyTakesOverWhenTheOwnerEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	owner := w.start(relay.Options{})
	standby := w.launch(relay.Options{})
	relaytest.Wait(t, "the second relay is a standby", func() bool { return standby.Status().Phase == relay.Standby })
	if _, err := standby.Subscribe(admin, nil, relay.Start{}); err == nil {
		t.Error("the standby took a subscriber")
	}
	w.insert(grade(1))
	waitForJournal(w, 1)
	owner.stop()
	relaytest.Wait(t, "the standby streams", func() bool { return standby.Status().Phase == relay.Streaming })
	c := relaytest.Connect(t, standby.Relay, admin, relay.Start{Resume: true})
	w.insert(grade(2))
	if ids := got(t, c, 2); ids[1] != 2 {
		t.Errorf("the second event has ID %d, want 2: the server was not restarted", ids[1])
	}
}

func TestTransactionJournaledInPartIsNotRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 20000
	for range 4 {
		r := w.start(relay.Options{BatchEvents: 100})
		c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
		before := len(w.journaled())
		w.exec(`INSERT INTO sync_events (event_type) SELECT 'bulk' FROM generate_series(1, $1)`, n)
		relaytest.Wait(t, "a part is shown", func() bool { return len(c.Got()) > 500 })
		r.stop() // in the middle, most of the time
		_ = before
	}
	r := w.start(relay.Options{})
	waitForJournal(w, 4*n)
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	got(t, c, 4*n)
	if rows := w.journaled(); !slices.IsSorted(rows) || len(slices.Compact(slices.Clone(rows))) != 4*n {
		t.Error("the journal does not hold each row once, in statement order")
	}
}

func TestSlotFollowsAFailoverWhereTheServerKnowsHow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(relay.Options{})
	// to_jsonb, because the column is not there before version 17.
	failover := w.query(`SELECT coalesce(to_jsonb(s)->>'failover', 'unknown') FROM pg_replication_slots s WHERE slot_name = $1`, w.options.Slot)[0]
	if want := map[bool]string{true: "true", false: "unknown"}[pgtest.Server(t).Version() >= 17]; failover != want {
		t.Errorf("failover of the slot is %s, want %s", failover, want)
	}
}

// The tables are put back as they were earlier, journal and all, while the
// server goes on: the IDs that were shown in the time that is forgotten must not
// be given to other rows.
func TestTablesPutBackDoNotGiveIDsAgain(t *testing.T) {
	t.Parallel()
	for name, keepsSlot := range map[string]bool{"the slot is dropped with the database": false, "the slot is kept": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.start(relay.Options{})
			c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
			w.insert(grade(1))
			got(t, c, 1)
			r.stop()
			w.exec(`CREATE SCHEMA copy; CREATE TABLE copy.state AS TABLE syncrelay.state; CREATE TABLE copy.journal AS TABLE syncrelay.journal`)
			r = w.start(relay.Options{})
			c = relaytest.Connect(t, r.Relay, admin, relay.Start{})
			w.insert(grade(2), grade(2))
			shown := got(t, c, 2)
			r.stop()
			w.waitForFreeSlot()
			w.exec(`DELETE FROM sync_events WHERE cadet_id = 2;
				DELETE FROM syncrelay.journal; INSERT INTO syncrelay.journal SELECT * FROM copy.journal;
				DELETE FROM syncrelay.state; INSERT INTO syncrelay.state SELECT * FROM copy.state`)
			if !keepsSlot {
				w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
			}
			r = w.start(relay.Options{})
			c = relaytest.Connect(t, r.Relay, admin, relay.Start{})
			w.insert(grade(3), grade(3))
			if again := got(t, c, 2); again[0] <= shown[1] {
				t.Errorf("events %v were shown, and other rows are events %v now", shown, again)
			}
		})
	}
}

// A journal that was carried to another server, whose slot of the same name is
// not this journal's.
func TestSlotOfAnotherServerIsNotBelieved(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.insert(grade(1))
	waitForJournal(w, 1)
	epoch := r.Status().Epoch
	r.stop()
	w.waitForFreeSlot()
	w.exec(`UPDATE syncrelay.state SET system_id = '1', high_commit = 'F/0', confirmed = 'F/0'`)
	w.insert(grade(2))
	r = w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	w.insert(grade(3))
	got(t, c, 3)
	if r.Status().Epoch == epoch {
		t.Error("the epoch is that of the other server")
	}
}

// One of the server's processes is killed, as by the kernel when memory runs
// out: the server recovers as from any crash, and keeps its start time.
func TestKilledBackendIsACrashToo(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"autovacuum": "off"}})
	w := newWorldAt(t, server.URL("postgres"))
	// The relay asks for no flush, and does not come back before the slot is lost
	// as well.
	r := w.start(relay.Options{FlushInterval: time.Hour, Retry: func(int) time.Duration { return time.Hour }})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	epoch := r.Status().Epoch
	got(t, c, 1)
	// Nobody else writes the log to disk: of the journal's last entries nothing is
	// there.
	walWriter := w.pid(`SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'walwriter'`)
	signal(t, walWriter, syscall.SIGSTOP)
	for range 20 {
		w.insert(grade(2))
	}
	shown := got(t, c, 21)
	started := w.query(`SELECT pg_postmaster_start_time()::text`)[0]
	signal(t, w.pid(`SELECT pg_backend_pid()::text`), syscall.SIGKILL)
	relaytest.Wait(t, "the relay has lost its sessions", func() bool { return r.Status().Phase == relay.Retrying })
	signal(t, walWriter, syscall.SIGCONT) // it was told to quit meanwhile
	r.stop()
	w.pool.Reset()
	relaytest.Wait(t, "the server has recovered", func() bool {
		var at string
		return w.pool.QueryRow(t.Context(), `SELECT pg_postmaster_start_time()::text`).Scan(&at) == nil && at == started
	})
	if left := len(w.journaled()); left == 21 {
		t.Fatal("the crash took nothing from the journal: this test shows nothing")
	}
	relaytest.Wait(t, "the slot is dropped", func() bool {
		_, err := w.pool.Exec(t.Context(), `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
		return err == nil
	})
	r = w.start(relay.Options{})
	if now := r.Status().Epoch; now == epoch {
		t.Error("the epoch is the old one, although events that were shown have other IDs now")
	}
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(3))
	if again := got(t, c, 1); again[0] <= shown[20] {
		t.Errorf("event %d was shown, and now there is another event %d", shown[20], again[0])
	}
}

// pid asks for the number of a process of the server's.
func (w *world) pid(sql string) int {
	w.Helper()
	pid, err := strconv.Atoi(w.query(sql)[0])
	if err != nil {
		w.Fatal(err)
	}
	return pid
}

func signal(t testing.TB, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

// What is written while the table is out of the publication does not come by
// the slot, though nobody has noticed.
func TestTableThatLeavesThePublicationWhileStreaming(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	w.exec(`ALTER PUBLICATION syncrelay DROP TABLE sync_events`)
	w.insert(grade(2))
	w.exec(`ALTER PUBLICATION syncrelay ADD TABLE sync_events`)
	w.insert(grade(3))
	got(t, c, 3)
	before := w.query(`SELECT xmin::text FROM pg_publication`)
	if _, err := schema.Migrate(t.Context(), w.url, schema.Options{}); err != nil {
		t.Fatal(err)
	}
	if now := w.query(`SELECT xmin::text FROM pg_publication`); !slices.Equal(now, before) {
		t.Error("a migrate that had nothing to do has written the publication")
	}
}

// The database has no room for the journal for a while. A relay that is stopped
// meanwhile must not confirm what it could not journal.
func TestJournalThatCannotBeWrittenForAWhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	w.exec(`CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$`)
	w.exec(`CREATE TRIGGER no_room BEFORE INSERT ON syncrelay.journal EXECUTE FUNCTION no_room()`)
	w.insert(grade(2))
	relaytest.Wait(t, "the relay has failed", func() bool { return r.Status().Phase == relay.Retrying })
	if !r.Status().Serving || c.Ended() != nil {
		t.Errorf("the relay sent its clients away: %v", c.Ended())
	}
	r.stop() // while it fails again and again
	r = w.launch(relay.Options{})
	relaytest.Wait(t, "the second relay has failed", func() bool { return r.Status().Phase == relay.Retrying })
	w.exec(`DROP TRIGGER no_room ON syncrelay.journal`)
	relaytest.Wait(t, "the relay streams", func() bool { return r.Status().Phase == relay.Streaming })
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 1})
	w.insert(grade(3))
	got(t, c, 2)
}

func TestMuchRetainedLogIsAWarningWithNumbers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	r.stop()
	w.waitForFreeSlot()
	w.exec(`CREATE TABLE other (x text); INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 3000)`)
	var log lines
	w.options.Logger = slog.New(slog.NewTextHandler(&log, nil))
	m := outbox.NewMonitor(w.options)
	defer m.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, 1<<20) }()
	relaytest.Wait(t, "there is a warning", func() bool {
		return strings.Contains(log.String(), "level=WARN") && strings.Contains(log.String(), "retained_bytes=") && strings.Contains(log.String(), "limit_bytes=1048576")
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Where the server keeps commit times, a backlog comes in the order of commits,
// and not in that of the rows' ids or times.
func TestBacklogComesInCommitOrderWhereTheServerKeepsCommitTimes(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"track_commit_timestamp": "on"}})
	w := newWorldAt(t, server.URL("postgres"))
	long, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	late, err := outbox.Insert(t.Context(), long, grade(1))
	if err != nil {
		t.Fatal(err)
	}
	want := w.insert(grade(2), grade(3))
	if err := long.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	want = append(append(want, late), w.insert(grade(4))...)
	w.start(relay.Options{})
	if rows := w.journaled(); !slices.Equal(rows, want) {
		t.Errorf("the backlog came as %v, want %v", rows, want)
	}
}
