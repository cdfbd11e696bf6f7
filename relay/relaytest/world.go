package relaytest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// World is a model of a database server: a log of committed transactions, one
// slot, the table of rows, and the journal with its owner.
type World struct {
	mu      sync.Mutex
	changed chan struct{} // closed and renewed at each change

	server relay.Server
	end    relay.LSN
	txs    []transaction
	nextID int64

	slot *slot

	state   relay.State
	tenure  int64 // the fence
	owned   bool
	entries []*relay.Event
}

type transaction struct {
	relay.Transaction
	end  relay.LSN
	rows []relay.Row
}

type slot struct {
	confirmed relay.LSN
	taken     bool
}

// NewWorld is a server that was just started, with an empty table.
func NewWorld() *World {
	return &World{
		changed: make(chan struct{}),
		server:  relay.Server{SystemID: "1", Timeline: 1, StartedAt: time.Now().Add(-time.Hour)},
		end:     1 << 10,
	}
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
	now := time.Now()
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

// Depose ends the owner's session, as a broken connection does.
func (w *World) Depose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.owned = false
	w.tenure++
	w.notify()
}

// Source is the world's source.
func (w *World) Source() relay.Source { return source{w} }

// Journal is the world's journal.
func (w *World) Journal() relay.Journal { return journal{w} }

type source struct{ w *World }

// Attach is part of [relay.Source].
func (s source) Attach(_ context.Context, known relay.State) (relay.Stream, error) {
	w := s.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.slot != nil && w.slot.taken {
		return nil, errors.New("the slot is active")
	}
	st := &stream{w: w, info: relay.StreamInfo{Server: w.server, Slot: "syncrelay", WALEnd: w.end, Now: time.Now()}}
	if w.slot == nil || known.Backlog || known.Slot != "syncrelay" || w.slot.confirmed > known.Confirmed {
		w.slot = &slot{confirmed: w.end}
		st.info.Fresh, st.info.Consistent = true, w.end
		st.snapshot = slices.Clone(w.txs)
		st.journaled = slices.Clone(w.entries)
	}
	w.slot.taken = true
	st.slot = w.slot
	st.info.Confirmed = w.slot.confirmed
	return st, nil
}

type stream struct {
	w         *World
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
			if err := each(&tx.rows[i], tx.CommittedAt); err != nil {
				return err
			}
		}
	}
	return nil
}

// Run is part of [relay.Stream].
func (s *stream) Run(ctx context.Context, r relay.Receiver) error {
	w := s.w
	from := s.slot.confirmed
	next := 0
	for {
		w.mu.Lock()
		changed, end := w.changed, w.end
		txs := w.txs[next:]
		next = len(w.txs)
		if safe := r.Safe(); safe > s.slot.confirmed {
			s.slot.confirmed = safe
		}
		w.mu.Unlock()
		for _, tx := range txs {
			if tx.Commit < from {
				continue
			}
			r.Begin(tx.Transaction)
			for i := range tx.rows {
				if full := r.Full(); full != nil {
					select {
					case <-full:
					case <-ctx.Done():
						return nil
					}
				}
				r.Row(&tx.rows[i])
			}
			r.End(tx.end)
		}
		r.Idle(end)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Close is part of [relay.Stream].
func (s *stream) Close(confirm relay.LSN) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.slot.confirmed = max(s.slot.confirmed, confirm)
	s.slot.taken = false
	s.w.notify()
}
