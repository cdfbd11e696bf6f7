package relay_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// The simulation stops the relay before and after each of its steps in turn
// (become the owner, attach, save, read a row, journal, show, flush, confirm,
// …), does something worse to the server in some runs, starts the relay again,
// and checks that every client was sent every row once, in commit order, with
// IDs that never name two rows. It enumerates the steps: run n stops at the n-th,
// until there are no more.

// fault is what happens besides the death of the relay.
type fault struct {
	name  string
	apply func(w *relaytest.World, before relaytest.Copy)
	// broken: earlier IDs can't be compared any more. The client is told, and
	// rows that it has seen may come again under other IDs.
	broken bool
	// again is the step of the second relay at which the server crashes once more.
	again string
	// forgets: rows that were committed are no more.
	forgets bool
}

var faults = []fault{
	{name: "the relay is killed", apply: func(*relaytest.World, relaytest.Copy) {}},
	{name: "and the slot is lost", apply: func(w *relaytest.World, _ relaytest.Copy) { w.LoseSlot() }},
	{name: "and the server crashes", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer() }},
	{name: "and the server crashes, and again before a row is read", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer() }, again: "row"},
	{name: "and the server crashes, and again while it is journaled", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer() }, again: "append done"},
	{name: "and the server crashes and loses the slot", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer(); w.LoseSlot() }, broken: true},
	{name: "and a standby is promoted", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer(); w.Promote() }, broken: true},
	{name: "and the server is put back from a copy", apply: func(w *relaytest.World, before relaytest.Copy) { w.Restore(before) }, broken: true, forgets: true},
}

func TestEveryCrashPoint(t *testing.T) {
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for step := 1; ; step++ {
				s := newSimulation(t, f, step)
				if !s.run() {
					t.Logf("%d steps", step-1)
					if step < 40 {
						t.Errorf("only %d steps: the simulation does not see enough", step-1)
					}
					return
				}
				if t.Failed() {
					t.Fatalf("stopped at step %d, %q", step, s.stoppedAt.Load())
				}
			}
		})
	}
}

// simulation is one run.
type simulation struct {
	t         *testing.T
	fault     fault
	world     *relaytest.World
	stopAt    int
	steps     int
	stoppedAt atomic.Value // the step, as text
	made      int
	committed []string // the types of the rows, which are all different, in commit order
	client    *simClient
}

func newSimulation(t *testing.T, f fault, stopAt int) *simulation {
	t.Helper()
	return &simulation{t: t, fault: f, world: relaytest.NewWorld(), stopAt: stopAt, client: &simClient{names: map[int64]string{}}}
}

// commit commits a transaction of so many rows.
func (s *simulation) commit(rows int) {
	tx := make([]relay.Row, rows)
	for i := range tx {
		tx[i].Type = fmt.Sprint("row ", s.made)
		s.made++
		s.committed = append(s.committed, tx[i].Type)
	}
	s.world.Commit(tx...)
}

// run reports whether the relay was stopped, and checks everything.
func (s *simulation) run() (stopped bool) {
	s.commit(1)
	s.commit(2) // a backlog
	if s.fault.forgets {
		// The copy is of a server that a relay has run on; it is the journal that
		// knows where counting must go on.
		end := s.start(s.world.Live(nil))
		s.await(s.client.life)
		end()
	}
	before := s.world.Copy()
	first := s.world.Live(func(step string) bool {
		s.steps++
		if s.steps == s.stopAt {
			s.stoppedAt.Store(step)
			return true
		}
		return false
	})
	end := s.start(first)
	for _, rows := range []int{1, 3, 2, 1} {
		s.commit(rows)
	}
	s.await(first)
	end()
	select {
	case <-first.Died():
		stopped = true
	default:
		first.Kill()
	}
	if s.fault.forgets {
		s.committed = s.committed[:3]
	}
	s.fault.apply(s.world, before)
	s.client.reconnected(s.fault)
	s.commit(2) // while no relay runs
	second := s.world.Live(nil).CrashServerAt(s.fault.again)
	end = s.start(second)
	s.commit(1)
	s.await(second)
	end()
	s.check()
	return stopped
}

