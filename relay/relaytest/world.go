package relaytest

import (
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
	// journaled is every event that ever stood in the journal: which row it is.
	journaled map[int64]int64
	// rewritten is what the rows say that were changed once they were journaled.
	rewritten map[int64]*relay.Event
	stalled   bool // the streams that there are bring nothing more
	working   bool // the server is at work on them
	asked     int  // how often it was asked whether it is
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
	w := &World{changed: make(chan struct{}), journaled: make(map[int64]int64), rewritten: make(map[int64]*relay.Event), clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), end: 1 << 10}
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

// Rewrite changes the row of an event that stands in the journal, as an UPDATE of
// the table does: the journal goes on saying whom it was for, and who reads it
// back finds what it says now.
func (w *World) Rewrite(id int64, row relay.Row) {
	w.mu.Lock()
	defer w.mu.Unlock()
	row.ID = w.journaled[id]
	w.rewritten[id] = relay.NewEvent(id, &row, time.Time{})
}

// present is an event as its row says it now. w.mu is held.
func (w *World) present(e *relay.Event) *relay.Event {
	if now, ok := w.rewritten[e.ID]; ok {
		return now
	}
	return e
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

// Stall makes the present stream bring nothing more, although it stays connected.
func (w *World) Stall() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stalled = true
}

// Work makes the server say that it is at work on the stream, or that it is not.
func (w *World) Work(working bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.working = working
}

// Asked is how often the server was asked whether it is at work on the stream.
func (w *World) Asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
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

// RestoreTables puts the table and the journal back as they were, from a dump,
// while the server goes on. The slot is dropped, as with the database that is made
// anew.
func (w *World) RestoreTables(c Copy) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.owner != nil {
		w.owner.kill()
	}
	w.txs, w.nextID, w.slot = slices.Clone(c.txs), c.nextID, nil
	w.disk, w.journal, w.flushing = c.disk.clone(), c.disk.clone(), book{}
	w.notify()
}

// Promote makes another server of this one, as the promotion of a standby does.
func (w *World) Promote() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.server.Timeline++
	w.slot = nil
}

// Shown is told of what a client is sent: nothing may be that was never journaled.
func (w *World) Shown(events []*relay.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		if w.journaled[e.ID] != e.RowID {
			w.violations = append(w.violations, fmt.Sprintf("row %d was shown as event %d, and the journal has never said so", e.RowID, e.ID))
		}
	}
}

// Violations are what should never have happened: a position that was confirmed
// and that the journal does not hold durably, or an event that was shown before
// it was journaled.
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
