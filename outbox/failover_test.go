package outbox_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// copyOf copies a server's files while it is down.
func copyOf(t *testing.T, s *localpg.Server) (dir string) {
	t.Helper()
	parent, err := os.MkdirTemp("", "syncrelay-copy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(parent) })
	if err := os.Chmod(parent, 0o755); err != nil { // the server may be another user's
		t.Fatal(err)
	}
	dir = filepath.Join(parent, "data")
	if out, err := exec.Command("cp", "-a", s.DataDir(), dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the data directory: %v: %s", err, out)
	}
	return dir
}

// follow makes a standby of a copy.
func follow(t *testing.T, dir string, primary *localpg.Server, more ...string) {
	t.Helper()
	settings := fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%d user=postgres dbname=postgres'\n", primary.Port()) + strings.Join(more, "\n")
	for name, text := range map[string]string{"standby.signal": "", "postgresql.auto.conf": settings} {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil { // the server may be another user's
			t.Fatal(err)
		}
	}
}

func shutDown(t *testing.T, s *localpg.Server) {
	t.Helper()
	if err := s.Shutdown(t.Context(), localpg.Fast); err != nil {
		t.Fatal(err)
	}
}

func startAgain(t *testing.T, s *localpg.Server) {
	t.Helper()
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// truncated waits for the answer to a resume, and wants the client to be told
// that it must refetch.
func truncated(t *testing.T, c *relaytest.Client) {
	t.Helper()
	relaytest.Wait(t, "the client is told that its cursor can't be compared", func() bool {
		done, ok := relaytest.Last[relay.ReplayComplete](c)
		return ok && done.Truncated
	})
}

// A standby that lacks the last of the log is promoted. What was shown of that
// is gone, and its IDs must never name other rows.
func TestPromotedStandbyThatLacksTheLastRowsGivesNoIDAgain(t *testing.T) {
	t.Parallel()
	primary := pgtest.Own(t, localpg.Options{})
	w := newWorldAt(t, primary.URL("postgres"))
	r := w.start(relay.Options{})
	w.insert(grade(1), grade(1), grade(1))
	waitForJournal(w, 3)
	r.stop()
	shutDown(t, primary)
	dir := copyOf(t, primary)
	startAgain(t, primary)
	w.pool.Reset()
	// As pg_basebackup leaves them out: a slot is its own server's.
	if err := os.RemoveAll(filepath.Join(dir, "pg_replslot", "postgres")); err != nil {
		t.Fatal(err)
	}
	follow(t, dir, primary)
	standby := pgtest.Own(t, localpg.Options{DataDir: dir})
	s := openWorld(t, standby.URL("postgres"))

	r = w.start(relay.Options{})
	epoch := r.Status().Epoch
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(2), grade(2))
	got(t, c, 2)
	relaytest.Wait(t, "the standby has the rows and their journal", func() bool {
		return s.query(`SELECT concat(count(*), ' ', (SELECT count(*) FROM syncrelay.journal)) FROM sync_events`)[0] == "5 5"
	})
	s.exec(`ALTER SYSTEM SET primary_conninfo = ''`)
	s.exec(`SELECT pg_reload_conf()`)
	relaytest.Wait(t, "the standby is cut off", func() bool { return len(s.query(`SELECT status FROM pg_stat_wal_receiver`)) == 0 })
	w.insert(grade(3), grade(3), grade(3))
	shown := got(t, c, 5)
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	r.stop()

	s.exec(`SELECT pg_promote()`)
	r = s.start(relay.Options{})
	if r.Status().Epoch == epoch {
		t.Error("the epoch is the old one")
	}
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: shown[4]})
	truncated(t, c)
	s.insert(grade(4))
	if ids := got(t, c, 1); ids[0] <= shown[4] {
		t.Errorf("event %d was shown, and another row is event %d", shown[4], ids[0])
	}
	all := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	got(t, all, 6)
}

