package stream

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// countingLink is a transport that writes nothing.
type countingLink struct {
	beats, notices atomic.Int64
}

func (l *countingLink) beat()                             { l.beats.Add(1) }
func (l *countingLink) interval() time.Duration           { return 25 * time.Second }
func (l *countingLink) sayGoodbye(*Reason, string)        {}
func (l *countingLink) Events([]*relay.Event, bool) error { return nil }
func (l *countingLink) End(error)                         {}

func (l *countingLink) Control(m relay.Control) error {
	if _, ok := m.(expiring); ok {
		l.notices.Add(1)
	}
	return nil
}

// A client that was pinged a moment before the notice has had no time to answer:
// a beat would take it for dead.
func TestTheNoticeIsNoBeat(t *testing.T) {
	t.Parallel()
	l := &countingLink{}
	sub, err := relaytest.New(t, relay.Options{}).Subscribe(relay.Identity{UserID: 1, Role: "admin"}, l, relay.Start{})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	now := time.Now()
	s := &session{server: &Server{}, link: l, sub: sub, beatAt: now.Add(time.Second)}
	defer s.end(reasonClosed, "")
	s.identity.ExpiresAt = now.Add(expiryNotice + 500*time.Millisecond)
	if d := s.untilTick(now); d != 500*time.Millisecond {
		t.Errorf("the next tick is in %s, want the notice in 500ms", d)
	}
	s.identity.ExpiresAt = now.Add(expiryNotice)
	s.tick()
	relaytest.Wait(t, "the notice", func() bool { return l.notices.Load() == 1 })
	if n := l.beats.Load(); n != 0 {
		t.Errorf("%d beats came with the notice", n)
	}
	if d := s.untilTick(now); d != time.Second {
		t.Errorf("the next tick is in %s, want the beat in 1s", d)
	}
	s.mu.Lock()
	s.beatAt = now
	s.mu.Unlock()
	s.tick()
	if n := l.beats.Load(); n != 1 {
		t.Errorf("%d beats, want 1", n)
	}
	if n := l.notices.Load(); n != 1 {
		t.Errorf("%d notices, want 1", n)
	}
	s.renew(Identity{ExpiresAt: now.Add(expiryNotice + 10*time.Second)}, func() {})
	if d := s.untilTick(now); d != 10*time.Second {
		t.Errorf("after the renewal the next tick is in %s, want a notice in 10s", d)
	}
}
