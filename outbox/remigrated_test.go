package outbox_test

import (
	"strconv"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/schema"
)

// Somebody drops the relay's schema, and the table perhaps, and migrates anew: the
// journal has forgotten the IDs that clients have seen, and the slot is the
// evidence.
func TestJournalMadeAnewDoesNotGiveIDsAgain(t *testing.T) {
	t.Parallel()
	for name, drop := range map[string]string{
		"with the table kept":    `DROP SCHEMA syncrelay CASCADE; DELETE FROM sync_events`,
		"with the table dropped": `DROP SCHEMA syncrelay CASCADE; DROP TABLE sync_events`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.start(relay.Options{})
			w.insert(grade(1), grade(1))
			waitForJournal(w, 2)
			epoch := r.Status().Epoch
			r.stop()
			w.waitForFreeSlot()
			w.exec(drop)
			if _, err := schema.Migrate(t.Context(), w.url, schema.Options{}); err != nil {
				t.Fatal(err)
			}
			r = w.start(relay.Options{})
			c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 2})
			w.insert(grade(2))
			if ids := got(t, c, 1); ids[0] <= 1<<32 {
				t.Errorf("the first event has ID %d, want one that is counted from the clock", ids[0])
			}
			relaytest.Wait(t, "the resume is complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
			if done, _ := relaytest.Last[relay.ReplayComplete](c); !done.Truncated {
				t.Errorf("a client of the old journal is told %+v, want that it is truncated", done)
			}
			if r.Status().Epoch == epoch {
				t.Error("the epoch is the old journal's")
			}
		})
	}
}

// The same under a relay that is running, which knows by itself what it has
// shown, even if the slot is dropped as well.
func TestJournalMadeAnewUnderARunningRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.insert(grade(1), grade(1))
	waitForJournal(w, 2)
	w.exec(`DROP SCHEMA syncrelay CASCADE; DELETE FROM sync_events`)
	relaytest.Wait(t, "the relay has failed", func() bool { return r.Status().Phase != relay.Streaming })
	w.exec(`SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1 AND active`, w.options.Slot)
	w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
	if _, err := schema.Migrate(t.Context(), w.url, schema.Options{}); err != nil {
		t.Fatal(err)
	}
	w.insert(grade(2))
	waitForJournal(w, 1)
	id, err := strconv.ParseInt(w.query(`SELECT event_id::text FROM syncrelay.journal`)[0], 10, 64)
	if err != nil || id <= 1<<32 {
		t.Errorf("the first event has ID %d, want one that is counted from the clock", id)
	}
}
