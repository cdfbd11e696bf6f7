package relay

import (
	"crypto/rand"
	"time"
)

// follow decides what a tenure goes on from: the state that the journal
// remembered, seen in the light of the slot that was attached and of what this
// process itself has shown and received before (zero in a new process). It
// returns the state to save, and why earlier IDs can't be compared any more if
// the epoch has changed.
//
// The cases, and why no ID names two events:
//
//   - The same server without a restart: the journal has everything that was
//     ever shown, because nothing is shown before it is committed there. Counting
//     goes on.
//   - The server was restarted: a crash may have taken the journal's tail, which
//     the slot sends again and which gets the same IDs again. What committed after
//     the restart is numbered above a floor, the time of the restart, so that
//     even a database put back from an old copy does not count up to IDs that
//     were shown in the time that it has forgotten.
//   - The slot is new: the journal has everything, but a slot that is gone is also
//     what a database looks like whose tables were put back from a dump, with a
//     journal that has forgotten what it gave. Counting goes on above the present
//     time, as after a restart.
//   - The slot is new, and the server was restarted after a tenure that did not
//     end in order: a lost tail would not be sent again.
//   - Another history: another system, another timeline, or a position behind
//     one that was seen already.
//   - The journal was dropped and made anew: it knows nothing, and the slot was
//     there before it, or this process has shown events itself.
//
// In the last three cases rows that were shown may be shown again, so a cursor of
// before can't be trusted: the epoch changes.
func follow(s State, in StreamInfo, shown int64, seen LSN, now time.Time) (next State, broken string) {
	next = s
	next.Server, next.Slot, next.Publication, next.Clean = in.Server, in.Slot, in.Publication, false
	restarted := !s.Server.StartedAt.Equal(in.Server.StartedAt)
	// Every batch of a backlog is on disk before it is shown.
	lacking := restarted && !s.Clean && !s.Backlog || s.Confirmed < s.Resend || s.LastID < shown
	next.Resend = 0
	switch {
	case s.Epoch == "" && (in.Inherited || shown > 0):
		broken = "the journal was made anew, and has forgotten the event IDs that were given"
	case s.Epoch == "":
		next.Epoch = rand.Text()[:10]
	case s.Server.SystemID != in.Server.SystemID:
		broken = "the database is of another server than the journal"
	case s.Server.Timeline != in.Server.Timeline:
		broken = "the server has changed to another timeline (a promotion, or a restore)"
	case in.WALEnd < s.High.Commit || in.WALEnd < seen:
		broken = "the server's log stands before a position that was seen already"
	case in.Fresh && lacking:
		broken = "the slot was lost together with a restart of the server"
	case lacking:
		next.Resend = in.WALEnd
	}
	if broken == "" && s.Epoch != "" && restarted {
		next.Floors = append(next.Floors, Floor{Since: in.Server.StartedAt, ID: clockID(in.Server.StartedAt)})
	}
	if broken != "" {
		next.Epoch = rand.Text()[:10]
		next.EpochAfter = max(s.LastID, shown, clockID(later(in.Now, now))) + 1
		next.LastID, next.Floors = next.EpochAfter, nil
	}
	if in.Fresh && s.Epoch != "" {
		next.LastID = max(next.LastID, clockID(later(in.Now, now)))
	}
	next.Floors = live(next.Floors, next.LastID)
	if in.Fresh {
		// No commit record begins one byte before another position, so the
		// backlog's positions are below all that the slot will bring.
		next.High = Position{Commit: in.Consistent - 1}
		next.Confirmed = in.Consistent
		next.Backlog = true
	}
	return next, broken
}

// clockID is the event ID that stands for a time: microseconds since 1970. The
// count of events falls behind it for ever, as long as fewer than a million a
// second are assigned on average, and it stays below [MaxEventID] until 2255. A
// clock that says otherwise is not believed.
func clockID(t time.Time) int64 {
	if us := t.UnixMicro(); us > 0 && us < MaxEventID-1<<48 {
		return us
	}
	return 0
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// live leaves out the floors that are below an ID that was given already.
func live(floors []Floor, last int64) []Floor {
	var kept []Floor
	for _, f := range floors {
		if f.ID > last {
			kept = append(kept, f)
		}
	}
	return kept
}
