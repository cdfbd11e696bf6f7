package relay_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// forgetful is a journal that writes once and breaks the connection before it
// has said so.
type forgetful struct {
	relay.Journal
	lose *atomic.Bool
}

func (j forgetful) Acquire(ctx context.Context, wait func(string)) (relay.Tenure, error) {
	t, err := j.Journal.Acquire(ctx, wait)
	if err != nil {
		return nil, err
	}
	return forgetfulTenure{t, j.lose}, nil
}

type forgetfulTenure struct {
	relay.Tenure
	lose *atomic.Bool
}

func (t forgetfulTenure) Append(ctx context.Context, b *relay.Batch) error {
	err := t.Tenure.Append(ctx, b)
	if err == nil && t.lose.CompareAndSwap(true, false) {
		return errors.New("unexpected EOF")
	}
	return err
}

// What was journaled without the relay's knowing is found there by the next
// tenure, which hands it to nobody: it is read from the log. A revocation is not.
func TestRevocationWhoseJournalingWasNotAnsweredHolds(t *testing.T) {
	t.Parallel()
	w := relaytest.NewWorld()
	var lose atomic.Bool
	r := relay.New(relay.Options{
		Source: w.Source(), Journal: forgetful{w.Journal(), &lose}, Retry: func(int) time.Duration { return time.Millisecond },
	})
	relaytest.Run(t, r)
	relaytest.Wait(t, "the relay streams", func() bool { return r.Status().Phase == relay.Streaming })
	c, other := relaytest.Connect(t, r, cadet17, relay.Start{}), relaytest.Connect(t, r, admin, relay.Start{})
	lose.Store(true)
	w.Commit(grade(17), relay.Row{Type: relay.TypeSessionRevoked, UserIDs: []int64{5}}, grade(17))
	relaytest.Wait(t, "the revoked user's end", func() bool { return errors.Is(c.Ended(), relay.ErrRevoked) })
	waitFor(t, other, 1, 3)
	if lose.Load() {
		t.Error("no answer was lost")
	}
}

// A relay that has stood by outlives what would have kept it from starting: a
// password that is changed, say.
func TestWhatStopsAStartDoesNotStopAStandby(t *testing.T) {
	t.Parallel()
	w := relaytest.NewWorld()
	journal := &refusing{Journal: w.Journal()}
	r := relay.New(relay.Options{Source: w.Source(), Journal: journal, Retry: func(int) time.Duration { return time.Millisecond }})
	relaytest.Run(t, r) // fails the test if Run ends with an error
	relaytest.Wait(t, "the relay streams", func() bool { return r.Status().Phase == relay.Streaming })
	if n := journal.refused.Load(); n != 3 {
		t.Errorf("it was refused %d times, want 3", n)
	}
}

// refusing is a journal that has an owner, and then refuses the relay's role
// three times.
type refusing struct {
	relay.Journal
	refused atomic.Int64
}

type permanentError struct{ error }

func (permanentError) Permanent() bool { return true }

func (j *refusing) Acquire(ctx context.Context, wait func(string)) (relay.Tenure, error) {
	if j.refused.Load() == 0 {
		wait("another relay owns this database")
	}
	if j.refused.Load() < 3 {
		j.refused.Add(1)
		return nil, permanentError{errors.New("the role may not log in")}
	}
	return j.Journal.Acquire(ctx, wait)
}