// From version 17 on a standby keeps a copy of the slot. After its promotion the
// relay goes on by that copy, without another slot and without reading the table.
// The epoch is new all the same: a standby may lack what was shown, and nobody can
// tell afterwards whether this one does.
func TestSlotThatAStandbyKeepsIsGoneOnByAfterItsPromotion(t *testing.T) {
	t.Parallel()
	primary := pgtest.Own(t, localpg.Options{})
	if primary.Version() < 17 {
		t.Skip("standbys keep copies of logical slots from PostgreSQL 17 on")
	}
	w := newWorldAt(t, primary.URL("postgres"))
	w.exec(`SELECT pg_create_physical_replication_slot('standby', true)`)
	shutDown(t, primary)
	dir := copyOf(t, primary)
	startAgain(t, primary)
	w.pool.Reset()
	if err := os.RemoveAll(filepath.Join(dir, "pg_replslot", "standby")); err != nil {
		t.Fatal(err)
	}
	follow(t, dir, primary, "primary_slot_name = 'standby'", "sync_replication_slots = on", "hot_standby_feedback = on")
	standby := pgtest.Own(t, localpg.Options{DataDir: dir})
	s := openWorld(t, standby.URL("postgres"))

	r := w.start(relay.Options{})
	epoch := r.Status().Epoch
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	rows := 0
	relaytest.Wait(t, "the standby has a copy of the slot", func() bool {
		w.insert(grade(1)) // the slot has to move on for it
		w.exec(`SELECT pg_log_standby_snapshot()`)
		rows++
		got(t, c, rows)
		written := w.query(`SELECT pg_current_wal_lsn()::text`)[0]
		w.insert(grade(1))
		rows++
		w.awaitQuery(`SELECT 'it has' FROM pg_replication_slots WHERE slot_name = 'postgres' AND confirmed_flush_lsn >= $1::text::pg_lsn`, written)
		return len(s.query(`SELECT slot_name::text FROM pg_replication_slots WHERE synced AND NOT temporary`)) == 1
	})
	shown := got(t, c, rows)
	r.stop()
	w.insert(grade(2), grade(2)) // during the failover
	relaytest.Wait(t, "the standby has all rows", func() bool {
		return s.query(`SELECT count(*)::text FROM sync_events`)[0] == strconv.Itoa(rows+2)
	})
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	s.exec(`SELECT pg_promote()`)
	r = s.start(relay.Options{})
	if kept := s.query(`SELECT synced::text FROM pg_replication_slots WHERE slot_name = 'postgres'`); len(kept) != 1 || kept[0] != "true" {
		t.Errorf("the slot was made anew: synced is %v", kept)
	}
	if r.Status().Epoch == epoch {
		t.Error("the epoch is the old one")
	}
	resumed := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: shown[rows-1]})
	truncated(t, resumed)
	all := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	s.insert(grade(3))
	ids := got(t, all, rows+3)
	if ids[rows] <= shown[rows-1] {
		t.Errorf("event %d was shown, and another row is event %d", shown[rows-1], ids[rows])
	}
	if !slices.Equal(ids[:rows], shown) {
		t.Errorf("the rows of before the failover have IDs %v, and were shown as %v", ids[:rows], shown)
	}
}

// The files of the server are put back as they were earlier, journal, log and
// all, and no timeline tells of it.
func TestFilesPutBackGiveNoIDAgain(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{})
	w := newWorldAt(t, server.URL("postgres"))
	r := w.start(relay.Options{})
	w.insert(grade(1), grade(1), grade(1))
	waitForJournal(w, 3)
	r.stop()
	shutDown(t, server)
	dir := copyOf(t, server)
	startAgain(t, server)
	w.pool.Reset()
	r = w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	for range 3 {
		w.insert(grade(2))
	}
	shown := got(t, c, 3)
	r.stop()
	shutDown(t, server)
	if err := os.RemoveAll(server.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, server.DataDir()); err != nil {
		t.Fatal(err)
	}
	startAgain(t, server)
	w.pool.Reset()

	r = w.start(relay.Options{})
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: shown[2]})
	relaytest.Wait(t, "a client of the time that is forgotten is told", func() bool {
		f, ok := relaytest.Last[relay.Failure](c)
		return ok && f.Code == relay.CodeInvalidLastEventID
	})
	for range 3 {
		w.insert(grade(3))
	}
	if ids := got(t, c, 3); ids[0] <= shown[2] {
		t.Errorf("events %v were shown, and other rows are events %v", shown, ids)
	}
}

// The server gives the slot up because it kept too much log for it.
func TestSlotThatTheServerGaveUpLosesNothing(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{
		"max_slot_wal_keep_size": "16MB", "min_wal_size": "32MB", "max_wal_size": "32MB",
	}})
	w := newWorldAt(t, server.URL("postgres"))
	r := w.start(relay.Options{})
	w.insert(grade(1))
	waitForJournal(w, 1)
	epoch := r.Status().Epoch
	r.stop()
	w.waitForFreeSlot()
	w.insert(grade(2))
	w.exec(`CREATE TABLE other (x text)`)
	relaytest.Wait(t, "the slot is lost", func() bool {
		w.exec(`INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 20000)`)
		w.exec(`SELECT pg_switch_wal()`)
		w.exec(`CHECKPOINT`)
		return w.query(`SELECT wal_status FROM pg_replication_slots`)[0] == "lost"
	})
	w.insert(grade(3))
	r = w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 1})
	w.insert(grade(4))
	got(t, c, 3)
	if r.Status().Epoch != epoch {
		t.Error("the epoch changed although every ID can be compared")
	}
}

// A fast shutdown waits for the relay's connection to confirm everything: it
// must do so, or the operator waits for the server.
func TestFastShutdownDoesNotWaitForTheRelay(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{})
	w := newWorldAt(t, server.URL("postgres"))
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.exec(`INSERT INTO sync_events (event_type) SELECT 'x' FROM generate_series(1, 20000)`)
	relaytest.Wait(t, "the relay is in the middle of it", func() bool { return len(c.Got()) > 0 })
	w.pool.Close()
	begun := time.Now()
	shutDown(t, server)
	t.Logf("the shutdown took %s", time.Since(begun))
	if took := time.Since(begun); took > 10*time.Second { // less than wal_sender_timeout
		t.Errorf("the shutdown took %s", took)
	}
	startAgain(t, server)
	got(t, c, 20000)
	relaytest.Wait(t, "the relay streams again", func() bool { return r.Status().Phase == relay.Streaming })
}
