package relay

import (
	"context"
	"fmt"
	"sync"
)

// log is the events in order: a ring in memory on top of the journal.
type log struct {
	reader JournalReader
	// reads bounds how many reads of the journal are under way at once.
	reads chan struct{}

	mu     sync.RWMutex
	ring   ring
	extent Extent
	open   bool // the head is known, and moves
	begun  bool // the head was known once
}

// Extent is what the log spans.
type Extent struct {
	// Head is the newest event ID, 0 for none.
	Head int64
	// Oldest is the oldest event ID that can still be read, 0 for none.
	Oldest int64
	// Deleted is the newest event ID that retention has deleted: a cursor
	// before it has missed events.
	Deleted int64
	Epoch   string
	// EpochAfter is the last event ID of the epochs before this one, 0 for none.
	EpochAfter int64
}

// truncates reports whether some event after the cursor is gone, or can't be
// compared with it.
func (x Extent) truncates(cursor int64) bool {
	return cursor < x.Deleted || cursor > 0 && cursor <= x.EpochAfter
}

// Page is a part of the log, as one subscriber may see it.
type Page struct {
	Events []*Event
	// Through is the event ID up to which the log was looked through.
	Through     int64
	FromJournal bool
}

func newLog(reader JournalReader, maxEvents, maxBytes, maxReads int) *log {
	return &log{
		reader: reader,
		reads:  make(chan struct{}, maxReads),
		ring:   ring{maxEvents: maxEvents, maxBytes: maxBytes},
	}
}

// close takes no more subscribers until the next tenure.
func (l *log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = false
}

// holds reports whether the log has everything up to id, the last event that
// the journal remembers. It may have more: a crash of the server may have taken
// from the journal what this process has shown.
func (l *log) holds(id int64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.begun && l.extent.Head >= id
}

// resume tells the log its extent when a tenure goes on where this process was.
// It goes on taking subscribers if it did, and waits for serve if it did not.
func (l *log) resume(x Extent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.Head = max(x.Head, l.extent.Head)
	l.extent = x
}

// serve takes subscribers from now on.
func (l *log) serve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = true
}

// reset tells the log its extent when a tenure begins with what the journal
// holds, and hands it the newest of that, oldest first. It returns the head,
// which never moves back. Subscribers are taken when serve is called.
func (l *log) reset(x Extent, newest []*Event) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	floor := x.Head
	if len(newest) > 0 {
		floor = newest[0].ID - 1
	}
	l.ring.reset(floor)
	for _, e := range newest {
		l.ring.append(e)
	}
	x.Head = max(x.Head, l.extent.Head)
	l.extent, l.open, l.begun = x, false, true
	return x.Head
}

// append adds events that the journal holds.
func (l *log) append(events []*Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		l.ring.append(e)
	}
	l.extent.Head = events[len(events)-1].ID
	if l.extent.Oldest == 0 {
		l.extent.Oldest = events[0].ID
	}
}

// retain tells the log what retention left. What is deleted from the journal is
// not kept in memory either.
func (l *log) retain(oldest, deleted int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.extent.Oldest = oldest
	l.extent.Deleted = max(l.extent.Deleted, deleted)
	if oldest == 0 {
		oldest = deleted + 1 // nothing is left up to there
	}
	for l.ring.count > 0 && l.ring.at(0).ID < oldest {
		l.ring.dropOldest()
	}
	if l.extent.Oldest == 0 && l.ring.count > 0 {
		l.extent.Oldest = l.ring.at(0).ID // it came since the journal was asked
	}
}

// Extent is what the log spans now.
func (l *log) Extent() Extent {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.extent
}

// serving reports whether the log's head is known.
func (l *log) serving() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.open
}

// scanLimit bounds how many events of the ring one Read looks at, so that the
// log's lock is never held for long.
const scanLimit = 4096

// Read reads on after a cursor: at most limit events that are for one of the
// groups, from memory when the ring reaches back far enough and from the
// journal otherwise. The page's Through is where to read on; it is the head when
// everything has been read.
func (l *log) Read(ctx context.Context, cursor int64, groups []Group, limit int) (Page, error) {
	l.mu.RLock()
	floor := l.ring.floor
	if cursor >= floor {
		page := l.scan(cursor, groups, limit)
		l.mu.RUnlock()
		return page, nil
	}
	l.mu.RUnlock()

	select {
	case l.reads <- struct{}{}:
		defer func() { <-l.reads }()
	case <-ctx.Done():
		return Page{}, ctx.Err()
	}
	events, through, err := l.reader.Read(ctx, cursor, floor, groups, limit)
	if err != nil {
		return Page{}, fmt.Errorf("read the journal after event %d: %w", cursor, err)
	}
	return Page{Events: events, Through: through, FromJournal: true}, nil
}

// scan reads the ring. l.mu is held.
func (l *log) scan(cursor int64, groups []Group, limit int) Page {
	page := Page{Through: max(cursor, l.extent.Head)}
	from := l.ring.after(cursor)
	to := min(from+scanLimit, l.ring.count)
	for i := from; i < to; i++ {
		e := l.ring.at(i)
		if e.isFor(groups) {
			page.Events = append(page.Events, e)
			if len(page.Events) == limit {
				page.Through = e.ID
				return page
			}
		}
	}
	if to < l.ring.count {
		page.Through = l.ring.at(to - 1).ID
	}
	return page
}

// isFor reports whether the event is for one of the groups.
func (e *Event) isFor(groups []Group) bool {
	for _, g := range e.groups {
		for _, own := range groups {
			if g == own {
				return true
			}
		}
	}
	return false
}
