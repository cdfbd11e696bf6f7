package relay

import (
	"slices"
	"testing"
	"time"
)

var (
	started = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now     = started.Add(time.Hour)
	first   = Server{SystemID: "1", Timeline: 1, StartedAt: started}
	known   = State{
		Epoch: "A", LastID: 100, High: Position{5000, 3}, Server: first, Slot: "s", Confirmed: 4900,
	}
)

func TestTenureFollowsFromWhatTheJournalAndTheServerSay(t *testing.T) {
	t.Parallel()
	again := first
	again.StartedAt = started.Add(time.Minute)
	other, promoted := first, first
	other.SystemID, promoted.Timeline = "2", 2
	for name, c := range map[string]struct {
		state  State
		in     StreamInfo
		shown  int64
		seen   LSN
		broken bool
		last   int64
		floors []Floor
	}{
		"the first start":                             {state: State{}, in: StreamInfo{Server: first, WALEnd: 10, Fresh: true, Consistent: 10}},
		"a slot from before the journal":              {state: State{}, in: StreamInfo{Server: first, WALEnd: 10, Fresh: true, Consistent: 10, Inherited: true}, broken: true},
		"a journal that knows less than this process": {state: State{}, in: StreamInfo{Server: first, WALEnd: 10, Fresh: true, Consistent: 10}, shown: 7, seen: 9, broken: true},
		"the same server":                             {state: known, in: StreamInfo{Server: first, WALEnd: 6000}, last: 100},
		"a lost slot":                                 {state: known, in: StreamInfo{Server: first, WALEnd: 6000, Fresh: true, Consistent: 6000}, last: now.UnixMicro()},
		"a restart":                                   {state: known, in: StreamInfo{Server: again, WALEnd: 6000}, last: 100, floors: []Floor{{again.StartedAt, again.StartedAt.UnixMicro()}}},
		"a restart and a lost slot":                   {state: known, in: StreamInfo{Server: again, WALEnd: 6000, Fresh: true, Consistent: 6000}, broken: true},
		"another server":                              {state: known, in: StreamInfo{Server: other, WALEnd: 6000}, broken: true},
		"a promotion":                                 {state: known, in: StreamInfo{Server: promoted, WALEnd: 6000}, broken: true},
		"a log before the journal's":                  {state: known, in: StreamInfo{Server: first, WALEnd: 4000}, broken: true},
		"a log before what was seen":                  {state: known, in: StreamInfo{Server: first, WALEnd: 6000}, seen: 7000, broken: true},
	} {
		c.in.Now = now
		next, broken := follow(c.state, c.in, c.shown, c.seen, now)
		if (broken != "") != c.broken || (next.Epoch != c.state.Epoch) != (c.broken || c.state.Epoch == "") {
			t.Errorf("%s: broken %q, epoch %q", name, broken, next.Epoch)
		}
		if c.broken {
			if next.LastID < now.UnixMicro() || next.EpochAfter != next.LastID || len(next.Floors) > 0 {
				t.Errorf("%s: %+v, want IDs above the present time", name, next)
			}
		} else if next.LastID != c.last || !slices.Equal(next.Floors, c.floors) {
			t.Errorf("%s: last ID %d, floors %v; want %d, %v", name, next.LastID, next.Floors, c.last, c.floors)
		}
		if c.in.Fresh && (!next.Backlog || next.High.Commit >= c.in.Consistent || next.Confirmed != c.in.Consistent) {
			t.Errorf("%s: %+v, want a backlog before %s", name, next, c.in.Consistent)
		}
		if next.Server != c.in.Server || next.Clean {
			t.Errorf("%s: %+v", name, next)
		}
	}
	clean, reading := known, known
	clean.Clean, reading.Backlog = true, true
	for name, s := range map[string]State{"a clean end": clean, "an end in the middle of a backlog": reading} {
		next, broken := follow(s, StreamInfo{Server: again, WALEnd: 6000, Fresh: true, Consistent: 6000, Now: now}, 0, 0, now)
		if broken != "" || next.Epoch != "A" {
			t.Errorf("a restart and a lost slot after %s: %q, although the journal has everything", name, broken)
		}
	}
}

// The same rows get the same IDs from the same state, whatever was assigned
// before it, and what committed after a restart is above its time.
func TestAssignmentIsRepeatable(t *testing.T) {
	t.Parallel()
	floors := []Floor{{started, 1000}, {started.Add(time.Minute), 5000}}
	assign := func(last int64, after Position, from int) (ids []int64) {
		q := newSequencer(State{LastID: last, High: after, Floors: live(floors, last)}, 0, batchLimits{1000, 1 << 20}, nil)
		for i := from; i < 6; i++ {
			q.Begin(Transaction{Commit: LSN(10 * (i + 1)), CommittedAt: started.Add(time.Duration(i-2) * 30 * time.Second)})
			q.Row(&Row{Type: "x"})
			q.Row(&Row{Type: "x"})
			q.End(LSN(10*(i+1) + 5))
		}
		for _, e := range q.take().Events {
			ids = append(ids, e.ID)
		}
		return ids
	}
	all := assign(7, Position{}, 0)
	if want := []int64{8, 9, 10, 11, 1001, 1002, 1003, 1004, 5001, 5002, 5003, 5004}; !slices.Equal(all, want) {
		t.Fatalf("got %v, want %v", all, want)
	}
	for journaled := 1; journaled < len(all); journaled++ { // also in the middle of a transaction
		at := Position{LSN(10 * ((journaled-1)/2 + 1)), int64((journaled - 1) % 2)}
		for from := 0; from <= (journaled-1)/2; from++ { // what the slot sends again
			if rest := assign(all[journaled-1], at, from); !slices.Equal(rest, all[journaled:]) {
				t.Fatalf("after %d events: got %v, want %v", journaled, rest, all[journaled:])
			}
		}
	}
}

func TestClockThatIsNotBelievedGivesNoFloor(t *testing.T) {
	t.Parallel()
	for _, year := range []int{1969, 2300, 9999} {
		if id := clockID(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)); id != 0 {
			t.Errorf("the year %d gives %d", year, id)
		}
	}
}
