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
	// copied: a relay has run and ended in order when the copy is made.
	copied bool
	// unread is how many rows were committed between that end and the copy.
	unread int
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
	{name: "and a standby that lacks the last of it is promoted", apply: func(w *relaytest.World, before relaytest.Copy) { w.Restore(before); w.Promote() }, copied: true, unread: 2, broken: true, forgets: true},
	{name: "and the server is put back from a copy", apply: func(w *relaytest.World, before relaytest.Copy) { w.Restore(before) }, copied: true, unread: 2, broken: true, forgets: true},
	{name: "and the tables are put back from a dump", apply: func(w *relaytest.World, before relaytest.Copy) { w.RestoreTables(before) }, copied: true, forgets: true},
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

// What a crash of the server took from the journal has to come again, and the
// relay that reads it may die over it, at any step. Whatever happens then, the next
// one must know that it has not come yet.
func TestEveryCrashPointOfARecovery(t *testing.T) {
	t.Parallel()
	for _, f := range []fault{
		{name: "and that is all", apply: func(*relaytest.World, relaytest.Copy) {}},
		{name: "and the slot is lost", apply: func(w *relaytest.World, _ relaytest.Copy) { w.LoseSlot() }, broken: true},
		{name: "and the server crashes again", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer() }},
		{name: "and the server crashes again and loses the slot", apply: func(w *relaytest.World, _ relaytest.Copy) { w.CrashServer(); w.LoseSlot() }, broken: true},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for step := 1; ; step++ {
				s := newSimulation(t, f, step)
				if !s.runRecovery() {
					t.Logf("%d steps", step-1)
					if step < 30 {
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
	flush     time.Duration
	stopAt    int
	steps     int
	stoppedAt atomic.Value // the step, as text
	made      int
	committed []string // the types of the rows, which are all different, in commit order
	names     naming
	clients   []*simClient
}

func newSimulation(t *testing.T, f fault, stopAt int) *simulation {
	t.Helper()
	s := &simulation{t: t, fault: f, world: relaytest.NewWorld(), flush: time.Millisecond, stopAt: stopAt}
	s.names.rows = make(map[int64]string)
	s.clients = []*simClient{{s: s, name: "the client that resumes"}, {s: s, name: "the client that asks for a replay", asks: true}}
	return s
}

// runRecovery stops the second of three relays; the first has shown what the
// server's crash takes.
func (s *simulation) runRecovery() (stopped bool) {
	s.flush = time.Hour // nothing of the journal is known to be on disk
	s.commit(1)
	first := s.world.Live(nil)
	end := s.start(first)
	for _, rows := range []int{2, 1, 2} {
		s.commit(rows)
	}
	s.await(first)
	first.Kill()
	end()
	s.world.CrashServer()
	s.flush = time.Millisecond
	second := s.world.Live(s.stop)
	end = s.start(second)
	s.commit(1)
	s.await(second)
	end()
	stopped = second.Dead()
	second.Kill()
	s.fault.apply(s.world, relaytest.Copy{})
	for _, c := range s.clients {
		c.mayBreak = s.fault.broken
	}
	third := s.world.Live(nil)
	end = s.start(third)
	s.commit(1)
	s.await(third)
	end()
	s.check()
	return stopped
}

// stop is the hook of the life that is stopped.
func (s *simulation) stop(step string) relaytest.Fate {
	s.steps++
	if s.steps != s.stopAt {
		return relaytest.GoesOn
	}
	s.stoppedAt.Store(step)
	return relaytest.Dies
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
	if s.fault.copied {
		// The copy is of a server that a relay has run on; it is the journal that
		// knows where counting must go on.
		life := s.world.Live(nil)
		end := s.start(life)
		s.await(life)
		end()
	}
	for range s.fault.unread {
		s.commit(1)
	}
	before, remembered := s.world.Copy(), len(s.committed)
	first := s.world.Live(s.stop)
	end := s.start(first)
	for _, rows := range []int{1, 3, 2, 1} {
		s.commit(rows)
	}
	s.await(first)
	end()
	stopped = first.Dead()
	first.Kill()
	if s.fault.forgets {
		s.committed = s.committed[:remembered]
	}
	s.fault.apply(s.world, before)
	for _, c := range s.clients {
		c.mayBreak = s.fault.broken
	}
	s.commit(2) // while no relay runs
	second := s.world.Live(nil).CrashServerAt(s.fault.again)
	end = s.start(second)
	s.commit(1)
	s.await(second)
	end()
	s.check()
	return stopped
}

// start starts a relay in a life, and connects the clients when it serves.
func (s *simulation) start(life *relaytest.Life) (end func()) {
	r := relay.New(relay.Options{
		Source: life.Source(), Journal: life.Journal(), BatchEvents: 2, RingEvents: 4, FlushInterval: s.flush,
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
	for _, c := range s.clients {
		c.connect(s.t, life, r)
	}
	return func() {
		cancel()
		<-done
		for _, c := range s.clients {
			c.disconnect()
		}
	}
}

// await waits until the clients have everything, or the relay is dead.
func (s *simulation) await(life *relaytest.Life) {
	last := s.committed[len(s.committed)-1]
	for _, c := range s.clients {
		relaytest.Wait(s.t, fmt.Sprintf("%s is sent %q (stopped at step %d, %q)", c.name, last, s.stopAt, s.stoppedAt.Load()), func() bool {
			return life.Dead() || c.has(last)
		})
	}
}

func (s *simulation) check() {
	faults := append(s.world.Violations(), s.names.faults...)
	for _, c := range s.clients {
		faults = append(faults, c.faults...)
		rows := c.rows
		if s.fault.forgets { // what it was sent, and nobody remembers any more
			rows = slices.DeleteFunc(slices.Clone(rows), func(row string) bool { return !slices.Contains(s.committed, row) })
		}
		if !slices.Equal(rows, s.committed) {
			faults = append(faults, fmt.Sprintf("%s was sent %q, want %q", c.name, rows, s.committed))
		}
	}
	for _, f := range faults {
		s.t.Error(f)
	}
}

// simClient is a client that comes back with its last event ID, or comes back as
// if it were new and asks for a replay from there.
type simClient struct {
	s    *simulation
	name string
	asks bool
	// mayBreak: IDs may turn out not to be comparable, which the client is told.
	mayBreak bool

	mu     sync.Mutex
	life   *relaytest.Life
	sub    *relay.Subscriber
	last   int64
	rows   []string
	faults []string
}

// connect connects as soon as the relay serves.
func (c *simClient) connect(t *testing.T, life *relaytest.Life, r *relay.Relay) {
	c.mu.Lock()
	c.life = life
	start := relay.Start{Resume: !c.asks, After: c.last}
	c.mu.Unlock()
	relaytest.Wait(t, "the relay serves", func() bool {
		if life.Dead() {
			return true
		}
		c.mu.Lock() // the sink is used at once
		defer c.mu.Unlock()
		sub, err := r.Subscribe(admin, relaytest.Prompt{Sink: c}, start)
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

func (c *simClient) fault(format string, args ...any) {
	c.faults = append(c.faults, c.name+": "+fmt.Sprintf(format, args...))
}

// Events is part of relay.Sink.
func (c *simClient) Events(events []*relay.Event, _ bool) error {
	if err := c.life.Step("show"); err != nil {
		return err
	}
	c.s.world.Shown(events)
	c.mu.Lock()
	for _, e := range events {
		c.s.names.saw(e.ID, e.Type)
		if e.ID <= c.last {
			c.fault("event %d came after %d", e.ID, c.last)
		}
		c.last = e.ID
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
	switch m := m.(type) {
	case relay.Established:
		if m.LastEventID < c.last && !c.mayBreak {
			c.fault("it has seen event %d, and was told that the newest is %d", c.last, m.LastEventID)
		}
		if !c.asks {
			return nil
		}
		return c.sub.Replay(c.last)
	case relay.ReplayComplete:
		if !m.Truncated {
			return nil
		}
	case relay.Failure:
	default:
		return nil
	}
	if !c.mayBreak {
		c.fault("it was told %+v", m)
	}
	c.rows, c.last, c.mayBreak = nil, 0, false
	return c.sub.Replay(0)
}

// End is part of relay.Sink.
func (c *simClient) End(error) {}
