package outbox_test

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// bomb is a row of a few kilobytes whose payload is more than a gigabyte when it
// is written out, which is more than the server can send.
const bomb = `INSERT INTO sync_events (event_type, payload) SELECT 'x', jsonb_agg(1e131071::numeric) FROM generate_series(1, 9000)`

// adopted is a table that holds what our own would refuse.
const adopted = `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type text, payload jsonb, created_at timestamptz NOT NULL DEFAULT now());`

// inEncoding makes a world whose database has another encoding than UTF-8, on a
// server of its own.
func inEncoding(t *testing.T, encoding string) *world {
	t.Helper()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"fsync": "off"}})
	base := openWorld(t, server.URL("postgres"))
	base.exec(`CREATE DATABASE other ENCODING '` + encoding + `' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	return newWorldAt(t, server.URL("other"))
}

// failures counts what the relay says has failed.
type failures struct {
	rows, recovered atomic.Int64
}

func (f *failures) Assigned(string)      {}
func (f *failures) Replaced()            {}
func (f *failures) NewEpoch()            {}
func (f *failures) Replayed(bool, int64) {}
func (f *failures) Recovered(n int64)    { f.recovered.Add(n) }
func (f *failures) Failed(component string) {
	if component == "row" {
		f.rows.Add(1)
	}
}

// A row that the server itself can't send stops nothing: it is numbered, told of,
// and sent to nobody, and what is around it is delivered.
func TestRowThatTheServerCannotSendStopsNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		world func(t *testing.T) *world
		bad   string
	}{
		"too large when written out": {func(t *testing.T) *world { return newWorldWith(t, adopted) }, bomb},
		"a character without a form in UTF-8": {func(t *testing.T) *world { return inEncoding(t, "WIN1252") },
			`INSERT INTO sync_events (event_type, payload) VALUES ('x', to_jsonb(chr(129)))`},
		"bytes that are no UTF-8": {func(t *testing.T) *world { return inEncoding(t, "SQL_ASCII") },
			`INSERT INTO sync_events (event_type, payload) VALUES ('x', ('"' || convert_from('\xe9', 'SQL_ASCII') || '"')::jsonb)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := c.world(t)
			var log lines
			var failed failures
			w.options.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
			w.insert(grade(1))
			w.exec(c.bad)
			w.insert(grade(2))
			r := w.start(relay.Options{Observer: &failed}) // it is there already
			waitForJournal(w, 3)
			client := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
			got(t, client, 2)
			w.insert(grade(3))
			w.exec(c.bad) // and comes by the stream
			w.insert(grade(4))
			w.insert(grade(5), grade(6))
			ids := got(t, client, 6)
			if rows, want := w.journaled(), []int64{1, 2, 3, 4, 5, 6, 7, 8}; !slices.Equal(rows, want) {
				t.Errorf("journaled %v, want %v", rows, want)
			}
			for _, id := range []int64{2, 5} {
				if !strings.Contains(log.String(), fmt.Sprintf(`msg="a row is not sent" row_id=%d`, id)) {
					t.Errorf("the log does not say that row %d is not sent", id)
				}
			}
			if n := failed.rows.Load(); n != 2 {
				t.Errorf("%d rows were counted as failed, want 2", n)
			}
			r.stop()
			r = w.start(relay.Options{RingEvents: 1}) // which reads the newest events back
			again := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
			if back := got(t, again, 6); !slices.Equal(back, ids) {
				t.Errorf("a replay brings %v, live came %v", back, ids)
			}
			if done, _ := relaytest.Last[relay.ReplayComplete](again); done.Truncated {
				t.Error("the client was told of a gap, although it has all that is for it")
			}
		})
	}
}

// A backlog in which one row in seven, behind a good beginning, can't be sent: all
// are numbered once and in order, over several questions' worth of rows.
func TestBacklogWithManyRowsThatCannotBeSent(t *testing.T) {
	t.Parallel()
	w := inEncoding(t, "WIN1252")
	w.exec(`INSERT INTO sync_events (event_type, created_at, payload)
		SELECT 'x', now() - n % 3 * interval '1 day', CASE WHEN n > 50 AND n % 7 IN (0, 1) AND n < 400 THEN to_jsonb(chr(129)) ELSE to_jsonb(n) END
		  FROM generate_series(1, 450) n`) // in several partitions, and two in a row
	bad := 0
	for n := 51; n < 400; n++ {
		if n%7 <= 1 {
			bad++
		}
	}
	var failed failures
	r := w.start(relay.Options{Observer: &failed})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	got(t, c, 450-bad)
	rows := w.journaled()
	if len(rows) != 450 || !slices.IsSorted(rows) || len(slices.Compact(rows)) != 450 {
		t.Errorf("%d events were journaled, want 450, in the rows' order and each once", len(rows))
	}
	if n := failed.rows.Load(); n != int64(bad) {
		t.Errorf("%d rows were counted as failed, want %d", n, bad)
	}
	if n := w.query(`SELECT count(*)::text FROM syncrelay.journal WHERE NOT staff`)[0]; n != fmt.Sprint(bad) {
		t.Errorf("%s events are for nobody, want %d", n, bad)
	}
}

// Somebody has made of a row that was sent one that can't be: a replay must not
// stop at it for ever.
func TestRowThatCannotBeReadBackIsAGap(t *testing.T) {
	t.Parallel()
	w := inEncoding(t, "WIN1252")
	r := w.start(relay.Options{RingEvents: 1})
	w.insert(grade(1), grade(2), grade(3), grade(4), grade(5))
	waitForJournal(w, 5)
	w.exec(`UPDATE sync_events SET payload = to_jsonb(chr(129)) WHERE cadet_id IN (2, 3)`)
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	if ids := got(t, c, 3); !slices.Equal(ids, []int64{1, 4, 5}) {
		t.Errorf("a replay brings %v, want 1, 4 and 5", ids)
	}
	relaytest.Wait(t, "the replay is complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
	if done, _ := relaytest.Last[relay.ReplayComplete](c); !done.Truncated {
		t.Error("the client was not told that events are missing")
	}
	r.stop()
	r = w.start(relay.Options{Retry: func(int) time.Duration { return time.Second }})
	c = relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 3})
	got(t, c, 2)
}
