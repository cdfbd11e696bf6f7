package relay

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LSN is a position in the write-ahead log of a database server, in bytes.
type LSN uint64

// String is the LSN as Postgres writes it.
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) } //nolint:gosec // the two halves

// Position is where a row stands in commit order: its transaction's commit
// record, and its place among the transaction's rows, from 0.
type Position struct {
	Commit  LSN
	Ordinal int64
}

// Compare is below 0, 0 or above 0 as p is before, at or after q.
func (p Position) Compare(q Position) int {
	switch {
	case p.Commit < q.Commit, p.Commit == q.Commit && p.Ordinal < q.Ordinal:
		return -1
	case p == q:
		return 0
	default:
		return 1
	}
}

// Floor is a rule of the assignment: events that committed at or after Since
// are numbered above ID.
type Floor struct {
	Since time.Time
	ID    int64
}

// Server identifies a history of a database server.
type Server struct {
	SystemID string
	Timeline int32
	// StartedAt is when the server was last started, by its own clock.
	StartedAt time.Time
}

// State is what the journal remembers besides its entries: all that the
// assignment of IDs depends on. It changes only with the journal, in the same
// database transactions.
type State struct {
	// Tenure numbers the tenures, ascending: of two that know a different one, the
	// one with the lower number is not the owner any more.
	Tenure int64
	// Epoch is the text that changes when earlier event IDs can no longer be
	// compared; empty before the first tenure.
	Epoch string
	// EpochAfter is above all IDs of the epochs before, and names no event.
	EpochAfter int64
	// LastID is the newest ID assigned, and High the position of its row.
	LastID int64
	High   Position
	// Floors that may still apply to what comes after High, ascending.
	Floors []Floor
	Server Server
	// Slot is the name of the replication slot that the stream comes from, and
	// Confirmed the position up to which it may have been confirmed. A slot of
	// that name that stands further on is another one, or somebody else has
	// read from it.
	Slot      string
	Confirmed LSN
	// Publication identifies what is published, and the table: it changes when
	// either is changed or made anew, even if it is as before again. What was
	// written meanwhile may not come by the slot.
	Publication string
	// Backlog: a backlog's reading has begun and is not through, so the slot
	// alone won't bring everything.
	Backlog bool
	// Resend: a crash of the server may have taken from the journal what was
	// shown, and the slot sends it again up to here: it has come when Confirmed
	// has passed this. 0 if there was no crash.
	Resend LSN
	// Clean: the last tenure ended with everything that was ever shown on disk.
	Clean bool
	// Oldest and Deleted are those of [Extent].
	Oldest, Deleted int64
}

// Pulse is what the server says of itself.
type Pulse struct {
	// Flushed is the newest position given to Append, Advance or Save that is
	// known to be on disk: the slot may be confirmed up to it.
	Flushed LSN
	// WALEnd is how far the server's log is on disk, and so could be streamed.
	WALEnd LSN
	// Publication is as in State.
	Publication string
}

// Batch is what one journal transaction adds.
type Batch struct {
	// Events, oldest first; at least one.
	Events []*Event
	// High is the position of the last event's row.
	High Position
	// Confirm is the position up to which the slot may be confirmed once the
	// batch is on disk.
	Confirm LSN
	// Durable: the transaction waits until it is on disk.
	Durable bool
}

// ErrLacking: the journal lacks its newest events after a crash of the server.
// The slot sends them again.
var ErrLacking = errors.New("the journal's newest events have to come again")

// ErrFenced: another relay has become the owner. Nothing was written.
var ErrFenced = errors.New("another relay owns the journal")

// Journal is the durable record of which row has which event ID.
type Journal interface {
	JournalReader
	// Acquire waits until this relay is the owner and returns its tenure. While
	// it waits, wait is called with the reason each time that it is known anew.
	Acquire(ctx context.Context, wait func(reason string)) (Tenure, error)
}

// JournalReader reads events back. It may be used at any time, by any number at
// once: it bounds by itself what it does at once.
//
// Both fail with [ErrNewEpoch] if the journal is not of the epoch that is asked
// for, unless that is "": the server may be another one by now, which never had
// the newest events that this process knows of.
type JournalReader interface {
	// Read returns, in order, at most limit events above after and not above
	// through that are for one of the groups. The page's Through is through
	// itself when there is nothing more up to it. It fails with [ErrLacking] if
	// the journal does not reach that far.
	Read(ctx context.Context, epoch string, after, through int64, groups []Group, limit int) (Page, error)
	// Newest returns the newest events, oldest first: at most limit of them and
	// about maxBytes.
	Newest(ctx context.Context, epoch string, limit, maxBytes int) ([]*Event, error)
}

// Tenure is the time of one owner. Every write is fenced: it fails with
// [ErrFenced] once another relay has taken over, whatever happened to this one
// meanwhile.
type Tenure interface {
	// State is what the journal remembered when the tenure began.
	State() State
	// Save writes the state that the assignment goes on from, durably, and with
	// it everything that was appended before, by whichever owner.
	Save(ctx context.Context, s State) error
	// Append adds a batch's events and moves the high-water mark, in one
	// transaction. When it has returned, a crash of the relay loses nothing of
	// it; a crash of the server may, unless the batch is Durable.
	Append(ctx context.Context, b *Batch) error
	// Advance notes that the slot may be confirmed up to a position although no
	// event came with it.
	Advance(ctx context.Context, confirm LSN) error
	// Pulse tells the server that this owner lives, and asks how it is itself.
	// It costs a round trip.
	Pulse(ctx context.Context) (Pulse, error)
	// Working reports whether the server is at work on the stream, although nothing
	// of it may come: it reads a long transaction of other tables, say.
	Working(ctx context.Context) (bool, error)
	// End waits until all that was written is on disk, notes whether the tenure
	// ended clean (see State), and returns the position up to which the slot
	// may be confirmed.
	End(ctx context.Context, clean bool) (LSN, error)
	// Close gives the ownership up. What was appended stays.
	Close()
}
