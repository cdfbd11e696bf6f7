package relay

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"
)

// permanent is what an error implements that no retry will mend.
type permanent interface{ Permanent() bool }

// IsPermanent reports whether err says of itself that trying again is no use
// until somebody changes something: a wrong password, a missing privilege.
func IsPermanent(err error) bool {
	var p permanent
	return errors.As(err, &p) && p.Permanent()
}

// grace is how long the orderly end of a tenure may take once Run's context has
// ended.
const grace = 5 * time.Second

// Run relays until ctx ends: it waits for the ownership, catches up, streams,
// and begins anew with backoff when a connection breaks. Subscribers stay
// meanwhile. It returns nil when ctx has ended, and an error only for what
// can't heal by itself before the relay has served for the first time.
func (r *Relay) Run(ctx context.Context) error {
	defer r.phase(Stopped, "the relay has stopped")
	for failures := 0; ; {
		streamed, err := r.tenure(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if IsPermanent(err) && !r.log.serving() {
			return err
		}
		if streamed {
			failures = 0
		}
		wait := r.retry(failures)
		failures++
		r.phase(Retrying, fmt.Sprintf("trying again: %v", err))
		r.logger.Warn("the relay lost its database and tries again", "error", err, "in", wait.Round(time.Millisecond))
		r.observer.Failed("database")
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// tenure is one time as the owner, from waiting for it to its end. streamed
// tells that it got as far as streaming.
func (r *Relay) tenure(ctx context.Context) (streamed bool, err error) {
	t, err := r.journal.Acquire(ctx, r.standBy)
	if err != nil {
		return false, fmt.Errorf("become the owner: %w", err)
	}
	defer t.Close()
	r.phase(Recovering, "attaching to the replication slot")
	stream, err := r.source.Attach(ctx, t.State())
	if err != nil {
		return false, fmt.Errorf("attach to the replication slot: %w", err)
	}
	var confirm LSN
	defer func() { stream.Close(confirm) }()

	state, err := r.begin(ctx, t, stream.Info())
	if err != nil {
		return false, err
	}
	if stream.Info().Fresh {
		if state, err = r.recover(ctx, t, stream, state); err != nil {
			return false, fmt.Errorf("read the backlog: %w", err)
		}
	}
	received, err := r.stream(ctx, t, stream, state)
	if ctx.Err() == nil {
		return true, err
	}
	if confirm, err = r.end(ctx, t, received); err != nil {
		r.logger.Warn("the journal could not be flushed at the end: the next start reads a little again", "error", err)
	}
	return true, nil
}

// end ends a tenure in order. received is the position up to which everything is
// journaled. It returns the one up to which the slot may be confirmed.
func (r *Relay) end(ctx context.Context, t Tenure, received LSN) (LSN, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if received > 0 {
		if err := t.Advance(ctx, received); err != nil {
			return 0, err
		}
	}
	return t.End(ctx)
}

// standBy is told that another relay is the owner. Clients who are still here
// from an earlier tenure would wait for events that only the owner has.
func (r *Relay) standBy(reason string) {
	r.log.close()
	r.hub.end(ErrNotServing)
	r.phase(Standby, reason)
}

// begin decides what the tenure goes on from, saves it, and tells the log.
func (r *Relay) begin(ctx context.Context, t Tenure, in StreamInfo) (State, error) {
	before := t.State()
	r.mu.Lock()
	seen := r.seen
	r.mu.Unlock()
	state, broken := follow(before, in, r.log.Extent().Head, seen, time.Now())
	if err := t.Save(ctx, state); err != nil {
		return state, fmt.Errorf("save the state of a new tenure: %w", err)
	}
	if broken != "" {
		r.logger.Warn("earlier event IDs can't be compared any more: a new epoch begins",
			"reason", broken, "epoch", state.Epoch, "above", state.EpochAfter)
	}
	if in.Fresh {
		r.logger.Info("made a replication slot", "slot", in.Slot, "at", in.Consistent, "reason", in.Reason)
	}
	r.mu.Lock()
	r.status.Journaled = before.LastID
	r.status.Received, r.status.Confirmed = in.Confirmed, in.Confirmed
	r.mu.Unlock()
	extent := Extent{
		Head: before.LastID, Oldest: before.Oldest, Deleted: before.Deleted,
		Epoch: state.Epoch, EpochAfter: state.EpochAfter,
	}
	if broken == "" && r.log.holds(before.LastID) {
		r.log.resume(extent)
	} else {
		newest, err := r.journal.Newest(ctx, r.log.ring.maxEvents, r.log.ring.maxBytes)
		if err != nil {
			return state, fmt.Errorf("read the newest events: %w", err)
		}
		r.hub.reset(r.log.reset(extent, newest))
	}
	// After a tenure that did not end in order, the journal may lack what was
	// shown last: the slot sends it again. Until it has, a client's cursor may be
	// above the head, and nobody is served.
	if before.Clean || before.Epoch == "" || broken != "" {
		r.log.serve()
	}
	return state, nil
}

// recover journals and shows the rows that were there before a new slot.
func (r *Relay) recover(ctx context.Context, t Tenure, stream Stream, state State) (State, error) {
	r.phase(Recovering, "reading the rows that were there before the replication slot")
	q := newSequencer(state, 0, r.batch, r.rejected)
	now := stream.Info().Now
	at := state.High
	var rows int64
	flush := func() error {
		b := q.take()
		if len(b.Events) == 0 {
			return nil
		}
		b.Durable, b.Confirm = true, state.Confirmed
		return r.show(ctx, t, &b)
	}
	err := stream.Backlog(ctx, func(row *Row, committed time.Time) error {
		at.Ordinal++
		rows++
		q.add(row, at, committed, now)
		if q.Full() != nil {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return state, err
	}
	state.LastID, state.High, state.Backlog = q.lastID, at, false
	state.Floors = live(state.Floors, state.LastID)
	if err := t.Save(ctx, state); err != nil {
		return state, fmt.Errorf("note that the backlog is through: %w", err)
	}
	if rows > 0 {
		r.logger.Info("read rows that the slot does not bring", "rows", rows, "last_event_id", state.LastID)
		r.observer.Recovered(rows)
	}
	return state, nil
}

// stream takes in what the slot brings until the context ends or something
// breaks. It returns the position up to which all that was received is
// journaled, 0 if something was received that is not.
func (r *Relay) stream(ctx context.Context, t Tenure, stream Stream, state State) (LSN, error) {
	r.phase(CatchingUp, "reading what was written while no relay was streaming")
	q := newSequencer(state, stream.Info().WALEnd, r.batch, r.rejected)
	ctx, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := stream.Run(ctx, q)
		if err == nil {
			err = errors.New("it has ended")
		}
		stop(fmt.Errorf("stream: %w", err))
	}()
	err := r.commit(ctx, t, q)
	stop(err)
	<-done
	return q.idleAt(), err
}

// advanceAfter is how many bytes of log without an event of ours are let pass
// before the slot's position is moved over them. Moving it writes to the log
// itself, so in a database where nothing else happens it must not be done.
const advanceAfter = 64 << 10

// commit writes to the journal and shows what the sequencer gathers, one
// transaction after another: group commit, with no delay for its own sake.
func (r *Relay) commit(ctx context.Context, t Tenure, q *sequencer) error {
	// What is being written when the context ends may still be written.
	write, cancel := linger(ctx, grace)
	defer cancel()
	tick := time.NewTicker(r.flush)
	defer tick.Stop()
	recorded := q.Safe()
	through := recorded // all that committed before it has been shown
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-q.ready:
			b := q.take()
			if len(b.Events) > 0 {
				if err := r.show(write, t, &b); err != nil {
					return err
				}
				recorded = b.Confirm
			}
			through = max(through, b.Confirm)
		case <-tick.C:
			if at := q.idleAt(); at >= recorded+advanceAfter {
				if err := t.Advance(write, at); err != nil {
					return fmt.Errorf("note the slot's position: %w", err)
				}
				recorded = at
			}
			flushed, err := t.Flushed(write)
			if err != nil {
				return fmt.Errorf("ask what the server has flushed: %w", err)
			}
			q.confirm(flushed)
			through = max(through, q.idleAt())
		}
		r.progress(q, through)
	}
}

// linger returns a context that ends a while after ctx has.
func linger(ctx context.Context, after time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(after)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-late.Done():
		}
	})
	return late, func() { unhook(); cancel() }
}

