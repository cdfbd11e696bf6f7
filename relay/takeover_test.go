package relay_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// Two relays run on one database. The owner ends at each of its steps in turn: it
// is killed, or told to stop, or the server ends its sessions, or it is deposed
// and goes on in the belief that it is the owner, at once or, when it was stopped
// in its tracks, after the other has relayed for a while. The standby takes over, the
// clients come to it, and have every row once, under IDs that both relays agree
// upon.
func TestStandbyTakesOverAtEveryStep(t *testing.T) {
	t.Parallel()
	for name, fate := range map[string]relaytest.Fate{
		"the owner is killed":         relaytest.Dies,
		"the owner's sessions end":    relaytest.IsCutOff,
		"the owner is not told":       relaytest.IsDeposed,
		"the owner is stopped":        relaytest.IsStopped,
		"the owner is told to stop":   relaytest.GoesOn,
		"the owner and then the next": relaytest.Dies,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for step := 1; ; step++ {
				o := &takeover{schedule: emptySchedule(), fate: fate, endAt: step}
				if name == "the owner and then the next" {
					o.nextEndsAt = max(1, step/2)
				}
				ended := o.run(t)
				if t.Failed() {
					t.Fatalf("the owner ended at step %d, %q", step, o.endedAt.Load())
				}
				if !ended {
					t.Logf("%d steps", step-1)
					if step < 40 {
						t.Errorf("only %d steps: the simulation does not see enough", step-1)
					}
					return
				}
			}
		})
	}
}

// takeover is one run.
type takeover struct {
	*schedule
	fate          relaytest.Fate
	endAt, steps  int
	nextEndsAt    int // the step at which the standby is killed too, 0 for never
	stop          context.CancelFunc
	acquired, end atomic.Bool
	endedAt       atomic.Value // the step, as text
}

// owner is the hook of the relay that is the owner first.
func (o *takeover) owner(step string) relaytest.Fate {
	if step == "acquired" {
		o.acquired.Store(true)
	}
	if step == "read" && o.fate == relaytest.IsStopped {
		return relaytest.GoesOn // a client waits for it, and could not leave
	}
	o.steps++
	if o.steps != o.endAt {
		return relaytest.GoesOn
	}
	o.endedAt.Store(step)
	o.end.Store(true)
	if o.fate == relaytest.GoesOn {
		o.stop()
	}
	return o.fate
}

// run reports whether the owner has come to the step at which it ends.
func (o *takeover) run(t *testing.T) (ended bool) {
	defer o.schedule.end()
	o.clients = []*scheduledClient{{s: o.schedule}, {s: o.schedule}}
	o.commitRows(1)
	o.commitRows(2)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	o.stop = stop
	first := o.world.Live(o.owner)
	defer first.Continue()
	o.schedule.run(ctx, first)
	relaytest.Wait(t, "the first relay is the owner", func() bool { return o.acquired.Load() || o.end.Load() })
	left := o.nextEndsAt
	o.schedule.run(t.Context(), o.world.Live(func(step string) relaytest.Fate {
		// Waiting for the ownership takes as many steps as it may.
		if step == "acquire" {
			return relaytest.GoesOn
		}
		left--
		if left == 0 {
			return relaytest.Dies
		}
		return relaytest.GoesOn
	}))
	if o.nextEndsAt > 0 {
		o.schedule.run(t.Context(), o.world.Live(nil))
	}
	for _, rows := range []int{1, 3, 2, 1} {
		o.commitRows(rows)
		o.await(t)
	}
	if !o.end.Load() { // the rest of its steps are those of an orderly end
		stop()
	}
	relaytest.Wait(t, "another relay streams", func() bool {
		for _, r := range o.relays[1:] {
			if r.Status().Phase == relay.Streaming {
				return true
			}
		}
		return o.end.Load() && !o.relays[0].life.Dead() && o.relays[0].Status().Phase == relay.Streaming
	})
	ended = o.end.Load()
	first.Continue()
	o.commitRows(2)
	o.await(t)
	if !o.relays[0].gone() {
		o.handBack(t)
	}
	o.check(t)
	return ended
}

// handBack makes the first relay the owner again. Its memory ends where it was
// deposed, and what the other has shown since must not be missing from it.
func (o *takeover) handBack(t *testing.T) {
	for _, r := range o.relays[1:] {
		r.life.Kill()
	}
	relaytest.Wait(t, "the first relay streams again", func() bool { return o.relays[0].Status().Phase == relay.Streaming })
	o.commitRows(1)
	o.clients = append(o.clients, &scheduledClient{s: o.schedule}) // it asks for everything
	o.await(t)
}
