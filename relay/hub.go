package relay

import (
	"runtime"
	"slices"
	"sync"
)

// hub knows which subscribers are in which group and offers them new events.
// It waits for no client: an offer takes a place in a bounded queue, and what is
// written is only what a socket takes at once.
//
// Locks are taken in the order hub, subscriber.
type hub struct {
	mu      sync.Mutex
	head    int64 // the last event that was offered
	groups  map[Group]*members
	revoked revocations   // who was told to sign in again
	due     []*Subscriber // those to push to; kept for its memory
	pushers pushers
}

// members are the subscribers of one group.
type members struct {
	group Group
	subs  []*Subscriber
}

// membership is a subscriber's place in a group.
type membership struct {
	in    *members
	index int
}

func newHub() *hub {
	return &hub{groups: make(map[Group]*members), pushers: pushers{most: (runtime.GOMAXPROCS(0) + 1) / 2}}
}

// publish offers events, which the log holds already, to those whom they are for.
// The slice may not change any more: see [Subscriber.offer].
//
// A few who are due are pushed to by the goroutine that calls, outside of the
// lock: waking another for them takes four times as long.
func (h *hub) publish(events []*Event) {
	var few [fewDue]*Subscriber
	for _, s := range few[:h.offer(events, few[:])] {
		s.push()
	}
}

// fewDue is how many subscribers are pushed to by the goroutine that publishes.
const fewDue = 4

// offer offers events. If few become due, it moves them to few and returns how
// many; if more, it leaves them to the pushers and returns 0.
func (h *hub) offer(events []*Event, few []*Subscriber) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, e := range events {
		h.head = e.ID
		for _, g := range e.groups {
			if m := h.groups[g]; m != nil {
				for _, s := range m.subs {
					if s.offer(events, i) {
						h.due = append(h.due, s)
					}
				}
			}
		}
		h.revoke(e)
	}
	if len(h.due) <= len(few) {
		n = copy(few, h.due)
	} else {
		h.pushers.add(h.due)
	}
	clear(h.due)
	h.due = h.due[:0]
	return n
}

// revoke ends those whose sessions an event revokes, and those too that are not
// there yet but were let in on what was known before. h.mu is held.
func (h *hub) revoke(e *Event) {
	for _, user := range e.Audience.revoked {
		h.revoked.add(user)
		if m := h.groups[UserGroup(user)]; m != nil {
			for _, s := range m.subs {
				s.finish(ErrRevoked)
			}
		}
	}
}

// reset says where the head is when events may have been added to the log past
// the hub; newest are the newest of the log. Every subscriber reads the log again
// from its cursor.
func (h *hub) reset(head int64, newest []*Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range newest[after(newest, h.head):] {
		h.revoke(e) // nobody reads that from the log
	}
	h.head = head
	if all := h.groups[Everyone]; all != nil {
		for _, s := range all.subs {
			s.fallBack()
		}
	}
}

// end ends all subscribers.
func (h *hub) end(cause error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if all := h.groups[Everyone]; all != nil {
		for _, s := range all.subs {
			s.finish(cause)
		}
	}
}

// join makes the subscriber live if its cursor is at the head, so that the next
// event published is offered to it: no gap, and no repeat.
func (h *hub) join(s *Subscriber, cursor int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if cursor < h.head {
		return // it has more to read
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The cursor may be ahead of the head: the log is appended to before the
	// hub is told, and what was read from it must not be offered again.
	if !s.closed && s.cursor == cursor && len(s.replays) == 0 {
		s.live, s.offered = true, cursor
	}
}

// enter makes the subscriber a member of its groups, unless its user was revoked
// since it was asked who that is.
func (h *hub) enter(s *Subscriber, user int64, groups []Group, asked Moment) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.revoked.since(user, asked) {
		return ErrRevoked
	}
	h.add(s, groups)
	return nil
}

// moment is now, among the revocations.
func (h *hub) moment() Moment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Moment{h.revoked.count + 1}
}

// move makes the subscriber a member of other groups. What waits in its queue
// is sent by the new groups' rule; what has passed before is past.
func (h *hub) move(s *Subscriber, groups []Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(s.memberships) == 0 {
		return // it has left
	}
	h.remove(s)
	h.add(s, groups)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups = groups
	s.queue = slices.DeleteFunc(s.queue, func(e *Event) bool { return !e.isFor(groups) })
	if s.live && len(s.queue) == 0 {
		// It may be ahead: see join.
		s.cursor = max(s.cursor, h.head)
	}
}

// leave ends the subscriber's memberships. Leaving twice is safe.
func (h *hub) leave(s *Subscriber) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(s)
}

func (h *hub) add(s *Subscriber, groups []Group) {
	s.memberships = make([]membership, 0, len(groups))
	for _, g := range groups {
		m := h.groups[g]
		if m == nil {
			m = &members{group: g}
			h.groups[g] = m
		}
		s.memberships = append(s.memberships, membership{m, len(m.subs)})
		m.subs = append(m.subs, s)
	}
}

func (h *hub) remove(s *Subscriber) {
	for _, own := range s.memberships {
		m := own.in
		last := len(m.subs) - 1
		moved := m.subs[last]
		m.subs[own.index], m.subs[last] = moved, nil
		m.subs = m.subs[:last]
		for i := range moved.memberships {
			if moved.memberships[i].in == m {
				moved.memberships[i].index = own.index
			}
		}
		if last == 0 {
			delete(h.groups, m.group)
		}
	}
	s.memberships = nil
}
