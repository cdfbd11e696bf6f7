package stream_test

import (
	"runtime"
	"runtime/metrics"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

// stacks is how many bytes the stacks of all goroutines take, when those that have
// ended are gone.
func stacks() float64 {
	for range 2 {
		runtime.GC()
	}
	sample := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(sample)
	return float64(sample[0].Value.Uint64())
}

// TestAWaitingClientKeepsTheSmallestStack: two kilobytes, before it has said anything
// and after. A stack that has grown once would stay twice as large, for each of tens
// of thousands. Not parallel: others would have stacks too.
func TestAWaitingClientKeepsTheSmallestStack(t *testing.T) {
	if slowed {
		t.Skip("the race detector needs larger stacks")
	}
	const clients, smallest = 1000, 2 << 10
	w := newWorld(t, worldOptions{})
	w.connect(t, admin) // what the first one needs, and no other
	before := stacks()
	all := make([]*wsClient, clients)
	for i := range all {
		all[i] = w.connect(t, jwt.MapClaims{"user_id": 100 + i, "role": "cadet", "cadet_id": 1 + i})
	}
	// Stacks of handshakes that have ended may still be kept for the next ones.
	look := func(when string) {
		t.Helper()
		if each := (stacks() - before) / clients; each > 1.4*smallest {
			t.Errorf("%s: a stack of %.0f bytes for each client, want %d", when, each, smallest)
		}
	}
	look("connected")
	for _, c := range all {
		c.send(t, `{"type":"ping","timestamp":1}`)
		nextOf(t, c, "pong")
	}
	look("after a message")
}
