package relaytest

import (
	"context"
	"slices"

	"github.com/syncrelay/syncrelay/relay"
)

type journal struct{ w *World }

// Acquire is part of [relay.Journal].
func (j journal) Acquire(ctx context.Context, wait func(string)) (relay.Tenure, error) {
	w := j.w
	for {
		w.mu.Lock()
		if !w.owned {
			w.owned = true
			w.tenure++
			t := &tenure{w: w, number: w.tenure, state: w.state}
			t.state.Floors = slices.Clone(w.state.Floors)
			w.mu.Unlock()
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
func (j journal) Read(_ context.Context, after, through int64, groups []relay.Group, limit int) ([]*relay.Event, int64, error) {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	var page []*relay.Event
	for _, e := range j.w.entries {
		if e.ID <= after || e.ID > through || !intersect(e, groups) {
			continue
		}
		page = append(page, e)
		if len(page) == limit {
			return page, e.ID, nil
		}
	}
	return page, through, nil
}

func intersect(e *relay.Event, groups []relay.Group) bool {
	return slices.ContainsFunc(e.Audience.Groups(), func(g relay.Group) bool { return slices.Contains(groups, g) })
}

// Newest is part of [relay.JournalReader].
func (j journal) Newest(_ context.Context, limit, maxBytes int) ([]*relay.Event, error) {
	j.w.mu.Lock()
	defer j.w.mu.Unlock()
	from := len(j.w.entries)
	for bytes := 0; from > 0 && limit > 0; from, limit = from-1, limit-1 {
		if bytes += j.w.entries[from-1].Size(); bytes > maxBytes {
			break
		}
	}
	return slices.Clone(j.w.entries[from:]), nil
}

type tenure struct {
	w      *World
	number int64
	state  relay.State
}

// State is part of [relay.Tenure].
func (t *tenure) State() relay.State { return t.state }

// write does something with the journal, if this is still the owner.
func (t *tenure) write(change func(*World)) error {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if t.number != t.w.tenure || !t.w.owned {
		return relay.ErrFenced
	}
	change(t.w)
	return nil
}

// Save is part of [relay.Tenure].
func (t *tenure) Save(_ context.Context, s relay.State) error {
	return t.write(func(w *World) { w.state = s })
}

// Append is part of [relay.Tenure].
func (t *tenure) Append(_ context.Context, b *relay.Batch) error {
	return t.write(func(w *World) {
		w.entries = append(w.entries, b.Events...)
		w.state.LastID = b.Events[len(b.Events)-1].ID
		w.state.High, w.state.Confirmed = b.High, max(w.state.Confirmed, b.Confirm)
		if w.state.Oldest == 0 {
			w.state.Oldest = b.Events[0].ID
		}
	})
}

// Advance is part of [relay.Tenure].
func (t *tenure) Advance(_ context.Context, confirm relay.LSN) error {
	return t.write(func(w *World) { w.state.Confirmed = max(w.state.Confirmed, confirm) })
}

// Flushed is part of [relay.Tenure].
func (t *tenure) Flushed(context.Context) (at relay.LSN, err error) {
	err = t.write(func(w *World) { at = w.state.Confirmed })
	return at, err
}

// End is part of [relay.Tenure].
func (t *tenure) End(context.Context) (at relay.LSN, err error) {
	err = t.write(func(w *World) { w.state.Clean, at = true, w.state.Confirmed })
	return at, err
}

// Close is part of [relay.Tenure].
func (t *tenure) Close() {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	if t.number == t.w.tenure {
		t.w.owned = false
		t.w.notify()
	}
}
