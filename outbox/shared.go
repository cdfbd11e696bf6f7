package outbox

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// After a restart, or an outage, all clients come back at once, and have missed
// much the same. What they ask of the journal meanwhile is answered together:
// whoever asks while others are being answered waits for the next turn. A turn
// finds the events of everybody's groups, in one query for each kind of group, and
// then reads each event once, whoever it is for. The number of queries so depends
// on how many events there are and how long it takes to read them, and no more on
// how many clients want them.

// What a turn does at once, at most: requests, entries of the journal that it keeps for
// them (twice as many, as each may have its share), which are a few megabytes, and
// events that one query reads.
const (
	turnRequests = 256
	turnEntries  = 1 << 16
	turnEvents   = 4096
)

// turnPatience is how long who asks waits for a turn to end before another one
// begins beside it: one that reads large rows must not hold up all others.
const turnPatience = 25 * time.Millisecond

// turnPause is how long requests gather after a turn that was for several: those
// whom it has answered are about to ask for their next page.
const turnPause = 5 * time.Millisecond

// request is a Read that waits.
type request struct {
	epoch          string
	after, through int64
	groups         []relay.Group
	limit          int

	entries []entry // found for it, in order
	more    bool    // there may be others behind them
	answer  chan<- answer
}

type answer struct {
	page relay.Page
	err  error
}

// queue is the requests that wait for their turn.
type queue struct {
	mu      sync.Mutex
	waiting []*request
	turns   int // under way
	timer   *time.Timer
}

// Read is part of relay.JournalReader.
func (j *Journal) Read(ctx context.Context, epoch string, after, through int64, groups []relay.Group, limit int) (relay.Page, error) {
	answered := make(chan answer, 1)
	j.queue.add(&request{epoch: epoch, after: after, through: through, groups: groups, limit: limit, answer: answered}, j.takeTurns)
	select {
	case a := <-answered:
		return a.page, a.err
	case <-ctx.Done():
		return relay.Page{}, ctx.Err()
	}
}

// add has a request wait, and sees to it that somebody comes to it.
func (q *queue) add(r *request, takeTurns func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, r)
	switch {
	case q.turns == 0:
		q.turns++
		go takeTurns()
	case q.timer == nil && q.turns < readers:
		q.timer = time.AfterFunc(turnPatience, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			q.timer = nil
			if len(q.waiting) > 0 && q.turns < readers {
				q.turns++
				go takeTurns()
			}
		})
	}
}

// take is the next turn's requests. When there are none, whoever asks has ended.
func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.waiting), turnRequests)
	if n == 0 {
		q.turns--
		q.waiting = nil
		return nil
	}
	taken := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return taken
}

// takeTurns answers requests until none waits.
func (j *Journal) takeTurns() {
	for taken := j.queue.take(); len(taken) > 0; taken = j.queue.take() {
		crowd := len(taken) > 1
		unanswered, err := j.turn(taken)
		for _, r := range unanswered {
			r.answer <- answer{err: err}
		}
		if crowd {
			time.Sleep(turnPause)
		}
	}
}

// turn answers requests. It returns those that an error has left.
func (j *Journal) turn(requests []*request) (unanswered []*request, err error) {
	found, err := j.find(requests)
	if err != nil {
		return requests, err
	}
	unanswered = slices.DeleteFunc(requests, func(r *request) bool {
		switch {
		case !isOf(found.epoch, r.epoch):
			r.answer <- answer{err: relay.ErrNewEpoch}
		case found.last < r.through:
			r.answer <- answer{err: relay.ErrLacking}
		case len(r.entries) == 0: // there is nothing
			r.answer <- answer{page: relay.Page{Through: r.through, Gap: found.deleted > r.after}}
		default:
			return false
		}
		return true
	})
	for len(unanswered) > 0 {
		entries := wanted(unanswered)
		read, err := j.readThese(entries)
		if err != nil {
			return unanswered, err
		}
		unanswered = slices.DeleteFunc(unanswered, func(r *request) bool {
			page, some := r.pick(&read, entries)
			if some {
				r.answer <- answer{page: page}
			}
			return some
		})
	}
	return nil, nil
}

// wanted is the events that requests want, each once and in order: those of as
// many requests as make a query of the usual size, and of one at least.
func wanted(requests []*request) []entry {
	seen := make(map[int64]entry)
	for _, r := range requests {
		if len(seen) > 0 && len(seen)+len(r.entries) > turnEvents {
			break
		}
		for _, e := range r.entries {
			if !seen[e.event].located {
				seen[e.event] = e
			}
		}
	}
	return slices.SortedFunc(maps.Values(seen), compareEntries)
}

// pick picks what is for the request out of the events that were read of those
// that were asked for. some is false if none of its own were, so that it has to
// be asked for again; the first of all that were asked for always is.
func (r *request) pick(read *entriesPage, asked []entry) (page relay.Page, some bool) {
	page.Gap = read.deleted > r.after
	events := read.Events
	for _, e := range r.entries {
		at, isAsked := slices.BinarySearchFunc(asked, e, compareEntries)
		if asked = asked[at:]; !isAsked || read.Through > 0 && e.event > read.Through {
			return page, some
		}
		for len(events) > 0 && events[0].ID < e.event {
			events = events[1:]
		}
		if len(events) > 0 && events[0].ID == e.event {
			page.Events = append(page.Events, events[0])
		} else {
			page.Gap = true
		}
		page.Through, some = e.event, true
	}
	if !r.more {
		page.Through = r.through
	}
	return page, true
}
