package outbox_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
)

// written is all that owners write, as text.
func (w *world) written() []string {
	w.Helper()
	return w.query(`SELECT row_to_json(s)::text FROM syncrelay.state s
		UNION ALL (SELECT row_to_json(j)::text FROM syncrelay.journal j ORDER BY event_id)
		UNION ALL (SELECT row_to_json(a)::text FROM syncrelay.journal_audience a ORDER BY event_id, audience)`)
}

// An owner that was deposed while its session lives, lock and all: nothing but
// the tenure's number in each of its statements keeps it from writing, and that
// does.
func TestDeposedOwnerWhoseSessionLivesCanWriteNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	owner, err := journal.Acquire(t.Context(), func(reason string) { t.Errorf("it waits: %s", reason) })
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close()
	batch := func(from int64, durable bool) *relay.Batch {
		now := time.Now()
		return &relay.Batch{
			Events: []*relay.Event{
				relay.NewEvent(from, &relay.Row{ID: from, Type: "a", UserIDs: []int64{5}, CreatedAt: now}, now), // with an audience
				relay.NewEvent(from+1, &relay.Row{ID: from + 1, Type: "a", CadetID: 17, HasCadet: true, CreatedAt: now}, now),
			},
			High: relay.Position{Commit: relay.LSN(from), Ordinal: 1}, Confirm: relay.LSN(from), Durable: durable,
		}
	}
	alone := func(from int64) *relay.Batch { // no audience: another statement
		b := batch(from, false)
		b.Events, b.High.Ordinal = b.Events[1:], 0
		return b
	}
	writes := []struct {
		name string
		do   func() error
	}{
		{"Save", func() error {
			return owner.Save(t.Context(), relay.State{Epoch: "mine", LastID: 7, High: relay.Position{Commit: 7}, Confirmed: 7, Slot: "s", Server: relay.Server{SystemID: "1"}})
		}},
		{"Append", func() error { return owner.Append(t.Context(), batch(10, false)) }},
		{"Append, durable", func() error { return owner.Append(t.Context(), batch(20, true)) }},
		{"Append of events for staff and a cadet", func() error { return owner.Append(t.Context(), alone(30)) }},
		{"Advance", func() error { return owner.Advance(t.Context(), 1000) }},
		{"End", func() error { _, err := owner.End(t.Context(), true); return err }},
	}
	before := w.written()
	for _, write := range writes { // each of them changes something while the owner is the owner
		if err := write.do(); err != nil {
			t.Fatalf("%s: %v", write.name, err)
		}
		after := w.written()
		if slices.Equal(before, after) {
			t.Fatalf("%s changes nothing: this test shows nothing", write.name)
		}
		before = after
	}
	w.exec(`DELETE FROM syncrelay.journal`) // so that the same writes could be made again
	w.exec(`DELETE FROM syncrelay.journal_audience`)
	w.exec(`UPDATE syncrelay.state SET tenure = tenure + 1, epoch = 'theirs', last_event_id = 5, confirmed = '0/5', clean = false`) // as the next owner begins
	before = w.written()
	for _, write := range writes {
		if err := write.do(); !errors.Is(err, relay.ErrFenced) {
			t.Errorf("%s of a deposed owner ends with %v, want %v", write.name, err, relay.ErrFenced)
		}
		if after := w.written(); !slices.Equal(before, after) {
			t.Fatalf("%s of a deposed owner has changed\n%s\nto\n%s", write.name, before, after)
		}
	}
	if _, err := owner.Pulse(t.Context()); err != nil {
		t.Errorf("the deposed owner's session does not live, so this test shows little: %v", err)
	}
}

// One that was deposed before it came to the slot, and then goes on, must not take
// the slot away from the owner of now, nor end its stream.
func TestDeposedOwnerTakesNobodysSlotAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	deposed, err := journal.Acquire(t.Context(), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	known := deposed.State()
	deposed.Close()
	r := w.start(relay.Options{})
	w.insert(grade(1))
	waitForJournal(w, 1)
	slot := func() string {
		return w.query(`SELECT coalesce(active_pid::text, 'idle') || ' ' || catalog_xmin || ' ' || restart_lsn FROM pg_replication_slots WHERE slot_name = '` + w.options.Slot + `'`)[0]
	}
	for _, what := range []string{"the stream that is under way", "the slot that nobody reads from"} {
		before := slot()
		stream, err := outbox.NewSource(w.options).Attach(t.Context(), known)
		if !errors.Is(err, relay.ErrFenced) {
			t.Errorf("a deposed owner that comes to %s gets %v, %v; want %v", what, stream, err, relay.ErrFenced)
		}
		if after := slot(); after != before {
			t.Errorf("after a deposed owner came to %s it is %s, and was %s", what, after, before)
		}
		r.stop()
	}
}
