package relay_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// Where the simulation enumerates the steps of one story, this draws stories:
// relays that start, stand by, die at some step and come again, a server that
// crashes, loses its slot, is promoted or put back from a copy, sessions that
// break, clients that come and go and ask for everything again. After each, every
// client has every row once, in commit order, under IDs that name one row for
// ever. A failure is printed as the shortest story that shows it, with its seed.
func TestAnyScheduleLosesNothingAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := newSchedule(t)
		defer s.end()
		actions := map[string]func(*rapid.T){
			"commit":                s.commit,
			"commit much":           s.commitMuch,
			"start a relay":         s.startRelay,
			"kill a relay":          s.killRelay,
			"stop a relay":          s.stopRelay,
			"break the sessions":    func(*rapid.T) { s.world.Depose() },
			"crash the server":      func(*rapid.T) { s.crashed.Store(true); s.world.CrashServer() },
			"lose the slot":         func(*rapid.T) { s.slotLost.Store(true); s.world.LoseSlot() },
			"promote a standby":     func(*rapid.T) { s.promoted.Store(true); s.world.CrashServer(); s.world.Promote() },
			"a client comes":        s.clientComes,
			"a client goes":         s.clientGoes,
			"a client asks for all": s.clientAsksForAll,
			"all are sent all":      s.settle,
			"":                      func(t *rapid.T) { s.check(t) },
		}
		for name, do := range actions {
			if name != "" {
				actions[name] = func(t *rapid.T) { s.told.tell("== %s", name); do(t) }
			}
		}
		t.Repeat(actions)
		s.settle(t)
		s.check(t)
	})
}

// schedule is one story.
type schedule struct {
	told      story
	world     *relaytest.World
	relays    []*scheduledRelay
	clients   []*scheduledClient
	committed []string
	names     naming
	// What has happened that may, with something else, make IDs incomparable.
	crashed, slotLost, promoted atomic.Bool
}

// story is what happened, for whoever has to find out why it should not have.
type story struct {
	mu    sync.Mutex
	lines []string
}

func (s *story) Write(line []byte) (int, error) {
	s.tell("%s", strings.TrimSpace(string(line)))
	return len(line), nil
}

func (s *story) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

// String is the end of the story.
func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines[max(0, len(s.lines)-150):], "\n")
}

// naming is which row each ID was ever seen to name.
type naming struct {
	mu     sync.Mutex
	rows   map[int64]string
	faults []string
}

func (n *naming) saw(id int64, row string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if named, seen := n.rows[id]; seen && named != row {
		n.faults = append(n.faults, fmt.Sprintf("event %d is %q and was %q", id, row, named))
	}
	n.rows[id] = row
}

type scheduledRelay struct {
	*relay.Relay
	life *relaytest.Life
	stop func()
}

func emptySchedule() *schedule {
	s := &schedule{world: relaytest.NewWorld()}
	s.names.rows = make(map[int64]string)
	return s
}

func newSchedule(t *rapid.T) *schedule {
	s := emptySchedule()
	s.startRelay(t)
	s.clientComes(t)
	return s
}

func (s *schedule) end() {
	for _, c := range s.clients {
		c.leave()
	}
	for _, r := range s.relays {
		r.stop()
	}
}

func (s *schedule) commit(t *rapid.T) { s.commitRows(rapid.IntRange(1, 5).Draw(t, "rows")) }

func (s *schedule) commitRows(n int) {
	rows := make([]relay.Row, n)
	for i := range rows {
		rows[i].Type = fmt.Sprint("row ", len(s.committed))
		s.committed = append(s.committed, rows[i].Type)
	}
	s.world.Commit(rows...)
}

// commitMuch commits more than the ring and a client's queue hold.
func (s *schedule) commitMuch(t *rapid.T) {
	for range rapid.IntRange(5, 20).Draw(t, "transactions") {
		s.commit(t)
	}
}

