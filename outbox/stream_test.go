package outbox_test

import (
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// The journal is kept waiting for longer than the server waits for an answer of
// the relay's: the stream stops, and the session lives.
func TestKeepalivesAreAnsweredWhileTheJournalIsKeptWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.options.OwnerTimeout = 3 * time.Second // and wal_sender_timeout with it
	r := w.start(relay.Options{BatchEvents: 10})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	senders := func() string {
		return w.query(`SELECT coalesce(max(active_pid), 0)::text FROM pg_replication_slots WHERE slot_name = $1`, w.options.Slot)[0]
	}
	relaytest.Wait(t, "the slot's session is known", func() bool { return senders() != "0" })
	before := senders()
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT * FROM syncrelay.state FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO sync_events (event_type, payload) SELECT 'bulk', to_jsonb(repeat('x', 1000)) FROM generate_series(1, 20000)`)
	blocked := time.Now()
	relaytest.Wait(t, "seven seconds have passed", func() bool { return time.Since(blocked) > 7*time.Second })
	if n := len(c.Got()); n > 0 {
		t.Errorf("%d events were shown before they were journaled", n)
	}
	if now := senders(); now != before {
		t.Errorf("the slot's session was %s and is %s", before, now)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	got(t, c, 20000)
}

// A database that writes, but not into our table, must not keep its log for us.
func TestSlotMovesOnWhenOthersWriteAndIsFoundAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.exec(`CREATE TABLE other (x text)`)
	w.exec(`INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 2000)`)
	at := w.query(`SELECT pg_current_wal_lsn()::text`)[0]
	relaytest.Wait(t, "the slot has moved on", func() bool {
		return w.query(`SELECT (pg_wal_lsn_diff($2::text::pg_lsn, confirmed_flush_lsn) < 100000)::text FROM pg_replication_slots WHERE slot_name = $1`, w.options.Slot, at)[0] == "true"
	})
	r.stop()
	w.waitForFreeSlot()
	again := w.start(relay.Options{})
	if e, was := again.Status().Epoch, r.Status().Epoch; e != was {
		t.Errorf("the epoch changed from %s to %s", was, e)
	}
	if rows := w.query(`SELECT backlog::text FROM syncrelay.state`)[0]; rows != "false" {
		t.Error("the backlog was not read through")
	}
}

// The server's log is that of all its databases: a slot must not keep what others
// write. And where nobody writes, the relay must not write either: moving the
// slot's position on is a write itself, which would be the reason for the next.
func TestSlotMovesOnWhenOtherDatabasesWriteAndTheLogRestsAfterwards(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"autovacuum": "off", "fsync": "off"}})
	w := newWorldAt(t, server.URL("postgres"))
	w.start(relay.Options{})
	w.exec(`CREATE DATABASE other`)
	other := openWorld(t, server.URL("other"))
	other.exec(`CREATE TABLE other (x text)`)
	other.exec(`INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 3000)`)
	at := w.query(`SELECT pg_current_wal_lsn()::text`)[0]
	relaytest.Wait(t, "the slot has moved on", func() bool {
		return w.query(`SELECT (pg_wal_lsn_diff($2::text::pg_lsn, confirmed_flush_lsn) < 100000)::text FROM pg_replication_slots WHERE slot_name = $1`, w.options.Slot, at)[0] == "true"
	})
	end, since := "", time.Now()
	relaytest.Wait(t, "the log has not grown for forty times the flush interval", func() bool {
		if now := w.query(`SELECT pg_current_wal_insert_lsn()::text`)[0]; now != end {
			end, since = now, time.Now()
		}
		return time.Since(since) > 2*time.Second
	})
}

func TestSessionsThatAreEndedComeBackAndClientsStay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	for i, which := range []string{
		`SELECT pg_terminate_backend(pid, 5000)::text FROM pg_stat_replication WHERE pid = (SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1)`,
		`SELECT pg_terminate_backend(pid, 5000)::text FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = 1919705465 AND $1 <> ''
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
	} {
		w.insert(grade(1))
		ended := 0 // a relay that has nothing to catch up with says that it streams before the server does
		relaytest.Wait(t, "a session is ended", func() bool {
			ended = len(w.query(which, w.options.Slot))
			return ended > 0
		})
		if ended != 1 {
			t.Fatalf("%d sessions were ended, want one", ended)
		}
		w.insert(grade(2))
		got(t, c, 2*(i+1))
	}
	if ids := c.Got(); ids[3] != 4 {
		t.Errorf("the IDs are %v, want 1 to 4", ids)
	}
}
