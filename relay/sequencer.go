package relay

import (
	"sync"
	"sync/atomic"
	"time"
)

// sequencer gives rows their event IDs, in the order in which the stream brings
// them, and gathers them for the committer. It is the [Receiver] of a tenure:
// the stream calls it from one goroutine, the committer takes from another.
//
// The assignment is a pure function: of the ID and the position that it starts
// from, of its floors, and of the rows in commit order. Whoever repeats it from
// the same state over the same log gets the same IDs.
type sequencer struct {
	limits   batchLimits
	rejected func(row *Row)

	// Only the stream's goroutine uses these.
	lastID  int64
	high    Position // what the journal holds already
	floors  []Floor  // ascending
	tx      Transaction
	ordinal int64

	// target is where the relay has caught up, once everything before it has been
	// shown; the committer is woken when the stream reaches it.
	target LSN

	safe atomic.Uint64 // LSN

	mu    sync.Mutex
	ready chan struct{} // holds a token when there is something to take
	full  chan struct{} // not nil while the stream must wait
	batch Batch
	bytes int
	inTx  bool
	taken bool // what was taken last is not known to be journaled
	ended LSN  // every transaction that ended before it has been received

	steps atomic.Uint64 // counts what the stream brings, for the watchdog
}

// newSequencer goes on from a state. Once the stream has reached target, it has
// caught up.
func newSequencer(s State, target LSN, limits batchLimits, rejected func(*Row)) *sequencer {
	q := &sequencer{
		limits: limits, rejected: rejected,
		lastID: s.LastID, high: s.High, floors: s.Floors,
		ready: make(chan struct{}, 1),
		ended: s.Confirmed, target: target,
	}
	if q.ended >= target {
		q.signal()
	}
	q.safe.Store(uint64(s.Confirmed))
	return q
}

// Begin is part of [Receiver].
func (q *sequencer) Begin(tx Transaction) {
	q.steps.Add(1)
	q.tx, q.ordinal = tx, 0
	q.mu.Lock()
	q.inTx = true
	q.mu.Unlock()
}

// Row is part of [Receiver].
func (q *sequencer) Row(row *Row) {
	q.steps.Add(1)
	at := Position{q.tx.Commit, q.ordinal}
	q.ordinal++
	if at.Compare(q.high) <= 0 {
		return // the journal has it: the slot sends again what was not confirmed
	}
	q.add(row, at, q.tx.CommittedAt, q.tx.CommittedAt)
}

// add gives a row the next ID. ruled is the time by which the floors apply.
func (q *sequencer) add(row *Row, at Position, committed, ruled time.Time) {
	q.lastID = nextID(q.lastID, q.floors, ruled)
	if row.Fault != nil || ReservedType(row.Type) {
		q.rejected(row)
	}
	e := NewEvent(q.lastID, row, committed)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.batch.Events = append(q.batch.Events, e)
	q.batch.High = at
	q.bytes += e.Size()
	if q.full == nil && (len(q.batch.Events) >= q.limits.events || q.bytes >= q.limits.bytes) {
		q.full = make(chan struct{})
		q.signal()
	}
	// Mostly the whole transaction is journaled at once: its end is right behind
	// its rows. One of many rows must not wait for its end.
	if len(q.batch.Events) >= wholeEvents || q.bytes >= wholeBytes {
		q.signal()
	}
}

// From this size on a transaction is journaled in parts.
const (
	wholeEvents = 256
	wholeBytes  = 1 << 20
)

// nextID is the assignment: one up, and above every floor that applies.
func nextID(last int64, floors []Floor, committed time.Time) int64 {
	for _, f := range floors {
		if !committed.Before(f.Since) {
			last = max(last, f.ID)
		}
	}
	return last + 1
}

// End is part of [Receiver].
func (q *sequencer) End(end LSN) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inTx = false
	if len(q.batch.Events) > 0 {
		q.signal()
	}
	q.reach(end)
}

// reach moves the end of what was received. q.mu is held.
func (q *sequencer) reach(end LSN) {
	before := q.ended
	q.ended = max(q.ended, end)
	if q.ended != before {
		q.steps.Add(1)
	}
	if before < q.target && q.ended >= q.target {
		q.signal()
	}
}

// Idle is part of [Receiver].
func (q *sequencer) Idle(end LSN) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.inTx {
		q.reach(end)
	}
}

// Full is part of [Receiver].
func (q *sequencer) Full() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.full
}

// Safe is part of [Receiver].
func (q *sequencer) Safe() LSN { return LSN(q.safe.Load()) }

// signal leaves a token for the committer. q.mu is held.
func (q *sequencer) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take hands over all that has gathered, with no events in it if nothing has.
// Confirm is where the slot may be moved once that is safe. What is taken is
// called journaled by a call of journaled.
func (q *sequencer) take() Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.batch
	b.Confirm = q.ended
	q.taken = len(b.Events) > 0
	q.batch, q.bytes = Batch{}, 0
	if q.full != nil {
		close(q.full)
		q.full = nil
	}
	return b
}

// journaled tells that what was taken last is in the journal.
func (q *sequencer) journaled() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken = false
}

// received is the position up to which the stream was read.
func (q *sequencer) received() LSN {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ended
}

// brought counts what the stream has brought, and is the position up to which it
// was read.
func (q *sequencer) brought() (steps uint64, received LSN) {
	return q.steps.Load(), q.received()
}

// idleAt is the position up to which the slot could be moved although no event
// waits to be journaled, 0 if one does, or may not have got there.
func (q *sequencer) idleAt() LSN {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.inTx || q.taken || len(q.batch.Events) > 0 {
		return 0
	}
	return q.ended
}

// confirm lets the stream confirm the slot's position.
func (q *sequencer) confirm(upTo LSN) {
	if uint64(upTo) > q.safe.Load() {
		q.safe.Store(uint64(upTo))
	}
}
