package relay

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// log is the events in order: a ring in memory on top of the journal.
type log struct {
	reader JournalReader

	mu     sync.RWMutex
	ring   ring
	extent Extent
	open   bool // the head is known, and moves
	begun  bool // the head was known once
	// partial: of the newest events no more were read at once than must be, and the
	// ring has not been filled yet.
	partial bool
}

// firstEvents is how many of the newest events a new process reads before it
// streams. Those that fill the ring it reads when it has caught up, and not at all
// if what it has streamed by then has filled it.
const firstEvents = 4096

// atOnce is how many of the newest events must be read before the log is reset: all
// that the ring takes if somebody may have missed them, who was here before.
func (l *log) atOnce() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.begun {
		return l.ring.maxEvents
	}
	return min(l.ring.maxEvents, firstEvents)
}

// room reports whether there may be events below the ring's that it has room for.
func (l *log) room() (below border, room bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return border{l.extent.Epoch, l.ring.floor}, l.partial && l.ring.count < l.ring.maxEvents
}

// prepend puts older events into the ring, of those that the journal holds as its
// newest: what is up to the border, which was the ring's.
func (l *log) prepend(below border, newest []*Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.partial || below != (border{l.extent.Epoch, l.ring.floor}) {
		return // it was filled, or reset
	}
	l.partial = false
	older := newest[:after(newest, below.floor)]
	older = older[after(older, max(l.extent.Oldest-1, l.extent.Deleted)):] // retention has come between
	l.ring.prepend(older)
}

// Extent is what the log spans.
type Extent struct {
	// Head is the newest event ID, 0 for none; after a jump of the assignment the
	// ID that it goes on from.
	Head int64
	// Oldest is the oldest event ID that can still be read, 0 for none.
	Oldest int64
	// Deleted is the newest event ID that retention has deleted: a cursor
	// before it has missed events.
	Deleted int64
	Epoch   string
	// EpochAfter is above all event IDs of the epochs before this one, 0 if there
	// were none. It names no event.
	EpochAfter int64

	// last is the newest event that can be read. It is below Head while a crash
	// of the server has taken from the journal what was shown, and memory does
	// not have it either: the slot sends it again.
	last int64
}

// truncates reports whether some event after the cursor is gone, or can't be
// compared with it.
func (x Extent) truncates(cursor int64) bool {
	return cursor < x.Deleted || cursor > 0 && cursor < x.EpochAfter
}

// Page is a part of the log, as one subscriber may see it.
type Page struct {
	Events []*Event
	// Through is the event ID up to which the log was looked through.
	Through int64
	// Gap: some event between the cursor and Through has been deleted.
	Gap         bool
	FromJournal bool
}

func newLog(reader JournalReader, maxEvents, maxBytes int) *log {
	return &log{
		reader: reader,
		ring:   ring{maxEvents: maxEvents, maxBytes: maxBytes},
	}
}

// close takes no more subscribers until the next tenure.
func (l *log) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = false
}

// holds reports whether the log goes on without a hole where the journal ends,
// with id. It may have more: a crash of the server may have taken from the
// journal what this process has shown, but then memory must have all of that.
func (l *log) holds(id int64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.begun && l.extent.Head >= id && l.ring.floor <= id
}

// resume tells the log its extent when a tenure goes on where this process was.
// It goes on taking subscribers if it did, and waits for serve if it did not.
func (l *log) resume(x Extent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x = x.since(l.extent)
	x.last = x.Head
	l.extent = x
}

// since is an extent that was read, in the light of what was known before: the
// head never moves back, and what retention deleted while it was read is gone.
func (x Extent) since(before Extent) Extent {
	x.Head = max(x.Head, before.Head)
	if before.Deleted > x.Deleted {
		x.Oldest, x.Deleted = before.Oldest, before.Deleted
	}
	return x
}

// serve takes subscribers from now on.
func (l *log) serve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = true
}

// reset tells the log its extent when a tenure begins with what the journal
// holds, and hands it the newest of that, oldest first. It returns the newest
// event that can be read. Subscribers are taken when serve is called.
func (l *log) reset(x Extent, newest []*Event) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = !l.begun && len(newest) == firstEvents
	floor := x.Head
	if len(newest) > 0 {
		floor = newest[0].ID - 1
	}
	l.ring.reset(floor)
	for _, e := range newest {
		l.ring.append(e)
	}
	x.last = x.Head
	l.extent, l.open, l.begun = x.since(l.extent), false, true
	return x.last
}

// append adds events that the journal holds.
func (l *log) append(events []*Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		l.ring.append(e)
	}
	l.extent.last = events[len(events)-1].ID
	l.extent.Head = max(l.extent.Head, l.extent.last)
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
	page, below, ok := l.recent(cursor, groups, limit)
	if ok {
		return page, nil
	}
	page, err := l.reader.Read(ctx, below.epoch, cursor, below.floor, groups, limit)
	if err != nil {
		return Page{}, fmt.Errorf("read the journal after event %d: %w", cursor, err)
	}
	page.FromJournal = true
	// The journal remembers whom an event was for, and the table what is in it. A
	// row that somebody has changed since is for whom it says now, too.
	page.Events = slices.DeleteFunc(page.Events, func(e *Event) bool { return !e.isFor(groups) })
	return page, nil
}

// border is where memory ends: everything above floor is there, and what is below
// must be of the same epoch.
type border struct {
	epoch string
	floor int64
}

// recent is Read from memory, if that reaches back far enough.
func (l *log) recent(cursor int64, groups []Group, limit int) (page Page, below border, ok bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	below = border{l.extent.Epoch, l.ring.floor}
	if cursor < below.floor {
		return Page{}, below, false
	}
	return l.scan(cursor, groups, limit), below, true
}

// remembers reports whether recent reaches back to a cursor.
func (l *log) remembers(cursor int64) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return cursor >= l.ring.floor
}

// scan reads the ring. l.mu is held.
func (l *log) scan(cursor int64, groups []Group, limit int) Page {
	page := Page{Through: max(cursor, l.extent.last)}
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