// start starts a relay in a life, and connects the client when it serves.
func (s *simulation) start(life *relaytest.Life) (end func()) {
	r := relay.New(relay.Options{
		Source: life.Source(), Journal: life.Journal(), BatchEvents: 2, RingEvents: 4, FlushInterval: time.Millisecond,
		Retry: func(int) time.Duration { return time.Millisecond },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			s.t.Errorf("the relay ended with %v", err)
		}
	}()
	s.client.connect(s.t, life, r)
	return func() {
		cancel()
		<-done
		s.client.disconnect()
	}
}

// await waits until the client has everything, or the relay is dead.
func (s *simulation) await(life *relaytest.Life) {
	last := s.committed[len(s.committed)-1]
	relaytest.Wait(s.t, fmt.Sprintf("the client is sent %q (stopped at step %d, %q)", last, s.stopAt, s.stoppedAt.Load()), func() bool {
		select {
		case <-life.Died():
			return true
		default:
			return s.client.has(last)
		}
	})
}

func (s *simulation) check() {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range append(s.world.Violations(), c.faults...) {
		s.t.Error(v)
	}
	rows := c.rows
	if s.fault.forgets { // what it was sent, and nobody remembers any more
		rows = slices.DeleteFunc(slices.Clone(rows), func(row string) bool { return !slices.Contains(s.committed, row) })
	}
	if !slices.Equal(rows, s.committed) {
		s.t.Errorf("the client was sent %q, want %q", rows, s.committed)
	}
}

// simClient is a client that comes back with its last event ID.
type simClient struct {
	mu     sync.Mutex
	life   *relaytest.Life
	sub    *relay.Subscriber
	last   int64
	rows   []string
	names  map[int64]string // of all IDs that were ever seen
	faults []string
	// mayBreak: IDs may turn out not to be comparable, which the client is told.
	mayBreak bool
}

// reconnected tells the client what it may meet when it comes back.
func (c *simClient) reconnected(f fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mayBreak = f.broken
}

// connect connects as soon as the relay serves.
func (c *simClient) connect(t *testing.T, life *relaytest.Life, r *relay.Relay) {
	c.mu.Lock()
	c.life = life
	last := c.last
	c.mu.Unlock()
	relaytest.Wait(t, "the relay serves", func() bool {
		select {
		case <-life.Died():
			return true
		default:
		}
		c.mu.Lock() // the sink is used at once
		defer c.mu.Unlock()
		sub, err := r.Subscribe(admin, c, relay.Start{Resume: true, After: last})
		c.sub = sub
		return err == nil
	})
}

func (c *simClient) disconnect() {
	c.mu.Lock()
	sub := c.sub
	c.mu.Unlock()
	if sub != nil {
		sub.Close()
	}
}

func (c *simClient) has(row string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.rows) > 0 && c.rows[len(c.rows)-1] == row
}

// Events is part of relay.Sink.
func (c *simClient) Events(events []*relay.Event, _ bool) error {
	if err := c.life.Step("show"); err != nil {
		return err
	}
	c.mu.Lock()
	for _, e := range events {
		if named, seen := c.names[e.ID]; seen && named != e.Type {
			c.faults = append(c.faults, fmt.Sprintf("event %d is %q and was %q", e.ID, e.Type, named))
		}
		if e.ID <= c.last {
			c.faults = append(c.faults, fmt.Sprintf("event %d came after %d", e.ID, c.last))
		}
		c.names[e.ID], c.last = e.Type, e.ID
		c.rows = append(c.rows, e.Type)
	}
	c.mu.Unlock()
	return c.life.Step("shown")
}

// Control is part of relay.Sink. A client that is told that its cursor can't be
// compared forgets what it has and asks for everything.
func (c *simClient) Control(m relay.Control) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	done, completed := m.(relay.ReplayComplete)
	_, failed := m.(relay.Failure)
	if !failed && !(completed && done.Truncated) {
		return nil
	}
	if !c.mayBreak {
		c.faults = append(c.faults, fmt.Sprintf("the client was told %+v", m))
	}
	c.rows, c.last, c.mayBreak = nil, 0, false
	return c.sub.Replay(0)
}

// End is part of relay.Sink.
func (c *simClient) End(error) {}
