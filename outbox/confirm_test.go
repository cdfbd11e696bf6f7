package outbox_test

import (
	"slices"
	"syscall"
	"testing"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// The journal's commits do not wait for the disk, and here the server does not
// write them there by itself. The rows come by the slot, are journaled and shown,
// and the slot stays where it is, however often the relay reports: what the
// power cut takes from the journal must come again.
func TestSlotIsNotConfirmedPastWhatIsOnDisk(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"autovacuum": "off"}})
	w := newWorldAt(t, server.URL("postgres"))
	r := w.start(relay.Options{})
	r.stop()
	w.waitForFreeSlot()
	// Nobody else writes meanwhile: the log ends where the row's transaction does.
	const rows = 20
	var ids []int64
	var ends []string
	for range rows {
		ids = append(ids, w.insert(grade(1))...)
		ends = append(ends, w.query(`SELECT pg_current_wal_insert_lsn()::text`)...)
	}
	signal(t, w.pid(`SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'walwriter'`), syscall.SIGSTOP)
	r = w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	got(t, c, rows)
	shown := w.query(`SELECT now()::text`)[0]
	w.awaitQuery(`SELECT 'it has reported' FROM pg_stat_replication WHERE reply_time > $1::timestamptz + interval '2.5 s'`, shown)
	confirmed := w.query(`SELECT confirmed_flush_lsn::text FROM pg_replication_slots`)[0]
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	startAgain(t, server)
	w.pool.Reset()
	onDisk := w.journaled()
	if len(onDisk) == rows {
		t.Fatal("the crash took nothing from the journal: this test shows nothing")
	}
	for i, id := range ids {
		past := w.query(`SELECT ($1::text::pg_lsn <= $2::text::pg_lsn)::text`, ends[i], confirmed)[0]
		if past == "true" && !slices.Contains(onDisk, id) {
			t.Errorf("the slot was confirmed up to %s, and row %d of before %s is not in the journal on disk", confirmed, id, ends[i])
		}
	}
	w.start(relay.Options{})
	w.awaitQuery(`SELECT 'it moves on' FROM pg_replication_slots WHERE confirmed_flush_lsn >= $1::text::pg_lsn`, ends[rows-1])
	if again := w.journaled(); !slices.Equal(again, ids) {
		t.Errorf("the journal has rows %v, want %v", again, ids)
	}
}
