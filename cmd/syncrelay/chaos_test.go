package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

// For a long run: go test -run Chaos -timeout 0 ./cmd/syncrelay -chaos=10m
var (
	chaosFor  = flag.Duration("chaos", 8*time.Second, "how long TestChaos kills relays and servers")
	chaosSeed = flag.Uint64("chaos-seed", 0, "the seed of TestChaos, for repeating a run; 0 for a random one")
)

// chaos is a run of TestChaos.
type chaos struct {
	*product
	server  *localpg.Server
	address string
	relays  int // kills of the relay, and of the server
	servers int
}

// The relay's process and the server's are killed again and again while writers
// write and clients come back with their last event ID. At the end an independent
// slot says what every client must have been sent: each row once, in commit
// order, with IDs that no other row has.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("the seed is %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	c := newChaos(t)
	first := c.launch()
	first.ready(c.address) // a backlog would not come in commit order
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	var writers, clients sync.WaitGroup
	for w := range 4 {
		writers.Go(func() { c.keepWriting(ctx, fmt.Sprint("writer ", w), seed+uint64(w)) })
	}
	end, finish := context.WithCancel(t.Context())
	defer finish()
	got := make([]*comer, 10)
	for i := range got {
		got[i] = &comer{cadet: int64(i % (cadets + 1)), transport: []string{overWebSocket, overSSE}[i%2]}
		clients.Go(func() { got[i].keepComing(end, c) })
	}
	c.rage(first, dice, time.Now().Add(*chaosFor))
	calm()
	writers.Wait()
	for _, g := range got {
		want := c.expected(g.cadet)
		eventually(t, fmt.Sprintf("a client of cadet %d over %s has its %d rows, it has %d", g.cadet, g.transport, len(want), g.count()), func() bool { return g.count() >= len(want) })
	}
	finish()
	clients.Wait()
	names := map[int64]string{}
	for i, g := range got {
		who := fmt.Sprintf("client %d of cadet %d over %s", i, g.cadet, g.transport)
		for _, note := range g.notes {
			if note.Type == "error" && note.LastEventID == 0 || note.Truncated {
				t.Errorf("%s was told %q (truncated: %t)", who, note.Message, note.Truncated)
			}
		}
		check(t, who, g.events, c.expected(g.cadet))
		for _, e := range g.events {
			if named, seen := names[e.EventID]; seen && named != string(e.Data) {
				t.Errorf("event %d is %s and was %s", e.EventID, e.Data, named)
			}
			names[e.EventID] = string(e.Data)
		}
	}
	t.Logf("%d kills of the relay and %d of the server, %d rows", c.relays, c.servers, len(c.expected(0)))
}

func newChaos(t *testing.T) *chaos {
	t.Helper()
	s := pgtest.Own(t, localpg.Options{})
	return &chaos{product: newDatabaseAt(t, s.URL("postgres")), server: s, address: freeAddress(t)}
}

func (c *chaos) launch() *program {
	c.Helper()
	return launch(c, append(c.settings(), "SYNCRELAY_LISTEN_ADDRESS="+c.address, "SYNCRELAY_LOG_LEVEL=warn"), "serve")
}

// rage kills until it is time to stop, and leaves both running.
func (c *chaos) rage(relay *program, dice *rand.Rand, until time.Time) {
	c.Helper()
	for time.Now().Before(until) {
		pause := time.NewTimer(time.Duration(dice.IntN(700)) * time.Millisecond) // sometimes before it is ready
		<-pause.C
		which := dice.IntN(5)
		if which > 0 { // the relay, and sometimes both at once
			_ = relay.cmd.Process.Kill()
			c.relays++
		}
		if which < 2 {
			if err := c.server.Kill(); err != nil {
				c.Fatal(err)
			}
			c.servers++
			if err := c.server.StartAgain(c.Context()); err != nil {
				c.Fatal(err)
			}
			c.pool.Reset()
		}
		if which > 0 {
			<-relay.ended
			relay = c.launch()
		}
	}
}

// keepWriting writes transactions until ctx ends. Those that a crash breaks off
// may have committed or not: the judge knows.
func (c *chaos) keepWriting(ctx context.Context, name string, seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 1))
	for i := 0; ctx.Err() == nil; i++ {
		_ = pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error { // fails with each kill
			for k := range 1 + dice.IntN(5) {
				_, err := tx.Exec(ctx, `INSERT INTO sync_events (event_type, cadet_id, payload) VALUES ('grade_update', $1, jsonb_build_object('n', $2::text))`,
					1+dice.IntN(cadets), fmt.Sprintf("%s/%d/%d", name, i, k))
				if err != nil {
					return err
				}
			}
			return nil
		})
		pause := time.NewTimer(time.Duration(dice.IntN(10)) * time.Millisecond)
		<-pause.C
	}
}

// comer is a client that comes back whenever its connection breaks.
type comer struct {
	cadet     int64
	transport string

	mu     sync.Mutex
	events []message
	notes  []message
}

func (g *comer) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.events)
}

// keepComing connects with the last event ID, reads until the connection breaks,
// and comes again, until ctx ends.
func (g *comer) keepComing(ctx context.Context, c *chaos) {
	token := staffToken(c)
	if g.cadet > 0 {
		token = cadetToken(c, g.cadet)
	}
	last := int64(0)
	for ctx.Err() == nil {
		f, err := tryFollow(ctx, g.transport, c.address, token, last)
		if err != nil {
			pause := time.NewTimer(5 * time.Millisecond)
			<-pause.C
			continue
		}
		for taken := 0; ; {
			over := false
			select {
			case <-f.ended:
				over = true
			case <-ctx.Done():
				f.stop()
				over = true
			default:
				time.Sleep(time.Millisecond)
			}
			events := f.got()
			if taken < len(events) {
				last = events[len(events)-1].EventID
				g.mu.Lock()
				g.events = append(g.events, events[taken:]...)
				g.mu.Unlock()
				taken = len(events)
			}
			if over {
				break
			}
		}
		f.mu.Lock()
		g.notes = append(g.notes, slices.Clone(f.notes)...)
		f.mu.Unlock()
		f.close()
	}
}
