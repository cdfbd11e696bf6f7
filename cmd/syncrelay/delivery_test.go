package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// cadets is how many cadets the random writers write about.
const cadets = 4

// writer writes random transactions: of 1 to 5 rows, with savepoints that are
// rolled back, a tenth of them rolled back whole, and some that begin early and
// commit late. Each row's payload has a text of its own.
func (p *product) writer(ctx context.Context, name string, transactions int, seed uint64) error {
	dice := rand.New(rand.NewPCG(seed, 0))
	var late pgx.Tx // begun early, committed some transactions later
	insert := func(tx pgx.Tx, i, k int) error {
		_, err := tx.Exec(ctx, `INSERT INTO sync_events (event_type, cadet_id, payload) VALUES ('grade_update', $1, jsonb_build_object('n', $2::text))`,
			1+dice.IntN(cadets), fmt.Sprintf("%s/%d/%d", name, i, k))
		return err
	}
	for i := range transactions {
		tx, err := p.pool.Begin(ctx)
		if err != nil {
			return err
		}
		for k := range 1 + dice.IntN(5) {
			if err := insert(tx, i, k); err != nil {
				return err
			}
			if dice.IntN(4) == 0 {
				sub, err := tx.Begin(ctx)
				if err == nil {
					err = errors.Join(insert(sub, i, 100+k), sub.Rollback(ctx))
				}
				if err != nil {
					return err
				}
			}
		}
		switch {
		case dice.IntN(10) == 0:
			err = tx.Rollback(ctx)
		case late == nil && dice.IntN(5) == 0:
			late, err = tx, nil
		case late != nil && dice.IntN(3) == 0:
			err = errors.Join(tx.Commit(ctx), late.Commit(ctx))
			late = nil
		default:
			err = tx.Commit(ctx)
		}
		if err != nil {
			return err
		}
	}
	if late != nil {
		return late.Commit(ctx)
	}
	return nil
}

// write runs some writers at once, until all are through.
func (p *product) write(writers, transactions int) {
	p.Helper()
	seed := rand.Uint64()
	p.Logf("the writers' seed is %d", seed)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			if err := p.writer(p.Context(), fmt.Sprint("writer ", w), transactions, seed+uint64(w)); err != nil {
				p.Errorf("writer %d: %v", w, err)
			}
		})
	}
	wg.Wait()
}

