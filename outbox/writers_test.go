package outbox_test

import (
	"slices"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// What the guides say that comes of rows that are not simply inserted.
func TestWhatTheGuidesSayOfBackdatedAndMovedRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.insert(grade(1))
	w.insert(grade(2))
	waitForJournal(w, 2)
	w.exec(`UPDATE sync_events SET created_at = created_at + interval '2 days' WHERE cadet_id = 2`)
	waitForJournal(w, 3)
	if rows := w.journaled(); !slices.Equal(rows, []int64{1, 2, 2}) {
		t.Errorf("journaled %v, want the row that was moved twice", rows)
	}
	w.old(365, 1)
	waitForJournal(w, 4)
	w.clean(w.janitor(r))
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 1})
	relaytest.Wait(t, "the resume is complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
	if done, _ := relaytest.Last[relay.ReplayComplete](c); !done.Truncated {
		t.Errorf("a client from before the backdated row is told %+v, want that it is truncated", done)
	}
}
