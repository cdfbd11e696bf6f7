package outbox_test

import (
	"slices"
	"testing"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
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

func TestArraysOfAnyShapeAreNoPoison(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{RingEvents: 1})
	c := relaytest.Connect(t, r.Relay, relay.Identity{UserID: 4, Role: "b"}, relay.Start{})
	w.exec(`INSERT INTO sync_events (event_type, user_ids) VALUES ('x', '{{1,2},{3,4}}'), ('x', '[5:6]={4,NULL}')`)
	w.exec(`INSERT INTO sync_events (event_type, roles) VALUES ('x', '{{a},{b}}'), ('x', '{}')`)
	w.exec(`INSERT INTO sync_events (event_type, roles) VALUES ('x', '{*}')`)
	got(t, c, 4)
	replayed := relaytest.Connect(t, r.Relay, relay.Identity{UserID: 4, Role: "b"}, relay.Start{Resume: true})
	if ids, live := got(t, replayed, 4), c.Got(); !slices.Equal(ids, live) {
		t.Errorf("a replay brings %v, live came %v", ids, live)
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
