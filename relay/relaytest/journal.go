package relaytest

import (
	"context"
	"slices"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

type journal struct {
	w    *World
	life *Life
}

// Acquire is part of [relay.Journal].
func (j journal) Acquire(ctx context.Context, wait func(string)) (relay.Tenure, error) {
	w := j.w
	for {
		w.mu.Lock()
		if err := j.life.step("acquire"); err != nil {
			w.mu.Unlock()
			return nil, err
		}
		if w.owner == nil {
			w.owner = j.life
			w.tenure++
			t := &tenure{w: w, life: j.life, number: w.tenure, state: w.journal.clone().state}
			err := j.life.step("acquired")
			w.mu.Unlock()
			if err != nil {
				return nil, err
			}
			return t, nil
		}
		changed := w.changed
		w.mu.Unlock()
		wait("another relay is the owner")
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Read is part of [relay.JournalReader].
func (j journal) Read(_ context.Context, epoch string, after, through int64, groups []relay.Group, limit int) (relay.Page, error) {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	if err := j.life.step("read"); err != nil {
		return relay.Page{}, err
	}
	if err := j.isOf(epoch); err != nil {
		return relay.Page{}, err
	}
	if j.w.journal.state.LastID < through {
		return relay.Page{}, relay.ErrLacking
	}
	page := relay.Page{Through: through}
	for _, e := range j.w.journal.entries {
		if e.ID <= after || e.ID > through || !intersect(e, groups) {
			continue
		}
		page.Events = append(page.Events, j.w.present(e))
		if len(page.Events) == limit {
			page.Through = e.ID
			break
		}
	}
	return page, nil
}

// isOf fails if the journal is of another epoch.
func (j journal) isOf(epoch string) error {
	if epoch != "" && j.w.journal.state.Epoch != epoch {
		return relay.ErrNewEpoch
	}
	return nil
}

func intersect(e *relay.Event, groups []relay.Group) bool {
	return slices.ContainsFunc(e.Groups(), func(g relay.Group) bool { return slices.Contains(groups, g) })
}

// Newest is part of [relay.JournalReader].
func (j journal) Newest(_ context.Context, epoch string, limit, maxBytes int) ([]*relay.Event, error) {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	if err := j.life.step("newest"); err != nil {
		return nil, err
	}
	if err := j.isOf(epoch); err != nil {
		return nil, err
	}
	entries := j.w.journal.entries
	from := len(entries)
	for bytes := 0; from > 0 && limit > 0; from, limit = from-1, limit-1 {
		if bytes += entries[from-1].Size(); bytes > maxBytes {
			break
		}
	}
	newest := slices.Clone(entries[from:])
	for i, e := range newest {
		newest[i] = j.w.present(e)
	}
	return newest, nil
}

type tenure struct {
	w      *World
	life   *Life
	number int64
	state  relay.State
}

// State is part of [relay.Tenure].
func (t *tenure) State() relay.State { return t.state }

// write does something with the journal, if this is still the owner.
func (t *tenure) write(step string, durable bool, change func(*book)) error {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if err := t.life.step(step); err != nil {
		return err
	}
	if t.number != t.w.tenure || t.w.owner != t.life {
		return relay.ErrFenced
	}
	change(&t.w.journal)
	if durable {
		t.w.disk, t.w.flushing = t.w.journal.clone(), book{}
	}
	return t.life.step(step + " done")
}

// Save is part of [relay.Tenure].
func (t *tenure) Save(_ context.Context, s relay.State) error {
	return t.write("save", true, func(b *book) { b.state = s })
}

// Append is part of [relay.Tenure].
func (t *tenure) Append(_ context.Context, batch *relay.Batch) error {
	time.Sleep(Latency)
	return t.write("append", batch.Durable, func(b *book) {
		for _, e := range batch.Events {
			t.w.journaled[e.ID] = e.RowID
		}
		b.entries = append(b.entries, batch.Events...)
		b.state.LastID = batch.Events[len(batch.Events)-1].ID
		b.state.High, b.state.Confirmed = batch.High, max(b.state.Confirmed, batch.Confirm)
		if b.state.Oldest == 0 {
			b.state.Oldest = batch.Events[0].ID
		}
	})
}

// Advance is part of [relay.Tenure].
func (t *tenure) Advance(_ context.Context, confirm relay.LSN) error {
	return t.write("advance", false, func(b *book) { b.state.Confirmed = max(b.state.Confirmed, confirm) })
}

// Pulse is part of [relay.Tenure]. The server writes to disk what was in the
// journal at the call before.
func (t *tenure) Pulse(context.Context) (p relay.Pulse, err error) {
	err = t.write("pulse", false, func(now *book) {
		if t.w.flushing.entries != nil {
			t.w.disk = t.w.flushing
		}
		t.w.flushing = now.clone()
		p = relay.Pulse{Flushed: t.w.disk.state.Confirmed, WALEnd: t.w.end}
	})
	return p, err
}

// Working is part of [relay.Tenure].
func (t *tenure) Working(context.Context) (bool, error) {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	t.w.asked++
	return t.w.working, nil
}

// End is part of [relay.Tenure].
func (t *tenure) End(_ context.Context, clean bool) (at relay.LSN, err error) {
	err = t.write("end", true, func(b *book) { b.state.Clean, at = clean, b.state.Confirmed })
	return at, err
}

// Close is part of [relay.Tenure].
func (t *tenure) Close() {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if t.w.owner == t.life && t.number == t.w.tenure {
		t.w.owner = nil
		t.w.notify()
	}
}
