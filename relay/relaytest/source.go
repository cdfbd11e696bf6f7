package relaytest

import (
	"context"
	"slices"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

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
	w.stalled = false
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

// Latency is how long the stream's first row takes, and the journal, as over a
// network: clients may connect before the row comes, and are sent meanwhile what
// is shown too early.
const Latency = 3 * time.Millisecond

// Run is part of [relay.Stream].
func (s *stream) Run(ctx context.Context, r relay.Receiver) error {
	w := s.w
	from := s.info.Confirmed
	next := 0
	time.Sleep(Latency)
	for {
		w.mu.Lock()
		s.life.stand()
		if s.broken() {
			w.mu.Unlock()
			return ErrDead
		}
		changed, end := w.changed, w.end
		txs := slices.Clone(w.txs[min(next, len(w.txs)):])
		if w.stalled {
			txs, end = nil, 0
		}
		next += len(txs)
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

// broken reports whether the slot is another session's now, or gone. w.mu is held.
func (s *stream) broken() bool {
	return s.life.dead || s.w.slot != s.slot || s.slot.holder != s.life
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
		s.life.stand()
		if s.broken() {
			s.w.mu.Unlock()
			return ErrDead
		}
		safe := r.Safe()
		if safe > s.slot.confirmed {
			if err := s.life.step("confirm"); err != nil {
				s.w.mu.Unlock()
				return err
			}
			if s.broken() { // while it was stopped
				s.w.mu.Unlock()
				return ErrDead
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
	s.life.stand()
	if s.broken() {
		return
	}
	s.w.confirm(s.slot, confirm)
	s.slot.holder = nil
	s.w.notify()
}
