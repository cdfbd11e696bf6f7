package relay

import (
	"slices"
	"sync"
)

// hub knows which subscribers are in which group and offers them new events.
// It never writes to a client: an offer takes a place in a bounded queue.
//
// Locks are taken in the order hub, subscriber.
type hub struct {
	mu     sync.Mutex
	head   int64 // the last event that was offered
	groups map[Group]*members
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

func newHub() *hub { return &hub{groups: make(map[Group]*members)} }

// publish offers events, which the log holds already, to those whom they are for.
func (h *hub) publish(events []*Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.head = e.ID
		for _, g := range e.groups {
			if m := h.groups[g]; m != nil {
				for _, s := range m.subs {
					s.offer(e)
				}
			}
		}
		for _, user := range e.Audience.revoked {
			if m := h.groups[UserGroup(user)]; m != nil {
				for _, s := range m.subs {
					s.finish(ErrRevoked)
				}
			}
		}
	}
}

// reset says where the head is when events may have been added to the log past
// the hub. Every subscriber reads the log again from its cursor.
func (h *hub) reset(head int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
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

// enter makes the subscriber a member of its groups.
func (h *hub) enter(s *Subscriber, groups []Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.add(s, groups)
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
		s.cursor = h.head
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
