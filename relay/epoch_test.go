package relay_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// After a promotion an ID of before can't be compared: who asks for a replay from
// there is told so, and stays connected; who resumes from there is told that it is
// truncated. What an ID of the new epoch says is still answered.
func TestReplayFromAnEarlierEpochIsAnError(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{})
	r.Insert(grade(17), grade(17), grade(17))
	waitForHead(t, r.Relay, 3)
	before := r.Status().Epoch
	present := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	r.World.Promote()
	relaytest.Wait(t, "a new epoch", func() bool { s := r.Status(); return s.Epoch != before && s.Phase == relay.Streaming })
	relaytest.Wait(t, "who was connected is sent away", func() bool { return errors.Is(present.Ended(), relay.ErrNewEpoch) })

	c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
	if err := c.Replay(2); err != nil {
		t.Fatal(err)
	}
	relaytest.Wait(t, "a failure", func() bool { _, ok := relaytest.Last[relay.Failure](c); return ok })
	if f, _ := relaytest.Last[relay.Failure](c); f.Code != relay.CodeEpochChanged || !strings.Contains(f.Message, "event 2 ") || !strings.Contains(f.Message, r.Status().Epoch) {
		t.Errorf("a replay from the epoch before is answered with %+v", f)
	}
	if _, ok := relaytest.Last[relay.ReplayComplete](c); ok {
		t.Error("the replay was answered twice")
	}
	r.Insert(grade(17))
	relaytest.Wait(t, "the cursor stays at the head", func() bool { return len(c.Got()) == 1 })
	first := c.Got()[0]
	if err := c.Replay(first - 1); err != nil { // an ID of this epoch
		t.Fatal(err)
	}
	waitFor(t, c, first, first)

	resumed := relaytest.Connect(t, r.Relay, cadet17, relay.Start{Resume: true, After: 2})
	relaytest.Wait(t, "replay_complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](resumed); return ok })
	if done, _ := relaytest.Last[relay.ReplayComplete](resumed); !done.Truncated {
		t.Errorf("who resumes from the epoch before is told %+v, want truncated", done)
	}
}
