package stream

import (
	"container/heap"
	"sync"
	"time"
)

// clock calls each session's tick when it is due, by one timer for all of them.
//
// Timers of their own would all stand in the runtime's heap of timers. That is
// looked through from end to end whenever one falls due that was moved in it, and
// pgx moves one to 15 ms from now with each statement: among 20,000 clients who
// receive nothing, a fifth of what an event costs the relay went there.
type clock struct {
	mu    sync.Mutex
	due   dueSessions
	timer *time.Timer // made with the first session
	armed time.Time   // when it goes off; zero if it does not
}

// alarm is a session's place in the clock, which guards it.
type alarm struct {
	at    time.Time
	place int // in dueSessions, counted from 1; 0 is nowhere
}

// set has a session's tick called once, that long from now, and not when it was set
// before.
func (c *clock) set(s *session, after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.alarm.at = time.Now().Add(after)
	if s.alarm.place == 0 {
		heap.Push(&c.due, s)
	} else {
		heap.Fix(&c.due, s.alarm.place-1)
	}
	c.arm()
}

// drop forgets a session. A tick that is under way is not stopped.
func (c *clock) drop(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.alarm.place != 0 {
		heap.Remove(&c.due, s.alarm.place-1)
		c.arm()
	}
}

// arm has the timer go off with the first who is due. It may go off before that; when
// nobody is left it is stopped. c.mu is held.
func (c *clock) arm() {
	switch {
	case len(c.due) == 0:
		if c.timer != nil {
			c.timer.Stop()
		}
		c.armed = time.Time{}
	case c.armed.IsZero() || c.due[0].alarm.at.Before(c.armed):
		c.armed = c.due[0].alarm.at
		if after := time.Until(c.armed); c.timer == nil {
			c.timer = time.AfterFunc(after, c.ring)
		} else {
			c.timer.Reset(after)
		}
	}
}

// ring is what the timer calls. Each tick has a goroutine of its own, as it may
// write to its client.
func (c *clock) ring() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = time.Time{}
	for now := time.Now(); len(c.due) > 0 && !c.due[0].alarm.at.After(now); {
		go heap.Pop(&c.due).(*session).tick() //nolint:forcetypeassert // nothing else is pushed
	}
	c.arm()
}

// dueSessions is a heap for [container/heap]: the session that is due first is the
// first.
type dueSessions []*session

func (d dueSessions) Len() int           { return len(d) }
func (d dueSessions) Less(i, j int) bool { return d[i].alarm.at.Before(d[j].alarm.at) }

func (d dueSessions) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].alarm.place, d[j].alarm.place = i+1, j+1
}

// Push is part of [heap.Interface].
func (d *dueSessions) Push(s any) {
	session := s.(*session) //nolint:forcetypeassert // the clock pushes nothing else
	*d = append(*d, session)
	session.alarm.place = len(*d)
}

// Pop is part of [heap.Interface].
func (d *dueSessions) Pop() any {
	last := len(*d) - 1
	session := (*d)[last]
	(*d)[last], *d = nil, (*d)[:last]
	session.alarm.place = 0
	return session
}
