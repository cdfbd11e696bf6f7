package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// What a database has as its defaults for its applications does not hold for the
// relay, whose backlog may take hours.
func TestDefaultsOfTheDatabaseDoNotHoldForTheRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`INSERT INTO sync_events (event_type, payload) SELECT 'x', to_jsonb(repeat(md5(i::text), 4)) FROM generate_series(1, 20000) i`)
	database := w.query(`SELECT current_database()::text`)[0]
	for name, value := range map[string]string{
		"statement_timeout": "20ms", "lock_timeout": "20ms", "default_transaction_read_only": "on",
		"default_transaction_isolation": "serializable", "idle_in_transaction_session_timeout": "20ms",
	} {
		w.exec(fmt.Sprintf(`ALTER DATABASE %s SET %s = '%s'`, database, name, value))
	}
	r := w.launch(relay.Options{Retry: func(int) time.Duration { t.Error("the relay lost its database"); return time.Second }})
	relaytest.Wait(t, "the backlog is journaled", func() bool { return r.Status().Journaled == 20000 && r.Status().Phase == relay.Streaming })
	// A standby waits for longer than the timeouts.
	second := w.launch(relay.Options{Retry: func(int) time.Duration { t.Error("the standby lost its database"); return time.Second }})
	relaytest.Wait(t, "the second relay stands by", func() bool { return second.Status().Phase == relay.Standby })
	r.stop()
	relaytest.Wait(t, "the second relay streams", func() bool { return second.Status().Phase == relay.Streaming })
}

// Writers insert only; but where somebody changes a row all the same, nobody is
// sent what it says now who may not see that.
func TestARowThatWasChangedIsReplayedToThoseWhomItIsForNow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{RingEvents: 1})
	w.insert(grade(1), grade(1), grade(1), grade(1))
	waitForJournal(w, 4)
	w.exec(`UPDATE sync_events SET cadet_id = 2, payload = '{"secret": "of cadet 2"}' WHERE id = 1`)
	w.exec(`UPDATE sync_events SET event_type = 'session_revoked', user_ids = '{7}' WHERE id = 2`)
	cadet := relay.Identity{UserID: 5, Role: "cadet", CadetID: 1, HasCadet: true}
	c := relaytest.Connect(t, r.Relay, cadet, relay.Start{Resume: true})
	got(t, c, 2) // the third and the fourth
	if ids := c.Got(); ids[0] != 3 || ids[1] != 4 {
		t.Errorf("cadet 1 was sent %v, want 3 and 4", ids)
	}
}

// A client that is so slow that retention overtakes it has not asked for a
// replay, and is told all the same.
func TestASlowClientIsToldWhatRetentionTookBeforeItWasSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{RingEvents: 10})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	c.Block()
	const more = 1000
	w.exec(`INSERT INTO sync_events (event_type, cadet_id) SELECT 'grade_update', 1 FROM generate_series(1, $1)`, more)
	waitForJournal(w, 1+more)
	relaytest.Wait(t, "they are shown", func() bool { return r.Status().Head == 1+more })
	janitor := outbox.NewJanitor(w.options, outbox.Retention{Window: time.Millisecond, Interval: time.Hour, Retained: r.Retained})
	w.clean(janitor)
	c.Unblock()
	w.insert(grade(2))
	relaytest.Wait(t, "the client has caught up", func() bool { ids := c.Got(); return ids[len(ids)-1] == 2+more })
	told, ok := relaytest.Last[relay.ReplayComplete](c)
	if !ok || !told.Truncated || told.LastEventID < 1+more {
		t.Errorf("the client got %d events of %d, and was told %+v", len(c.Got()), 2+more, c.Controls())
	}
}

// Only who has done the work says that it was done: a janitor that hangs must
// show.
func TestAJanitorThatLooksOnReportsNoSuccess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	hung, err := w.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Release()
	if _, err := hung.Exec(t.Context(), `SELECT pg_advisory_lock($1, $2)`, 0x73796e63, 0x72746e74); err != nil {
		t.Fatal(err)
	}
	j := w.janitor(r)
	w.clean(j)
	if at := j.Work().LastSuccess; !at.IsZero() {
		t.Errorf("it says that it succeeded at %s", at)
	}
	if _, err := hung.Exec(t.Context(), `SELECT pg_advisory_unlock_all()`); err != nil {
		t.Fatal(err)
	}
	w.clean(j)
	if j.Work().LastSuccess.IsZero() {
		t.Error("it does not say that it has succeeded")
	}
}

// A server that decodes a large transaction of other tables brings nothing for
// long, and connecting anew would make it begin again.
func TestALongTransactionOfOtherTablesIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.options.OwnerTimeout = 20 * time.Second // a busy machine may say nothing for some seconds
	r := w.start(relay.Options{
		StallTimeout: 200 * time.Millisecond, FlushInterval: 20 * time.Millisecond,
		Retry: func(int) time.Duration { t.Error("the stream was broken off"); return time.Second },
	})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.exec(`CREATE TABLE other (a int)`)
	w.exec(`INSERT INTO other SELECT generate_series(1, 1000000)`)
	w.insert(grade(1))
	relaytest.Wait(t, "the row behind it", func() bool {
		w.exec(`INSERT INTO other VALUES (1)`) // the log grows
		return len(c.Got()) == 1
	})
}
