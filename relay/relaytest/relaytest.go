// Package relaytest runs the core without Postgres: a [World] is a model of a
// database server with its log, a slot, the table and the journal, in memory.
// Tests of what stands in front of the core (stream) use it for speed; the
// simulation of crashes uses it because it can stop the world between any two
// steps. What only a real server can show is tested against one, in outbox and
// cmd/syncrelay.
package relaytest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// Relay is a running relay over a world of its own.
type Relay struct {
	*relay.Relay
	World *World
}

// New starts a relay over a new world and waits until it streams. It is stopped
// at the end of the test. Source and Journal of the options are set here.
func New(t testing.TB, o relay.Options) *Relay {
	t.Helper()
	w := NewWorld()
	o.Source, o.Journal = w.Source(), w.Journal()
	r := &Relay{Relay: relay.New(o), World: w}
	Run(t, r.Relay)
	Wait(t, "the relay streams", func() bool { return r.Status().Phase == relay.Streaming })
	return r
}

// Run runs a relay until the end of the test, or until the returned function,
// which waits for its end, is called.
func Run(t testing.TB, r *relay.Relay) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the relay ended with %v", err)
			}
		case <-time.After(patience):
			t.Errorf("the relay did not end within %s", patience)
		}
	})
	t.Cleanup(stop)
	return stop
}

// Insert commits one transaction with these rows, giving an ID and a time to
// those that have none. It returns the rows' IDs.
func (r *Relay) Insert(rows ...relay.Row) []int64 { return r.World.Commit(rows...) }

// patience is after how long a test gives up. A machine that builds and tests all
// at once may take most of it for what mostly takes no time.
const patience = time.Minute

// Wait waits until a condition holds, for at most a minute.
func Wait(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
		time.Sleep(time.Millisecond)
	}
}