// startRelay starts a relay that will die at some step, or not by itself. Up to
// three run at once; all but one stand by.
func (s *schedule) startRelay(t *rapid.T) {
	s.relays = slices.DeleteFunc(s.relays, func(r *scheduledRelay) bool {
		if !r.life.Dead() {
			return false
		}
		r.stop()
		return true
	})
	if len(s.relays) == 3 {
		t.Skip("enough relays run")
	}
	left := rapid.IntRange(0, 60).Draw(t, "steps to live") // 0: no end is set
	s.run(context.Background(), s.world.Live(func(string) relaytest.Fate {
		left--
		if left == 0 {
			return relaytest.Dies
		}
		return relaytest.GoesOn
	}))
}

func (s *schedule) run(ctx context.Context, life *relaytest.Life) {
	r := relay.New(relay.Options{
		Source: life.Source(), Journal: life.Journal(), BatchEvents: 3, RingEvents: 8, FlushInterval: time.Millisecond,
		Retry:  func(int) time.Duration { return time.Millisecond },
		Logger: slog.New(slog.NewTextHandler(&s.told, &slog.HandlerOptions{Level: slog.LevelDebug})).With("relay", fmt.Sprintf("%p", life)),
	})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	s.relays = append(s.relays, &scheduledRelay{Relay: r, life: life, stop: func() { cancel(); <-done }})
}

func (s *schedule) pick(t *rapid.T) *scheduledRelay {
	if len(s.relays) == 0 {
		t.Skip("no relay runs")
	}
	return s.relays[rapid.IntRange(0, len(s.relays)-1).Draw(t, "relay")]
}

func (s *schedule) killRelay(t *rapid.T) { s.pick(t).life.Kill() }

func (s *schedule) stopRelay(t *rapid.T) {
	r := s.pick(t)
	r.stop()
	r.life.Kill()
}

func (s *schedule) clientComes(t *rapid.T) {
	if len(s.clients) == 4 {
		t.Skip("enough clients are there")
	}
	s.clients = append(s.clients, &scheduledClient{s: s})
}

func (s *schedule) client(t *rapid.T) *scheduledClient {
	return s.clients[rapid.IntRange(0, len(s.clients)-1).Draw(t, "client")]
}

// clientGoes breaks a client's connection; it comes again when all are to be sent all.
func (s *schedule) clientGoes(t *rapid.T) { s.client(t).leave() }

func (s *schedule) clientAsksForAll(t *rapid.T) { s.client(t).askForAll() }

// settle waits until every client has been sent everything, by whichever relay
// is the owner; it starts one that does not die if it must.
func (s *schedule) settle(t *rapid.T) {
	s.run(context.Background(), s.world.Live(nil))
	s.await(t)
}

// fataler is a test, of whichever kind.
type fataler interface{ Fatal(args ...any) }

