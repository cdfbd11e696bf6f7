package relaytest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// World is a model of a database server: a log of committed transactions, one
// slot, the table of rows, and the journal with its owner. What the journal's
// asynchronous commits have not brought to disk yet is modelled too, and lost
// by CrashServer.
type World struct {
	mu      sync.Mutex
	changed chan struct{} // closed and renewed at each change

	clock   time.Time // moves with each commit and each start of the server
	server  relay.Server
	end     relay.LSN
	txs     []transaction
	nextID  int64
	slot    *slot
	journal book // as the sessions see it
	// disk is the journal as a crash leaves it, and flushing what is being
	// written there.
	disk, flushing book
	tenure         int64
	owner          *Life
	// violations are what should never have happened.
	violations []string
}

// book is what the journal remembers.
type book struct {
	state   relay.State
	entries []*relay.Event
}

func (b book) clone() book {
	b.state.Floors = slices.Clone(b.state.Floors)
	b.entries = slices.Clone(b.entries)
	return b
}

type transaction struct {
	relay.Transaction
	end  relay.LSN
	rows []relay.Row
}

type slot struct {
	confirmed relay.LSN
	holder    *Life
}

// NewWorld is a server that was just started, with an empty table.
func NewWorld() *World {
	w := &World{changed: make(chan struct{}), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), end: 1 << 10}
	w.server = relay.Server{SystemID: "1", Timeline: 1, StartedAt: w.tick()}
	return w
}

// tick moves the server's clock. w.mu is held.
func (w *World) tick() time.Time {
	w.clock = w.clock.Add(time.Millisecond)
	return w.clock
}

// notify wakes all who wait for a change. w.mu is held.
func (w *World) notify() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// Life is the life of one relay's process: the sessions that it has, until it is
// killed.
type Life struct {
	w    *World
	hook func(step string) (crash bool)
	dead bool
	died chan struct{}
	// crashAt is the step at which the server crashes, once, under the process.
	crashAt string
}

// ErrDead is what a session of a killed process gives, or of a crashed server.
var ErrDead = errors.New("the session is dead")

// CrashServerAt makes the server crash at the first such step of this process,
// which lives on and may connect again.
func (l *Life) CrashServerAt(step string) *Life {
	l.crashAt = step
	return l
}

// Live begins a life. The hook, if not nil, is called before and after each step
// of the relay's that the world can see, and kills the process by returning
// true. It must not call the world.
func (w *World) Live(hook func(step string) (crash bool)) *Life {
	return &Life{w: w, hook: hook, died: make(chan struct{})}
}

// Kill ends the life's sessions.
func (l *Life) Kill() {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	l.kill()
}

func (l *Life) kill() {
	if l.dead {
		return
	}
	l.dead = true
	close(l.died)
	if l.w.owner == l {
		l.w.owner = nil
	}
	if l.w.slot != nil && l.w.slot.holder == l {
		l.w.slot.holder = nil
	}
	l.w.notify()
}

// Died is closed when the process has been killed.
func (l *Life) Died() <-chan struct{} { return l.died }

// Step is a step that the relay's client sees, such as the writing of an event.
func (l *Life) Step(step string) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.step(step)
}

// step asks whether the process dies now. w.mu is held.
func (l *Life) step(step string) error {
	if !l.dead && l.hook != nil && l.hook(step) {
		l.kill()
	}
	if l.dead {
		return ErrDead
	}
	if l.crashAt == step {
		l.crashAt = ""
		if l.w.slot != nil {
			l.w.slot.holder = nil
		}
		l.w.owner = nil
		l.w.crash()
		return ErrDead
	}
	return nil
}

