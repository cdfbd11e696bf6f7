package relay

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
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

// Run relays until ctx ends: it waits for the ownership, catches up, streams,
// and begins anew with backoff when a connection breaks. Subscribers stay
// meanwhile. It returns nil when ctx has ended, and an error only for what
// can't heal by itself before the relay has served, or stood by, for the first
// time.
func (r *Relay) Run(ctx context.Context) error {
	defer r.phase(Stopped, "the relay has stopped")
	for failures := 0; ; {
		streamed, err := r.tenure(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if IsPermanent(err) && !r.settled.Load() {
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
// tells that it has caught up; one that breaks before that is tried again ever
// more slowly.
func (r *Relay) tenure(ctx context.Context) (streamed bool, err error) {
	t, err := r.journal.Acquire(ctx, r.standBy)
	if err != nil {
		return false, fmt.Errorf("become the owner: %w", err)
	}
	defer t.Close()
	// What is being written when the context ends may still be written.
	late, cancel := linger(ctx, r.grace)
	defer cancel()
	r.phase(Recovering, "attaching to the replication slot")
	stream, err := r.source.Attach(ctx, t.State())
	if err != nil {
		return false, fmt.Errorf("attach to the replication slot: %w", err)
	}
	var confirm LSN
	defer func() { stream.Close(confirm) }()

	state, whole, err := r.begin(ctx, t, stream.Info())
	if err != nil {
		return false, err
	}
	if stream.Info().Fresh {
		if state, err = r.recover(ctx, t, stream, state); err != nil {
			return false, fmt.Errorf("read the backlog: %w", err)
		}
	}
	r.settled.Store(true)
	received, caughtUp, err := r.stream(ctx, late, t, stream, state)
	if ctx.Err() == nil {
		return caughtUp, err
	}
	if confirm, err = r.end(late, t, received, whole || caughtUp); err != nil {
		r.logger.Warn("the journal could not be flushed at the end: the next start reads a little again", "error", err)
	}
	return true, nil
}

// end ends a tenure in order. received is the position up to which everything is
// journaled, 0 if that is not known; whole tells that the journal has everything
// that was ever shown. It returns the position up to which the slot may be
// confirmed.
func (r *Relay) end(ctx context.Context, t Tenure, received LSN, whole bool) (LSN, error) {
	if received > 0 {
		if err := t.Advance(ctx, received); err != nil {
			return 0, err
		}
	}
	return t.End(ctx, whole)
}

// standBy is told that another relay is the owner. Clients who are still here
// from an earlier tenure would wait for events that only the owner has.
func (r *Relay) standBy(reason string) {
	r.settled.Store(true)
	r.dismiss(ErrNotServing)
	r.phase(Standby, reason)
}

// dismiss ends all subscribers, and takes no more until the log serves again.
func (r *Relay) dismiss(cause error) {
	r.log.close()
	r.hub.end(cause)
}

// begin decides what the tenure goes on from, saves it, and tells the log. whole
// reports whether the journal is known to have everything that was ever shown.
func (r *Relay) begin(ctx context.Context, t Tenure, in StreamInfo) (state State, whole bool, err error) {
	before := t.State()
	r.mu.Lock()
	seen := r.seen
	r.mu.Unlock()
	state, broken := follow(before, in, r.log.Extent().Head, seen, time.Now())
	if err := t.Save(ctx, state); err != nil {
		return state, false, fmt.Errorf("save the state of a new tenure: %w", err)
	}
	known := r.log.Extent().Epoch
	if broken != "" {
		r.logger.Warn("earlier event IDs can't be compared any more: a new epoch begins",
			"reason", broken, "epoch", state.Epoch, "above", state.EpochAfter)
		r.observer.NewEpoch()
	}
	if known != "" && known != state.Epoch { // now, or by another owner meanwhile
		// Who is here may be sent rows again that they have had under other IDs.
		r.dismiss(ErrNewEpoch)
	}
	if in.Fresh {
		r.logger.Info("made a replication slot", "slot", in.Slot, "at", in.Consistent, "reason", in.Reason)
		if before.Epoch != "" { // not the first one
			r.observer.Replaced()
		}
	}
	r.mu.Lock()
	r.status.Journaled = before.LastID
	r.status.Received, r.status.Confirmed = in.Confirmed, in.Confirmed
	r.mu.Unlock()
	extent := Extent{
		Head: state.LastID, Oldest: before.Oldest, Deleted: before.Deleted,
		Epoch: state.Epoch, EpochAfter: state.EpochAfter,
	}
	if (known == "" || known == state.Epoch) && r.log.holds(before.LastID) {
		r.log.resume(extent)
	} else {
		newest, err := r.journal.Newest(ctx, state.Epoch, r.log.atOnce(), r.log.ring.maxBytes)
		if err != nil {
			return state, false, fmt.Errorf("read the newest events: %w", err)
		}
		r.hub.reset(r.log.reset(extent, newest), newest)
	}
	// After a tenure that did not end in order, the journal may lack what was
	// shown last: the slot sends it again. Until it has, a client's cursor may be
	// above the head, and nobody is served.
	whole = before.Clean || before.Epoch == "" || broken != ""
	if whole {
		r.log.serve()
	}
	return state, whole, nil
}

// recover journals and shows the rows that were there before a new slot.
func (r *Relay) recover(ctx context.Context, t Tenure, stream Stream, state State) (State, error) {
	r.phase(Recovering, backlogReason)
	q := newSequencer(state, 0, r.batch, r.rejected)
	now := stream.Info().Now
	at := state.High
	var rows atomic.Int64
	told := every(r.tellEvery, func(since time.Duration) { r.tellBacklog(rows.Load(), since) })
	defer told()
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
		rows.Add(1)
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
	if n := rows.Load(); n > 0 {
		r.logger.Info("read rows that the slot does not bring", "rows", n, "last_event_id", state.LastID)
		r.observer.Recovered(n)
	}
	return state, nil
}

// stream takes in what the slot brings until the context ends or something
// breaks. It returns the position up to which all that was received is
// journaled, 0 if something was received that may not be, and whether it has
// caught up. What is written ends with late at the latest.
func (r *Relay) stream(ctx, late context.Context, t Tenure, stream Stream, state State) (received LSN, caughtUp bool, err error) {
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
	caughtUp, err = r.commit(ctx, late, t, q, state)
	stop(err)
	<-done
	return q.idleAt(), caughtUp, err
}

// advanceAfter is how many bytes of log without an event of ours are let pass
// before the slot's position is moved over them. Moving it writes to the log
// itself, so in a database where nothing else happens it must not be done.
const advanceAfter = 64 << 10

// commit writes to the journal and shows what the sequencer gathers, one
// transaction after another: group commit, with no delay for its own sake. That
// the stream has passed state.Resend is written down at once. It returns when ctx ends or something breaks.
func (r *Relay) commit(ctx, write context.Context, t Tenure, q *sequencer, state State) (caughtUp bool, err error) {
	tick := time.NewTicker(r.flush)
	defer tick.Stop()
	var warming sync.WaitGroup
	defer warming.Wait()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	recorded := q.Safe()
	through := recorded // all that committed before it has been shown
	watch := watchdog{patience: r.stall}
	teller := catchUpTeller{interval: r.tellEvery, goal: q.target}
	for {
		select {
		case <-ctx.Done():
			return caughtUp, context.Cause(ctx)
		case <-q.ready:
			b := q.take()
			if len(b.Events) > 0 {
				if err := r.show(write, t, &b); err != nil {
					return caughtUp, err
				}
				q.journaled()
				recorded = b.Confirm
			}
			through = max(through, b.Confirm)
		case <-tick.C:
			if at := q.idleAt(); at >= recorded+advanceAfter || recorded < state.Resend && at >= state.Resend {
				if err := t.Advance(write, at); err != nil {
					return caughtUp, fmt.Errorf("note the slot's position: %w", err)
				}
				recorded = at
			}
			if err := r.listen(write, t, q, state, &watch); err != nil {
				return caughtUp, err
			}
			teller.look(r, q.received(), time.Now())
			through = max(through, q.idleAt())
		}
		was := caughtUp
		if caughtUp = r.progress(q, through); caughtUp && !was {
			warming.Go(func() { r.warm(ctx) })
		}
	}
}

// warm fills the ring with what is older than what it began with, and was read at
// once, unless what has come since has filled it.
func (r *Relay) warm(ctx context.Context) {
	below, room := r.log.room()
	if !room {
		return
	}
	newest, err := r.journal.Newest(ctx, below.epoch, r.log.ring.maxEvents, r.log.ring.maxBytes)
	if err != nil {
		if ctx.Err() == nil { // clients read the journal instead
			r.report("log", fmt.Errorf("read the newest events: %w", err))
		}
		return
	}
	r.log.prepend(below, newest)
}

// listen asks the server how it is, confirms what is on disk, and finds out
// whether the stream can go on.
func (r *Relay) listen(ctx context.Context, t Tenure, q *sequencer, state State, watch *watchdog) error {
	pulse, err := t.Pulse(ctx)
	if err != nil {
		return fmt.Errorf("ask what the server has flushed: %w", err)
	}
	if pulse.Publication != state.Publication {
		return errors.New("the publication or the table was changed, or made anew")
	}
	now := time.Now()
	if stuck := watch.look(q, pulse.WALEnd, now); stuck != nil {
		working, err := t.Working(ctx)
		if err != nil {
			return fmt.Errorf("ask whether the server works on the stream: %w", err)
		}
		if err := watch.judge(stuck, working); err != nil {
			return err
		}
	}
	q.confirm(pulse.Flushed)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.ahead(pulse.WALEnd, now)
	return nil
}

// watchdog finds a stream that is connected and stuck: the server answers, its
// log grows, and nothing of it comes.
type watchdog struct {
	patience time.Duration
	steps    uint64    // what the stream had brought
	walEnd   LSN       // where the server's log ended then
	since    time.Time // when it was so first
	idle     int       // how often in a row the server was found not to work on it
}

// idleLooks is how often in a row the server must be found not to be at work on a
// stream that brings nothing. One that reads a long transaction of other tables
// is at work: connecting anew would have it begin that again, for ever.
const idleLooks = 5

// judge returns stuck, if the stream is.
func (w *watchdog) judge(stuck error, working bool) error {
	if working {
		w.since, w.idle = time.Time{}, 0
		return nil
	}
	w.idle++
	if w.idle < idleLooks {
		return nil
	}
	return stuck
}

// look compares what the stream has brought with the server's own position.
func (w *watchdog) look(q *sequencer, walEnd LSN, now time.Time) error {
	steps, received := q.brought()
	if steps != w.steps || received >= walEnd || w.since.IsZero() || q.Full() != nil {
		w.steps, w.walEnd, w.since, w.idle = steps, walEnd, now, 0
		return nil
	}
	if stuck := now.Sub(w.since); stuck > w.patience && walEnd > w.walEnd {
		return fmt.Errorf("the stream has brought nothing for %s and stands at %s, although the server's log has gone on to %s", stuck.Round(time.Second), received, walEnd)
	}
	return nil
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
	// still has in memory; it has come again, with the same IDs.
	events := b.Events[after(b.Events, r.log.Extent().last):]
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
func (r *Relay) progress(q *sequencer, through LSN) (caughtUp bool) {
	received := q.received()
	caughtUp = through >= q.target
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Received, r.status.Confirmed = received, q.Safe()
	r.seen = max(r.seen, received)
	r.pace.reached(through)
	if caughtUp && r.status.Phase == CatchingUp {
		r.log.serve()
		r.status.Phase, r.status.Reason = Streaming, ""
		r.pace = pace{upTo: time.Now()}
		r.logger.Info("streaming", "received", received, "journaled_event_id", r.status.Journaled)
	}
	return caughtUp
}

// pace is how far behind its server the relay is, in time.
type pace struct {
	// upTo: everything that was in the server's log then has been shown.
	upTo time.Time
	// mark is where the log ended at markedAt; zero when it has been reached.
	mark     LSN
	markedAt time.Time
}

// ahead marks the end of the server's log, unless an earlier mark is not reached
// yet.
func (p *pace) ahead(walEnd LSN, at time.Time) {
	if p.markedAt.IsZero() {
		p.mark, p.markedAt = walEnd, at
	}
}

// reached tells that all before a position has been shown.
func (p *pace) reached(through LSN) {
	if !p.markedAt.IsZero() && through >= p.mark {
		p.upTo, p.markedAt = p.markedAt, time.Time{}
	}
}

// behind is how far behind the relay is at a moment: the time since it last knew
// that it was not.
func (p *pace) behind(now time.Time) time.Duration {
	if p.upTo.IsZero() {
		return 0
	}
	return now.Sub(p.upTo)
}

// phase changes what the status says.
func (r *Relay) phase(p Phase, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p != r.status.Phase {
		if p == Standby {
			r.logger.Info("standing by", "reason", reason)
		}
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
