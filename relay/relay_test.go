package relay_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

var (
	admin   = relay.Identity{UserID: 1, Role: "admin"}
	cadet17 = relay.Identity{UserID: 5, Role: "cadet", CadetID: 17, HasCadet: true}
)

func grade(cadet int64) relay.Row {
	return relay.Row{Type: "grade_update", CadetID: cadet, HasCadet: true, Payload: []byte(`{"merits": 3}`)}
}

func waitFor(t *testing.T, c *relaytest.Client, want ...int64) {
	t.Helper()
	relaytest.Wait(t, fmt.Sprintf("the client got %d events, it has %d", len(want), len(c.Got())), func() bool { return len(c.Got()) >= len(want) })
	if got := c.Got(); !slices.Equal(got, want) {
		t.Fatalf("got events %v, want %v", got, want)
	}
}

func waitForHead(t *testing.T, r *relay.Relay, head int64) {
	t.Helper()
	relaytest.Wait(t, fmt.Sprintf("event %d is assigned", head), func() bool { return r.Status().Head >= head })
}

func span(from, to int64) []int64 {
	var ids []int64
	for id := from; id <= to; id++ {
		ids = append(ids, id)
	}
	return ids
}

func TestClientGetsWhatIsForItsGroupsOnceInCommitOrder(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	staff := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	cadet := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	r.Insert(grade(17), grade(18))
	r.Insert(relay.Row{Type: "message", UserIDs: []int64{5, 1, 5}, Roles: []string{"cadet", "*"}, CadetID: 17, HasCadet: true})
	r.Insert(relay.Row{Type: "notification", UserIDs: []int64{99}})
	r.Insert(relay.Row{Type: "audit"})
	r.Insert(relay.Row{Type: "holiday", Roles: []string{"*"}})
	waitFor(t, staff, 1, 2, 3, 5, 6)
	waitFor(t, cadet, 1, 3, 6)
}

func TestResumeReplayAndLiveAreOneSequence(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{RingEvents: 50}) // most of the replay comes from the journal
	for range 300 {
		r.Insert(grade(17))
	}
	waitForHead(t, r.Relay, 300)
	c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{Resume: true, After: 100})
	waitFor(t, c, span(101, 300)...)
	relaytest.Wait(t, "replay_complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
	r.Insert(grade(17))
	waitFor(t, c, span(101, 301)...)
	done, _ := relaytest.Last[relay.ReplayComplete](c)
	if want := (relay.ReplayComplete{Requested: 100, Count: 200, LastEventID: 300, OldestEventID: 1}); done != want {
		t.Fatalf("got %+v, want %+v", done, want)
	}
	if err := c.Replay(299); err != nil {
		t.Fatal(err)
	}
	waitFor(t, c, append(span(101, 301), 300, 301)...)
}

func TestReplayThatCannotBeMetIsAnsweredWithAFailure(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	r.Insert(grade(17))
	waitForHead(t, r.Relay, 1)
	for _, after := range []int64{-1, 2, relay.MaxEventID} {
		c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
		if err := c.Replay(after); err != nil {
			t.Fatal(err)
		}
		relaytest.Wait(t, "a failure", func() bool { _, ok := relaytest.Last[relay.Failure](c); return ok })
		if f, _ := relaytest.Last[relay.Failure](c); f.Code != relay.CodeInvalidLastEventID || !strings.Contains(f.Message, fmt.Sprint(after)) {
			t.Errorf("replay after %d: got %+v", after, f)
		}
	}
}

func TestSlowClientCostsItsQueueOnlyAndMissesNothing(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{RingEvents: 100})
	slow := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	quick := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	relaytest.Wait(t, "established", func() bool { return len(slow.Controls()) == 1 })
	slow.Block()
	const n = 3000
	for range n {
		r.Insert(grade(17))
	}
	waitFor(t, quick, span(1, n)...)
	slow.Unblock()
	waitFor(t, slow, span(1, n)...)
	before := slow.Live()
	relaytest.Wait(t, "the slow client is live again", func() bool {
		r.Insert(grade(17))
		return slow.Live() > before
	})
}

func TestReservedTypesAreNumberedAndNotSent(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	r.Insert(relay.Row{Type: "pong"}, relay.Row{Type: ""}, relay.Row{Type: "error", Roles: []string{"*"}}, relay.Row{Type: "token_expiring"},
		relay.Row{Type: "connection_established"}, relay.Row{Type: "replay_complete"}, relay.Row{Type: "ok"})
	waitFor(t, c, 7)
}

func TestRevokedSessionEndsThatUsersSubscribers(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	c, other := relaytest.Connect(t, r.Relay, cadet17, relay.Start{}), relaytest.Connect(t, r.Relay, admin, relay.Start{})
	r.Insert(relay.Row{Type: relay.TypeSessionRevoked, UserIDs: []int64{5}, Roles: []string{"*"}}, relay.Row{Type: "ok"})
	relaytest.Wait(t, "the end", func() bool { return c.Ended() != nil })
	if !errors.Is(c.Ended(), relay.ErrRevoked) {
		t.Fatalf("ended with %v", c.Ended())
	}
	waitFor(t, other, 2)
	if len(c.Got()) != 0 {
		t.Fatalf("the revoked user got %v", c.Got())
	}
}

func TestRenewedIdentityChangesWhatIsSent(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	r.Insert(grade(17), grade(18))
	waitFor(t, c, 1)
	c.SetIdentity(relay.Identity{UserID: 5, Role: "cadet", CadetID: 18, HasCadet: true})
	relaytest.Wait(t, "the new groups", func() bool { return slices.Contains(c.Groups(), relay.CadetGroup(18)) })
	r.Insert(grade(17), grade(18))
	waitFor(t, c, 1, 4)
}