// Commit commits one transaction. Rows without an ID or a time are given one.
func (w *World) Commit(rows ...relay.Row) []int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.tick()
	tx := transaction{rows: slices.Clone(rows)}
	var ids []int64
	for i := range tx.rows {
		row := &tx.rows[i]
		if row.ID == 0 {
			w.nextID++
			row.ID = w.nextID
		}
		if row.CreatedAt.IsZero() {
			row.CreatedAt = now
		}
		ids = append(ids, row.ID)
	}
	tx.Commit, tx.CommittedAt = w.end+64, now
	tx.end = tx.Commit + 64
	w.end = tx.end
	w.txs = append(w.txs, tx)
	w.notify()
	return ids
}

// Depose ends the owner's sessions, as broken connections do.
func (w *World) Depose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owner = nil
	w.tenure++
	w.notify()
}

// CrashServer kills the server and starts it again: every session ends, and what
// of the journal was not on disk is gone.
func (w *World) CrashServer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owner != nil {
		w.owner.kill()
	}
	w.crash()
}

// crash takes from the journal what was not on disk. w.mu is held.
func (w *World) crash() {
	w.journal, w.flushing = w.disk.clone(), book{}
	w.server.StartedAt = w.tick()
	w.notify()
}

// LoseSlot drops the slot.
func (w *World) LoseSlot() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slot = nil
}

// Copy is a copy of the server's files.
type Copy struct {
	end       relay.LSN
	txs       []transaction
	nextID    int64
	confirmed relay.LSN
	disk      book
}

// Copy copies the files of the server.
func (w *World) Copy() Copy {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := Copy{end: w.end, txs: slices.Clone(w.txs), nextID: w.nextID, disk: w.disk.clone()}
	if w.slot != nil {
		c.confirmed = w.slot.confirmed
	}
	return c
}

// Restore puts the files back as they were, behind everybody's back: no timeline
// tells of it. The server is started anew, later than everything that was.
func (w *World) Restore(c Copy) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owner != nil {
		w.owner.kill()
	}
	w.end, w.txs, w.nextID = c.end, slices.Clone(c.txs), c.nextID
	w.slot = &slot{confirmed: c.confirmed}
	w.disk, w.journal, w.flushing = c.disk.clone(), c.disk.clone(), book{}
	w.server.StartedAt = w.tick()
	w.notify()
}

// Promote makes another server of this one, as the promotion of a standby does.
func (w *World) Promote() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server.Timeline++
	w.slot = nil
}

// Violations are what should never have happened: a position that was confirmed
// and that the journal does not hold durably.
func (w *World) Violations() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.violations)
}

// confirm moves the slot on, and checks that this loses nothing. w.mu is held.
func (w *World) confirm(s *slot, at relay.LSN) {
	if at <= s.confirmed {
		return
	}
	first := sort.Search(len(w.txs), func(i int) bool { return w.txs[i].Commit >= s.confirmed })
	durable := make(map[int64]bool)
	if first < len(w.txs) {
		for _, e := range w.disk.entries {
			durable[e.RowID] = true
		}
	}
	for _, tx := range w.txs[first:] {
		for i := range tx.rows {
			if tx.end <= at && !durable[tx.rows[i].ID] {
				w.violations = append(w.violations, fmt.Sprintf("%s was confirmed, and row %d of before it is not on disk", at, tx.rows[i].ID))
			}
		}
	}
	s.confirmed = at
}

// Source is the source of a process that is never killed.
func (w *World) Source() relay.Source { return w.Live(nil).Source() }

// Journal is the journal of a process that is never killed.
func (w *World) Journal() relay.Journal { return w.Live(nil).Journal() }

// Source is the source as this process sees it.
func (l *Life) Source() relay.Source { return source{l.w, l} }

// Journal is the journal as this process sees it.
func (l *Life) Journal() relay.Journal { return journal{l.w, l} }

type source struct {
	w    *World
	life *Life
}

