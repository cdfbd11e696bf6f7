package relay_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// Group commit takes what has gathered and waits for no more: on an idle relay a
// lone event costs what the journal's transaction costs, to the microsecond, and
// no timer of the relay's has a part in it. The clock is a model too.
func TestALoneEventWaitsForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := relaytest.New(t, relay.Options{FlushInterval: time.Hour})
		c := relaytest.Connect(t, r.Relay, cadet17, relay.Start{})
		for n := range 5 {
			time.Sleep(time.Duration(n+1) * 77 * time.Millisecond) // the relay is idle
			synctest.Wait()
			begun := time.Now()
			r.Insert(grade(17))
			for len(c.Got()) <= n {
				time.Sleep(time.Microsecond)
				synctest.Wait()
			}
			if took := time.Since(begun); took > relaytest.Latency {
				t.Errorf("event %d was sent after %s, and the journal takes %s", n+1, took, relaytest.Latency)
			}
			waitFor(t, c, span(1, int64(n+1))...)
		}
	})
}