func TestRandomDisconnectsUnderLoadLeaveNoGapAndNoRepeat(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{RingEvents: 64, BatchEvents: 32, RingBytes: 1 << 20})
	const rows, clients = 4000, 20
	var wg sync.WaitGroup
	wg.Go(func() {
		for range rows / 4 {
			r.Insert(grade(17), grade(18), grade(17), relay.Row{Type: "x", Roles: []string{"*"}})
		}
	})
	for i := range clients {
		wg.Go(func() {
			id, keep := admin, func(int64) bool { return true }
			if i%2 == 0 {
				id, keep = cadet17, func(n int64) bool { return n%4 != 2 }
			}
			var got []int64
			var last int64
			for last < rows {
				c := relaytest.Connect(t, r.Relay, id, relay.Start{Resume: true, After: last})
				stop := rand.IntN(400) + 1
				relaytest.Wait(t, "events", func() bool { n := len(c.Got()); return n >= stop || n > 0 && c.Got()[n-1] == rows })
				c.Close()
				got = append(got, c.Got()...)
				last = got[len(got)-1]
			}
			want := slices.DeleteFunc(span(1, rows), func(n int64) bool { return !keep(n) })
			if !slices.Equal(got, want) {
				t.Errorf("client %d: %d events, want %d", i, len(got), len(want))
			}
		})
	}
	wg.Wait()
}

func TestRestartGoesOnWithTheNextIDAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	w := relaytest.NewWorld()
	w.Commit(grade(17), grade(17)) // before the first start
	for round := range int64(3) {
		r := relay.New(relay.Options{Source: w.Source(), Journal: w.Journal()})
		stop := relaytest.Run(t, r)
		relaytest.Wait(t, "streaming", func() bool { return r.Status().Phase == relay.Streaming })
		c := relaytest.Connect(t, r, admin, relay.Start{Resume: true})
		waitFor(t, c, span(1, 2+2*round)...)
		w.Commit(grade(17))
		waitFor(t, c, span(1, 3+2*round)...)
		stop()
		w.Commit(grade(17)) // while it is down
	}
}

func TestRowThatCannotBeReadIsNumberedAndNotSent(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	r.Insert(relay.Row{Type: "x", Fault: errors.New("what is this")}, relay.Row{Type: "x"})
	waitFor(t, c, 2)
}

func TestClientsOfARelayThatLostTheOwnershipAreSentElsewhere(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{Retry: func(int) time.Duration { return time.Millisecond }, FlushInterval: 5 * time.Millisecond})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	r.Insert(grade(17))
	waitFor(t, c, 1)
	other := relay.New(relay.Options{Source: r.World.Source(), Journal: r.World.Journal()})
	r.World.Depose() // its session ended, and another relay was quicker
	relaytest.Run(t, other)
	relaytest.Wait(t, "one relay streams and the other is a standby", func() bool {
		return r.Status().Phase == relay.Standby && other.Status().Phase == relay.Streaming ||
			other.Status().Phase == relay.Standby && r.Status().Phase == relay.Streaming
	})
	if r.Status().Phase == relay.Standby {
		relaytest.Wait(t, "the client's end", func() bool { return errors.Is(c.Ended(), relay.ErrNotServing) })
		if _, err := r.Subscribe(admin, nil, relay.Start{}); !errors.Is(err, relay.ErrNotServing) {
			t.Errorf("the standby took a subscriber: %v", err)
		}
	}
}

func TestStreamThatIsConnectedAndStuckIsFound(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{
		StallTimeout: 20 * time.Millisecond, FlushInterval: time.Millisecond, Retry: func(int) time.Duration { return time.Millisecond },
	})
	c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	r.Insert(grade(17))
	waitFor(t, c, 1)
	r.World.Stall()
	r.Insert(grade(17))
	waitForHead(t, r.Relay, 2)
	r.Insert(grade(17))
	waitFor(t, c, 1, 2, 3)
}

// A server that reads a long transaction of other tables brings nothing either.
func TestStreamThatTheServerWorksOnIsNotBrokenOff(t *testing.T) {
	t.Parallel()
	lost := make(chan struct{}, 1)
	r := relaytest.New(t, relay.Options{
		StallTimeout: 20 * time.Millisecond, FlushInterval: time.Millisecond,
		Retry: func(int) time.Duration {
			select {
			case lost <- struct{}{}:
			default:
			}
			return time.Millisecond
		},
	})
	c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	r.World.Work(true)
	r.World.Stall()
	r.Insert(grade(17))
	rows := int64(1)
	relaytest.Wait(t, "the server is asked again and again", func() bool {
		r.Insert(grade(17)) // its log grows
		rows++
		return r.World.Asked() >= 8
	})
	select {
	case <-lost:
		t.Fatal("the relay has connected anew")
	default:
	}
	r.World.Work(false)
	relaytest.Wait(t, "the relay connects anew", func() bool {
		r.Insert(grade(17))
		rows++
		return len(lost) > 0
	})
	waitForHead(t, r.Relay, rows)
	if c.Ended() != nil {
		t.Errorf("the client was ended: %v", c.Ended())
	}
}

func TestARelayThatIsFarBehindItsServerHasNotCaughtUp(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{FlushInterval: time.Millisecond, LateAfter: 50 * time.Millisecond})
	r.World.Stall()
	r.Insert(grade(17))
	relaytest.Wait(t, "the relay says that it is behind", func() bool {
		s := r.Status()
		return s.Phase == relay.CatchingUp && strings.Contains(s.Reason, "has not been shown yet")
	})
	if !r.Status().Serving {
		t.Error("its clients were sent away")
	}
}
