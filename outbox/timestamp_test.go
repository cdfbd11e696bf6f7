package outbox_test

import (
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// Whatever year a writer gives, live and replay say the same, and the journal
// finds the row again.
func TestYearsThatNobodyLivesInAreTheSameLiveAndReplayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{RingEvents: 1})
	var live, replayed keeper
	sub, err := r.Subscribe(admin, &live, relay.Start{})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	for _, at := range []string{"294276-12-31 23:59:59.999999+00", "294247-01-10 04:00:55+00", "294246-12-31+00", "4713-01-01 BC", "0001-01-01+00", "9999-12-31 23:59:59.999999+00"} {
		w.exec(`INSERT INTO sync_events (event_type, created_at) VALUES ('x', $1::text::timestamptz)`, at)
	}
	w.insert(grade(1))
	relaytest.Wait(t, "all are delivered", func() bool { return strings.Contains(live.String(), "grade_update") })
	again, err := r.Subscribe(admin, &replayed, relay.Start{Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	relaytest.Wait(t, "all are replayed", func() bool { return strings.Contains(replayed.String(), "grade_update") })
	if live.String() != replayed.String() {
		t.Errorf("live came\n%s\nand a replay brings\n%s", live.String(), replayed.String())
	}
	if n := strings.Count(live.String(), `"timestamp":"9999-12-31T23:59:59.999999Z"`); n != 4 {
		t.Errorf("%d events have the last moment that RFC 3339 can write, want 4:\n%s", n, live.String())
	}
	if lost := w.query(`SELECT created_at::text FROM sync_events s WHERE NOT EXISTS (SELECT FROM syncrelay.journal j WHERE j.row_id = s.id AND j.created_at = s.created_at)`); len(lost) > 0 {
		t.Errorf("the journal does not find the rows of %v", lost)
	}
}
