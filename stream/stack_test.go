package stream_test

import (
	"os"
	"os/exec"
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
// of thousands. In a process of its own: with how large a stack a goroutine begins
// follows from the average of all that there are, and hundreds of tests that wait for
// their turn are nothing that a relay has.
func TestAWaitingClientKeepsTheSmallestStack(t *testing.T) {
	if slowed {
		t.Skip("the race detector needs larger stacks")
	}
	const alone = "SYNCRELAY_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), alone+"=yes")
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		return
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