// Attach is part of [relay.Source].
func (s source) Attach(_ context.Context, known relay.State) (relay.Stream, error) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := s.life.step("attach"); err != nil {
		return nil, err
	}
	st := &stream{w: w, life: s.life, info: relay.StreamInfo{Server: w.server, Slot: "syncrelay", WALEnd: w.end, Now: w.clock}}
	if w.slot == nil || known.Backlog || known.Slot != "syncrelay" || w.slot.confirmed > known.Confirmed {
		w.slot = &slot{confirmed: w.end}
		st.info.Fresh, st.info.Consistent = true, w.end
		st.snapshot = slices.Clone(w.txs)
		st.journaled = slices.Clone(w.journal.entries)
	}
	w.slot.holder = s.life // whoever held it before is no owner any more
	st.slot = w.slot
	st.info.Confirmed = w.slot.confirmed
	return st, s.life.step("attached")
}

type stream struct {
	w         *World
	life      *Life
	slot      *slot
	info      relay.StreamInfo
	snapshot  []transaction
	journaled []*relay.Event
}

// Info is part of [relay.Stream].
func (s *stream) Info() relay.StreamInfo { return s.info }

// Backlog is part of [relay.Stream].
func (s *stream) Backlog(_ context.Context, each func(*relay.Row, time.Time) error) error {
	known := make(map[int64]bool, len(s.journaled))
	for _, e := range s.journaled {
		known[e.RowID] = true
	}
	for _, tx := range s.snapshot {
		for i := range tx.rows {
			if known[tx.rows[i].ID] {
				continue
			}
			if err := s.life.Step("backlog row"); err != nil {
				return err
			}
			if err := each(&tx.rows[i], tx.CommittedAt); err != nil {
				return err
			}
		}
	}
	return s.life.Step("backlog read")
}

// latency is how long the stream's first row takes, as over a network: clients
// may connect before it comes.
const latency = 3 * time.Millisecond

// Run is part of [relay.Stream].
func (s *stream) Run(ctx context.Context, r relay.Receiver) error {
	w := s.w
	from := s.slot.confirmed
	next := 0
	time.Sleep(latency)
	for {
		w.mu.Lock()
		if s.life.dead || w.slot != s.slot || s.slot.holder != s.life {
			w.mu.Unlock()
			return ErrDead
		}
		changed, end := w.changed, w.end
		txs := slices.Clone(w.txs[min(next, len(w.txs)):])
		next = len(w.txs)
		w.mu.Unlock()
		for _, tx := range txs {
			if tx.Commit < from {
				continue
			}
			if err := s.deliver(ctx, r, tx); err != nil {
				return err
			}
		}
		r.Idle(end)
		if err := s.settle(ctx, r, changed); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// deliver brings one transaction.
func (s *stream) deliver(ctx context.Context, r relay.Receiver, tx transaction) error {
	r.Begin(tx.Transaction)
	for i := range tx.rows {
		if full := r.Full(); full != nil {
			select {
			case <-full:
			case <-ctx.Done():
				return nil
			}
		}
		if err := s.life.Step("row"); err != nil {
			return err
		}
		r.Row(&tx.rows[i])
	}
	r.End(tx.end)
	return s.life.Step("transaction")
}

// settle waits for a change, and moves the slot on as far as the relay lets it.
func (s *stream) settle(ctx context.Context, r relay.Receiver, changed <-chan struct{}) error {
	report := time.NewTicker(time.Millisecond)
	defer report.Stop()
	for {
		s.w.mu.Lock()
		safe := r.Safe()
		if safe > s.slot.confirmed {
			if err := s.life.step("confirm"); err != nil {
				s.w.mu.Unlock()
				return err
			}
			s.w.confirm(s.slot, safe)
			if err := s.life.step("confirmed"); err != nil {
				s.w.mu.Unlock()
				return err
			}
		}
		s.w.mu.Unlock()
		select {
		case <-changed:
			return nil
		case <-ctx.Done():
			return nil
		case <-report.C:
		}
	}
}

// Close is part of [relay.Stream].
func (s *stream) Close(confirm relay.LSN) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.life.dead || s.w.slot != s.slot {
		return
	}
	s.w.confirm(s.slot, confirm)
	if s.slot.holder == s.life {
		s.slot.holder = nil
	}
	s.w.notify()
}
