package stream_test

import (
	"sync"
	"testing"
	"time"
)

// startWatch begins to watch the clock. The function that it returns checks that it is
// now less than a second after the end of a token (CONTRACT, section 4), and not
// before it. By how much this machine has kept everybody waiting meanwhile, the watch
// among them, is nobody's delay; and from the clock to the test it is turns of several
// goroutines, each of which may be kept waiting as long.
func startWatch(t testing.TB) (inTime func(expires time.Time)) {
	t.Helper()
	const interval, turns = 5 * time.Millisecond, 4
	stop, longest := make(chan struct{}), make(chan time.Duration, 1)
	end := sync.OnceFunc(func() { close(stop) })
	t.Cleanup(end)
	go func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		var most time.Duration
		for last := time.Now(); ; {
			select {
			case <-stop:
				longest <- most
				return
			case <-tick.C:
			}
			now := time.Now()
			most, last = max(most, now.Sub(last)-interval), now
		}
	}()
	return func(expires time.Time) {
		t.Helper()
		late := time.Since(expires)
		end()
		if stalled := <-longest; late < 0 || late > time.Second+turns*stalled {
			t.Errorf("it came %s after the end of the token, want within a second (and %d times %s for which nothing ran here)", late, turns, stalled)
		}
	}
}
