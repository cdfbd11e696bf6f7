package outbox_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// asRelay makes the world's relays log in as a role of their own, which a test may
// change, with the rights of syncrelay_relay.
func (w *world) asRelay() (role string) {
	w.Helper()
	role = "relay_" + strings.ReplaceAll(w.options.Slot, "-", "_")
	w.exec(`CREATE ROLE ` + role + ` LOGIN REPLICATION IN ROLE syncrelay_relay`)
	w.Cleanup(func() {
		if _, err := w.pool.Exec(context.Background(), `DROP ROLE `+role); err != nil {
			w.Error(err)
		}
	})
	w.options.URL = as(w, role, w.url)
	return role
}

// Rows that the relay is not shown would be lost without a word: it says so
// instead, at its start and wherever it reads.
func TestRowSecurityIsAnErrorAndNoLoss(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, adopted+`ALTER TABLE sync_events ENABLE ROW LEVEL SECURITY`)
	role := w.asRelay()
	w.insert(grade(1))
	if err := w.fails(); !strings.Contains(err.Error(), `ALTER ROLE "`+role+`" BYPASSRLS`) {
		t.Errorf("got %v, want what lets the relay see the rows", err)
	}
	w.exec(`ALTER ROLE ` + role + ` BYPASSRLS`)
	var log lines
	w.options.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
	r := w.start(relay.Options{RingEvents: 1})
	w.insert(grade(2))
	waitForJournal(w, 2)
	w.exec(`ALTER ROLE ` + role + ` NOBYPASSRLS`) // while it runs
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	relaytest.Wait(t, "the relay says that it can't read", func() bool { return strings.Contains(log.String(), "row-level security") })
	if done, ok := relaytest.Last[relay.ReplayComplete](c); ok {
		t.Errorf("the replay is complete with %+v, and the rows are only hidden", done)
	}
	if err := outbox.NewJanitor(w.options, outbox.Retention{}).Once(t.Context()); err == nil || !strings.Contains(err.Error(), "row-level security") {
		t.Errorf("retention ends with %v, want that it can't see the rows", err)
	}
	w.exec(`ALTER ROLE ` + role + ` BYPASSRLS`)
	got(t, c, 2)
}