func (s *schedule) await(t fataler) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		waiting := 0
		for _, c := range s.clients {
			c.connect(s.relays)
			if !c.has(s.committed) {
				waiting++
			}
		}
		if waiting == 0 {
			return
		}
		if time.Now().After(deadline) {
			found := []string{"waited 20 s in vain for all clients to be sent everything"}
			for i, c := range s.clients {
				found = append(found, fmt.Sprintf("client %d has %d rows of %d", i, c.count(), len(s.committed)))
			}
			for i, r := range s.relays {
				found = append(found, fmt.Sprintf("relay %d: dead: %t, %+v", i, r.life.Dead(), r.Status()))
			}
			t.Fatal(strings.Join(append(found, s.told.String()), "\n"))
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// check checks what must hold at any time.
func (s *schedule) check(t fataler) {
	found := s.world.Violations()
	s.names.mu.Lock()
	found = append(found, s.names.faults...)
	s.names.mu.Unlock()
	for i, c := range s.clients {
		c.mu.Lock()
		for _, f := range c.faults {
			found = append(found, fmt.Sprintf("client %d: %s", i, f))
		}
		for k, row := range c.rows {
			if c.stale {
				break
			}
			if k >= len(s.committed) || row != s.committed[k] {
				found = append(found, fmt.Sprintf("client %d was sent %q, which is not its row %d of %d, after %q", i, row, k, len(s.committed), c.rows[max(0, k-3):k]))
				break
			}
		}
		c.mu.Unlock()
	}
	if len(found) > 0 {
		t.Fatal(strings.Join(append(found, s.told.String()), "\n"))
	}
}

// scheduledClient has no state but what it was sent: it comes back with its last
// event ID, and forgets all when it is told that this is not comparable.
type scheduledClient struct {
	s *schedule

	mu   sync.Mutex
	sub  *relay.Subscriber
	lost bool // the relay has ended the connection
	// refetching: it was told that its cursor is no good, and has asked for all.
	refetching bool
	// epoch is that of its last connection, and stale: this one is of another, and
	// that its cursor is no good will be said when it has caught up.
	epoch  string
	stale  bool
	last   int64
	rows   []string
	faults []string
	life   *relaytest.Life
	at     *scheduledRelay
}

// gone reports whether the process has ended, or does not answer.
func (r *scheduledRelay) gone() bool {
	return r.life.Dead() || r.life.Stopped() || r.Status().Phase == relay.Stopped
}

// connect sees to it that the client is connected to a relay that serves.
func (c *scheduledClient) connect(relays []*scheduledRelay) {
	c.mu.Lock()
	sub := c.sub
	gone := c.lost || c.at != nil && c.at.gone()
	c.mu.Unlock()
	if sub != nil && !gone {
		return
	}
	if sub != nil {
		c.leave()
	}
	for _, r := range relays {
		if r.gone() {
			continue
		}
		c.mu.Lock() // the sink is used at once
		c.life, c.at = r.life, r
		sub, err := r.Subscribe(admin, relaytest.Prompt{Sink: c}, relay.Start{Resume: true, After: c.last})
		if err == nil {
			c.sub, c.lost = sub, false
		}
		c.mu.Unlock()
		if err == nil {
			return
		}
	}
}

func (c *scheduledClient) leave() {
	c.mu.Lock()
	sub := c.sub
	c.mu.Unlock()
	if sub == nil {
		return
	}
	sub.Close() // the sink may use c.sub until it returns
	c.mu.Lock()
	c.sub = nil
	c.mu.Unlock()
}

func (c *scheduledClient) askForAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sub != nil {
		_ = c.sub.Replay(0) // too many at once are refused
	}
}

func (c *scheduledClient) has(rows []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Equal(c.rows, rows)
}

func (c *scheduledClient) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.rows)
}

// Events is part of relay.Sink.
func (c *scheduledClient) Events(events []*relay.Event, _ bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life.Dead() { // a dead process sends nothing
		return relaytest.ErrDead
	}
	c.s.world.Shown(events)
	c.s.told.tell("client %p of relay %p is sent %d (%s) to %d (%s)", c, c.life, events[0].ID, events[0].Type, events[len(events)-1].ID, events[len(events)-1].Type)
	for _, e := range events {
		c.s.names.saw(e.ID, e.Type)
		if e.Type == "row 0" && (e.ID <= c.last || c.refetching) { // the replay of everything begins
			c.rows, c.last, c.refetching = nil, 0, false
		}
		if c.refetching {
			continue // it was under way before the replay
		}
		if e.ID <= c.last {
			c.faults = append(c.faults, fmt.Sprintf("event %d came after %d", e.ID, c.last))
		}
		c.last = e.ID
		c.rows = append(c.rows, e.Type)
	}
	return nil
}

// Control is part of relay.Sink.
func (c *scheduledClient) Control(m relay.Control) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.told.tell("client %p of relay %p is told %+v", c, c.life, m)
	if begun, established := m.(relay.Established); established {
		c.stale = c.last > 0 && c.epoch != begun.Epoch
		c.epoch = begun.Epoch
	}
	done, completed := m.(relay.ReplayComplete)
	c.stale = c.stale && !completed
	_, failed := m.(relay.Failure)
	if !failed && !(completed && done.Truncated) {
		return nil
	}
	if !c.s.mayBreak() {
		c.faults = append(c.faults, fmt.Sprintf("it was told %+v", m))
	}
	c.rows, c.last, c.refetching = nil, 0, true
	return c.sub.Replay(0)
}

// mayBreak reports whether earlier IDs may have become incomparable.
func (s *schedule) mayBreak() bool { return s.promoted.Load() || s.crashed.Load() && s.slotLost.Load() }

// End is part of relay.Sink.
func (c *scheduledClient) End(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s.told.tell("client %p of relay %p is ended: %v", c, c.life, cause)
	c.lost = true
}