// expected is what the judge says that a client must get, in order: the rows'
// texts, all of them for the staff (cadet 0), else the cadet's own.
func (p *product) expected(cadet int64) (texts []string) {
	p.Helper()
	// A writer whose connection broke may have left a commit under way.
	eventually(p, "no writer is at work any more", func() bool {
		var writing int
		err := p.pool.QueryRow(p.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_xid IS NOT NULL AND application_name <> 'syncrelay'`).Scan(&writing)
		return err == nil && writing == 0
	})
	rows := p.rows()
	for _, id := range p.judge.Committed(p) {
		row, ok := rows[id]
		if !ok {
			p.Fatalf("the judge says that row %d has committed, and it is not there", id)
		}
		if cadet == 0 || *row.Cadet == cadet {
			texts = append(texts, *row.N)
		}
	}
	return texts
}

// check fails unless a client's events are those texts, with ascending IDs.
func check(t testing.TB, who string, events []message, want []string) {
	t.Helper()
	var got []string
	last := int64(0)
	for _, e := range events {
		var data struct {
			N     string `json:"n"`
			Cadet int64  `json:"cadet_id"`
		}
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatalf("%s: data %s: %v", who, e.Data, err)
		}
		if e.EventID <= last || e.CadetID == nil || data.Cadet != *e.CadetID {
			t.Fatalf("%s: after event %d came %+v", who, last, e)
		}
		last = e.EventID
		got = append(got, data.N)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %d events, want %d, or in another order", who, len(got), len(want))
	}
}

func TestEveryClientGetsExactlyTheCommittedRowsItMaySeeInCommitOrder(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	clients := map[string]*follower{}
	for _, transport := range []string{overWebSocket, overSSE} {
		clients[transport+" 0"] = follow(t, transport, p.address(), staffToken(t), -1)
		for cadet := int64(1); cadet <= cadets; cadet++ {
			clients[fmt.Sprint(transport, " ", cadet)] = follow(t, transport, p.address(), cadetToken(t, cadet), -1)
		}
	}
	p.write(6, 80)
	for name, c := range clients {
		var transport string
		var cadet int64
		if _, err := fmt.Sscan(name, &transport, &cadet); err != nil {
			t.Fatal(err)
		}
		want := p.expected(cadet)
		if len(want) < 50 {
			t.Fatalf("only %d rows for cadet %d: the writers wrote too little", len(want), cadet)
		}
		check(t, name, c.await(t, len(want)), want)
	}
}

func TestRandomDisconnectsUnderLoadLeaveNoGapAndNoRepeat(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	const clients = 30
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	written := make(chan struct{})
	got := make([][]message, clients)
	var wg sync.WaitGroup
	for i := range clients {
		cadet := int64(i % (cadets + 1))
		token := staffToken(t)
		if cadet > 0 {
			token = cadetToken(t, cadet)
		}
		wg.Go(func() {
			var last int64
			for final := false; !final && ctx.Err() == nil; {
				select {
				case <-written:
					final = true
				default:
				}
				f, err := tryFollow(ctx, []string{overWebSocket, overSSE}[rand.IntN(2)], p.address(), token, last)
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				if final { // everything was committed before: the replay brings it
					for f.note("replay_complete") == nil && f.failed() == nil {
						time.Sleep(time.Millisecond)
					}
				} else {
					stay := time.NewTimer(time.Duration(rand.IntN(80)) * time.Millisecond)
					<-stay.C
				}
				f.stop()
				events := f.got()
				got[i] = append(got[i], events...)
				if len(events) > 0 {
					last = events[len(events)-1].EventID
				}
			}
		})
	}
	p.write(4, 150)
	journaled := len(p.judge.Committed(t))
	eventually(t, "everything is journaled", func() bool { return p.daemon.relay.Status().Head == int64(journaled) })
	close(written)
	wg.Wait()
	for i := range clients {
		check(t, fmt.Sprint("client ", i), got[i], p.expected(int64(i%(cadets+1))))
	}
}

func TestRoutingTable(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	people := map[string]tokenClaims{
		"admin":    {UserID: 1, Role: "admin"},
		"staff":    {UserID: 2, Role: "training_staff"},
		"cadet 17": {UserID: 5, Role: "cadet", CadetID: 17},
		"cadet 18": {UserID: 6, Role: "cadet", CadetID: 18},
		"parent":   {UserID: 7, Role: "parent"},
	}
	clients := map[string][]*follower{}
	for name, claims := range people {
		for _, transport := range []string{overWebSocket, overSSE} {
			clients[name] = append(clients[name], follow(t, transport, p.address(), sign(t, claims), -1))
		}
	}
	cases := []struct{ row, to string }{
		{`'about a cadet', 17, NULL, NULL`, "admin, cadet 17, staff"},
		{`'to users', NULL, '{5,7}', NULL`, "cadet 17, parent"},
		{`'to a role', NULL, NULL, '{parent}'`, "parent"},
		{`'to everyone', NULL, NULL, '{*}'`, "admin, cadet 17, cadet 18, parent, staff"},
		{`'to all three', 17, '{6,5}', '{parent,cadet}'`, "admin, cadet 17, cadet 18, parent, staff"},
		{`'to nobody in particular', NULL, NULL, NULL`, "admin, staff"},
		{`'with empty lists', NULL, '{}', '{}'`, "admin, staff"},
		{`'with nulls in the lists', NULL, '{NULL,7}', '{NULL}'`, "parent"},
		{`'to a cadet and a user', 18, '{5}', NULL`, "admin, cadet 17, cadet 18, staff"},
		{`'to the staff by their role', NULL, NULL, '{admin}'`, "admin"},
		{`'to a user who is not there', NULL, '{99}', NULL`, ""},
	}
	want := map[string][]string{}
	for _, c := range cases {
		p.exec(`INSERT INTO sync_events (event_type, cadet_id, user_ids, roles) VALUES (` + c.row + `)`)
		for name := range people {
			if slices.Contains(strings.Split(c.to, ", "), name) {
				want[name] = append(want[name], strings.Split(c.row, "'")[1])
			}
		}
	}
	p.exec(`SELECT broadcast_notification(5, '{"title": "hi"}')`)
	want["cadet 17"] = append(want["cadet 17"], "notification")
	p.exec(`SELECT broadcast_sync_event('the end', '{}', roles => '{*}')`) // everybody has passed all the others
	for name, both := range clients {
		want[name] = append(want[name], "the end")
		for _, c := range both {
			var got []string
			for _, e := range c.await(t, len(want[name])) {
				got = append(got, e.Type)
			}
			if !slices.Equal(got, want[name]) {
				t.Errorf("%s over %s got %q, want %q", name, c.transport, got, want[name])
			}
		}
	}
}

func TestPayloadsAreDeliveredTrue(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	large, err := json.Marshal(map[string]string{"blob": strings.Repeat("0123456789abcdef", 900<<10/16)})
	if err != nil {
		t.Fatal(err)
	}
	payloads := []string{
		string(large),
		strings.Repeat(`{"a":[`, 400) + `1` + strings.Repeat(`]}`, 400),
		`{"text": "Zoë, 日本語, 🎖, \u0001, \"quoted\", back\\slash, </script>, ` + "\u2028" + `"}`,
		`null`, `[1, "two", null, {"three": 3}]`, `42`, `-1.5e-7`, `123456789012345678901234567890.123456789`, `"text"`, `true`, `{}`,
		`{"line": "one\ntwo\r\nthree"}`, `{"type": "pong", "event_id": 7}`, `{"cadet_id": 99}`,
	}
	ws, sse := follow(t, overWebSocket, p.address(), staffToken(t), -1), follow(t, overSSE, p.address(), staffToken(t), -1)
	for _, payload := range payloads {
		p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', $1::text::jsonb)`, payload)
	}
	for _, c := range []*follower{ws, sse, follow(t, overSSE, p.address(), staffToken(t), 0)} {
		for i, e := range c.await(t, len(payloads)) {
			var got, want any
			if err := errors.Join(unmarshalExactly(e.Data, &got), unmarshalExactly([]byte(payloads[i]), &want)); err != nil {
				t.Fatal(err)
			}
			if e.Type != "x" || !reflect.DeepEqual(got, want) {
				t.Errorf("over %s payload %.80s came as %.80s", c.transport, payloads[i], e.Data)
			}
		}
	}
}

// unmarshalExactly keeps numbers as they are written. jsonb writes them out.
func unmarshalExactly(text []byte, into *any) error {
	d := json.NewDecoder(strings.NewReader(strings.ReplaceAll(string(text), "-1.5e-7", "-0.00000015")))
	d.UseNumber()
	return d.Decode(into)
}

func TestRowsOfBeforeTheFirstStartComeToAClientThatAsksFromZero(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.write(2, 30)
	p.start()
	want := p.expected(0)
	f := follow(t, overWebSocket, p.address(), staffToken(t), 0)
	events := f.await(t, len(want))
	// Their commit order is not known any more: each comes once.
	var got []string
	for _, e := range events {
		var data struct{ N string }
		if err := json.Unmarshal(e.Data, &data); err != nil {
			t.Fatal(err)
		}
		got = append(got, data.N)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %d rows, want %d", len(got), len(want))
	}
	eventually(t, "replay_complete", func() bool { return f.note("replay_complete") != nil })
	if done := f.note("replay_complete"); done.Count != int64(len(want)) || done.Truncated {
		t.Errorf("replay_complete says %+v, want a count of %d", done, len(want))
	}
}