// show journals a batch, and then shows it.
func (r *Relay) show(ctx context.Context, t Tenure, b *Batch) error {
	if err := t.Append(ctx, b); err != nil {
		return fmt.Errorf("journal events %d to %d: %w", b.Events[0].ID, b.Events[len(b.Events)-1].ID, err)
	}
	last := b.Events[len(b.Events)-1].ID
	r.mu.Lock()
	r.status.Journaled = last
	r.mu.Unlock()
	// A crash of the server may have taken from the journal what this process
	// has shown already; it has come again, with the same IDs.
	events := b.Events[after(b.Events, r.log.Extent().Head):]
	if len(events) == 0 {
		return nil
	}
	r.log.append(events)
	r.hub.publish(events)
	for _, e := range events {
		r.observer.Assigned(e.Type)
	}
	return nil
}

// after is the index of the first event above id.
func after(events []*Event, id int64) int {
	return sort.Search(len(events), func(i int) bool { return events[i].ID > id })
}

// progress notes how far the stream has come, and the events that were shown.
func (r *Relay) progress(q *sequencer, through LSN) {
	received, caughtUp := q.received(), through >= q.target
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Received, r.status.Confirmed = received, q.Safe()
	r.seen = max(r.seen, received)
	if caughtUp && r.status.Phase == CatchingUp {
		r.log.serve()
		r.status.Phase, r.status.Reason = Streaming, ""
		r.logger.Info("streaming", "received", received, "journaled_event_id", r.status.Journaled)
	}
}

// phase changes what the status says.
func (r *Relay) phase(p Phase, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p != r.status.Phase {
		r.logger.Debug("phase", "phase", p, "reason", reason)
	}
	r.status.Phase, r.status.Reason = p, reason
}

// rejected is told of a row that is sent to nobody.
func (r *Relay) rejected(row *Row) {
	r.observer.Failed("row")
	reason := "its event_type is empty or a word of the protocol"
	if row.Fault != nil {
		reason = row.Fault.Error()
	}
	r.logger.Warn("a row is not sent", "row_id", row.ID, "event_type", row.Type, "reason", reason)
}
