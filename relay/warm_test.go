package relay_test

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// replays counts replays by where they were read from.
type replays struct{ memory, journal atomic.Int64 }

func (*replays) Assigned(string) {}
func (*replays) Recovered(int64) {}
func (*replays) Replaced()       {}
func (*replays) NewEpoch()       {}
func (*replays) Failed(string)   {}

func (r *replays) Replayed(fromJournal bool, _ int64) {
	if fromJournal {
		r.journal.Add(1)
	} else {
		r.memory.Add(1)
	}
}

// TestMemoryIsFilledAfterAStart: a new process streams before its memory holds all
// that it can hold of what was there, and soon afterwards it does.
func TestMemoryIsFilledAfterAStart(t *testing.T) {
	t.Parallel()
	const rows = 6000
	w := relaytest.NewWorld()
	all := make([]relay.Row, rows)
	for i := range all {
		all[i].Type = "x"
	}
	w.Commit(all...)
	var seen replays
	options := relay.Options{Source: w.Source(), Journal: w.Journal(), Observer: &seen}
	before := relay.New(options)
	stop := relaytest.Run(t, before)
	relaytest.Wait(t, "all rows are journaled", func() bool { return before.Status().Journaled == rows })
	stop()

	r := relay.New(options)
	relaytest.Run(t, r)
	relaytest.Wait(t, "the relay streams", func() bool { return r.Status().Phase == relay.Streaming })
	want := make([]int64, rows)
	for i := range want {
		want[i] = int64(i + 1)
	}
	relaytest.Wait(t, "a replay of everything comes from memory", func() bool {
		c := relaytest.Connect(t, r, admin, relay.Start{Resume: true})
		relaytest.Wait(t, "the replay is complete", func() bool { _, ok := relaytest.Last[relay.ReplayComplete](c); return ok })
		if ids := c.Got(); !slices.Equal(ids, want) {
			t.Fatalf("a replay brought %d events, want %d in order", len(ids), rows)
		}
		c.Close()
		return seen.memory.Load() > 0
	})
}
