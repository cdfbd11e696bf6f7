package relay_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// brittle is a sink that panics.
type brittle struct {
	at    string
	ended chan error
}

func (b brittle) Events([]*relay.Event, bool) error { return b.step("events") }
func (b brittle) Control(relay.Control) error       { return b.step("control") }
func (b brittle) End(cause error)                   { b.ended <- cause; _ = b.step("end") }

func (b brittle) step(name string) error {
	if b.at == name {
		panic("out of order")
	}
	if b.at == "end" && name == "events" {
		return errors.New("broken")
	}
	return nil
}

func TestASinkThatPanicsEndsItsSubscriberOnly(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"control", "events", "end"} {
		r := relaytest.New(t, relay.Options{})
		other := relaytest.Connect(t, r.Relay, admin, relay.Start{})
		sink := brittle{at, make(chan error, 1)}
		sub, err := r.Subscribe(admin, sink, relay.Start{})
		if err != nil {
			t.Fatal(err)
		}
		r.Insert(grade(17))
		var fault *relay.SinkPanicError
		if cause := <-sink.ended; errors.As(cause, &fault) == (at == "end") {
			t.Errorf("%s: the subscriber ended with %v", at, cause)
		}
		sub.Close()
		r.Insert(grade(17))
		waitFor(t, other, 1, 2)
	}
}

func TestReplaysAreCountedFromAskedToEnded(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	r.Insert(grade(17))
	waitForHead(t, r.Relay, 1)
	var count atomic.Int64
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	c.Block()
	r.Insert(grade(17)) // on which the pump waits
	counted, err := r.Subscribe(admin, c, relay.Start{Resume: true, Replays: &count})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := counted.Replay(0); err != nil {
			t.Fatal(err)
		}
	}
	if err := counted.Replay(99); err != nil { // is answered with a failure
		t.Fatal(err)
	}
	if count.Load() != 4 || r.Replays() != 4 {
		t.Errorf("counted %d of the user and %d in all, want 4", count.Load(), r.Replays())
	}
	c.Unblock()
	relaytest.Wait(t, "all replays have ended", func() bool { return count.Load() == 0 && r.Replays() == 0 })
	c.Block()
	r.Insert(grade(17))
	for range 3 {
		if err := counted.Replay(0); err != nil {
			t.Fatal(err)
		}
	}
	go c.Unblock()
	counted.Close()
	if count.Load() != 0 || r.Replays() != 0 {
		t.Errorf("after the end %d of the user and %d in all are counted", count.Load(), r.Replays())
	}
}

func TestReplaysArePacedAndLiveEventsAreNot(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{RingEvents: 10})
	for range 20 {
		r.Insert(grade(17))
	}
	waitForHead(t, r.Relay, 20)
	var reads atomic.Int64
	let := make(chan struct{})
	pace := func(ctx context.Context) error {
		reads.Add(1)
		select {
		case <-let:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	live := relaytest.Connect(t, r.Relay, admin, relay.Start{Pace: pace})
	live.Block()
	for range 300 { // more than its queue holds
		r.Insert(grade(17))
	}
	waitForHead(t, r.Relay, 320)
	live.Unblock()
	waitFor(t, live, span(21, 320)...)
	if reads.Load() != 0 {
		t.Error("a client that fell behind was held back")
	}
	fromJournal := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, Pace: pace})
	relaytest.Wait(t, "the read waits", func() bool { return reads.Load() == 1 })
	if got := fromJournal.Got(); len(got) != 0 {
		t.Errorf("got %v without waiting", got)
	}
	let <- struct{}{} // what the journal has
	waitFor(t, fromJournal, span(1, 320)...)
	waiting := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, Pace: pace})
	relaytest.Wait(t, "the read waits", func() bool { return reads.Load() == 2 })
	waiting.Close() // ends the waiting
	fromMemory := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, After: 310, Pace: pace})
	waitFor(t, fromMemory, span(311, 320)...)
	if n := reads.Load(); n != 2 {
		t.Errorf("%d reads were held back, want 2: none from memory", n)
	}
}

// What a client is told at once, such as the answer to a ping, and other groups are
// no replay's to hold back.
func TestAReplayThatIsHeldBackHoldsNothingElseBack(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{RingEvents: 1})
	for range 20 {
		r.Insert(grade(17))
	}
	r.Insert(relay.Row{Type: "notice", Roles: []string{"cadet"}}, grade(17))
	waitForHead(t, r.Relay, 22)
	var waiting atomic.Int64
	let := make(chan struct{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true, Pace: func(ctx context.Context) error {
		waiting.Add(1)
		select {
		case <-let:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	for i := range 5 {
		relaytest.Wait(t, "the replay is held back", func() bool { return waiting.Load() == int64(i+1) })
		if err := c.Post(i); err != nil {
			t.Fatal(err)
		}
		relaytest.Wait(t, "the message", func() bool { last, ok := relaytest.Last[int](c); return ok && last == i })
	}
	c.SetIdentity(relay.Identity{UserID: 5, Role: "cadet"})
	relaytest.Wait(t, "it is held back again", func() bool { return waiting.Load() == 7 })
	if got := c.Got(); len(got) != 0 {
		t.Errorf("got %v without waiting", got)
	}
	close(let)
	waitFor(t, c, 21)
	relaytest.Wait(t, "the end of the replay", func() bool { done, ok := relaytest.Last[relay.ReplayComplete](c); return ok && done.Count == 1 })
}
