package stream

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// TestTheClockCallsEachOnceWhenItIsDue: however often the time is moved, before and
// behind those of others; and who has been dropped not at all.
func TestTheClockCallsEachOnceWhenItIsDue(t *testing.T) {
	t.Parallel()
	const clients, span = 2000, 200 * time.Millisecond
	server := &Server{}
	type client struct {
		session *session
		link    *countingLink
		dropped bool
	}
	all := make([]client, clients)
	end := time.Now().Add(time.Hour)
	var setting sync.WaitGroup
	for i := range all {
		l := &countingLink{}
		s := &session{server: server, link: l}
		s.identity.ExpiresAt, s.noticed = end, true
		all[i] = client{session: s, link: l, dropped: rand.N(4) == 0}
		setting.Go(func() {
			server.clock.set(s, time.Hour)
			server.clock.set(s, 30*time.Minute)
			if all[i].dropped {
				server.clock.drop(s)
			} else {
				server.clock.set(s, rand.N(span))
			}
		})
	}
	setting.Wait()
	relaytest.Wait(t, "each has been called", func() bool {
		for _, c := range all {
			if !c.dropped && c.link.beats.Load() == 0 {
				return false
			}
		}
		return true
	})
	for _, c := range all {
		want := int64(1)
		if c.dropped {
			want = 0
		}
		if n := c.link.beats.Load(); n != want {
			t.Fatalf("a client (dropped: %t) has been called %d times", c.dropped, n)
		}
		c.session.end(reasonClosed, "")
	}
	server.clock.mu.Lock()
	defer server.clock.mu.Unlock()
	if n := len(server.clock.due); n != 0 || !server.clock.armed.IsZero() {
		t.Errorf("%d sessions are in the clock, which is set to %s, after the end of all", n, server.clock.armed)
	}
}

// TestTheClockIsNotEarly: a tick that came early would find nothing to do, and be set
// again, and again.
func TestTheClockIsNotEarly(t *testing.T) {
	t.Parallel()
	server := &Server{}
	const clients = 200
	early := make(chan time.Duration, clients)
	for range clients {
		after := rand.N(100 * time.Millisecond)
		l := &timedLink{due: time.Now().Add(after), early: early}
		s := &session{server: server, link: l}
		s.identity.ExpiresAt, s.noticed = time.Now().Add(time.Hour), true
		server.clock.set(s, after)
		t.Cleanup(func() { s.end(reasonClosed, "") })
	}
	for range clients {
		if d := <-early; d > 0 {
			t.Errorf("a tick came %s early", d)
		}
	}
}

// timedLink says how early its beat comes.
type timedLink struct {
	countingLink
	due   time.Time
	early chan<- time.Duration
}

func (l *timedLink) beat() { l.early <- time.Until(l.due) }
