package outbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// noLimit is room for everything.
const noLimit = "unlimited"

// room is how far the server's processes may write into a file. What is beyond
// it fails as on a full disk, in the same places of the server, and needs no disk
// to be filled and no right to mount one.
func room(t *testing.T, w *world, s *localpg.Server, bytes string) {
	t.Helper()
	prlimit, err := exec.LookPath("prlimit")
	if err != nil {
		t.Skip("the room of a running server is limited by prlimit (of util-linux), which is not installed")
	}
	name := filepath.Join(s.DataDir(), "postmaster.pid")
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	owner, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(file), "\n")
	// The first process gives its limit to those that it starts from now on.
	for _, pid := range append([]string{first}, w.query(`SELECT pid::text FROM pg_stat_activity`)...) {
		limit := exec.Command(prlimit, "--pid", pid, "--fsize="+bytes+":")
		if as := owner.Sys().(*syscall.Stat_t); os.Geteuid() == 0 { // which may lack the right to limit another user's
			limit.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as.Uid, Gid: as.Gid}}
		}
		if out, err := limit.CombinedOutput(); err != nil && !strings.Contains(string(out), "No such process") {
			t.Fatalf("limit the files of process %s: %v: %s", pid, err, out)
		}
	}
}

// said counts what the server has written to its log.
func said(t *testing.T, s *localpg.Server, text string) int {
	t.Helper()
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(log), text)
}

// The journal can't grow: the transaction that is being journaled is in the
// journal in part, and waits there, with all clients, until there is room.
func TestJournalThatHasNoRoomGoesOnWhenThereIsSome(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{})
	w := newWorldAt(t, server.URL("postgres"))
	w.exec(`ALTER TABLE syncrelay.journal SET (fillfactor = 10)`) // of all files, it comes to the limit first
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	room(t, w, server, "16777216") // a segment of the log must have its room
	const rows = 40_000
	w.exec(`INSERT INTO sync_events (event_type) SELECT 'x' FROM generate_series(1, $1::int)`, rows)
	relaytest.Wait(t, "the relay has failed", func() bool { return r.Status().Phase == relay.Retrying })
	relaytest.Wait(t, "it fails again and again", func() bool { return said(t, server, "could not extend file") > 2 })
	journaled := len(w.journaled())
	if journaled < 2 || journaled > rows {
		t.Fatalf("%d rows have been journaled: this test shows little", journaled)
	}
	if !r.Status().Serving || c.Ended() != nil {
		t.Errorf("the relay sent its clients away: %v", c.Ended())
	}
	resumed := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	got(t, resumed, journaled) // what there is can be read
	room(t, w, server, noLimit)
	got(t, c, 1+rows)
	got(t, resumed, 1+rows)
	if left := len(w.journaled()); left != 1+rows {
		t.Errorf("%d rows have been journaled, want %d", left, 1+rows)
	}
}

// The log can't grow: the server panics, can't recover, and is down until somebody
// makes room.
func TestServerWhoseLogHasNoRoomIsWaitedFor(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{})
	w := newWorldAt(t, server.URL("postgres"))
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	room(t, w, server, "8192")
	if _, err := w.pool.Exec(t.Context(), `INSERT INTO sync_events (event_type) VALUES ('lost')`); err == nil {
		t.Fatal("a row could be committed without room for it")
	}
	relaytest.Wait(t, "the relay has failed", func() bool { return r.Status().Phase == relay.Retrying })
	relaytest.Wait(t, "the server is down", func() bool { return said(t, server, "database system is shut down") > 0 })
	if !r.Status().Serving || c.Ended() != nil {
		t.Errorf("the relay sent its clients away: %v", c.Ended())
	}
	if err := server.Kill(); err != nil { // what may be left of it
		t.Fatal(err)
	}
	startAgain(t, server)
	w.pool.Reset()
	w.insert(grade(2))
	ids := got(t, c, 2)
	if rows := w.query(`SELECT event_type FROM sync_events JOIN syncrelay.journal ON row_id = id WHERE event_id = $1`, ids[1]); len(rows) != 1 || rows[0] != "grade_update" {
		t.Errorf("the second event is of %q, want the row of after the crash", rows)
	}
}
