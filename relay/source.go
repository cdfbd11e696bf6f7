package relay

import (
	"context"
	"time"
)

// Source is where rows come from: a publication and a replication slot, and the
// table behind them.
type Source interface {
	// Attach makes the publication and the slot where they are missing, and
	// takes the slot. A slot that can't bring everything that the journal lacks
	// is replaced: one that is not where known.Slot and known.Confirmed say that
	// it must be, one that the server has invalidated, and any slot if
	// known.Backlog is set or known.Publication has changed.
	Attach(ctx context.Context, known State) (Stream, error)
}

// Stream is an attached slot.
type Stream interface {
	Info() StreamInfo
	// Backlog calls row for every row that is in the table under the snapshot
	// at which the slot was made and has no journal entry, in commit order as
	// far as the database can tell it. It may be called only if Info().Fresh,
	// once, before Run.
	Backlog(ctx context.Context, row func(*Row, time.Time) error) error
	// Run streams until ctx ends or the stream breaks, calling r from one
	// goroutine. It returns nil when ctx has ended.
	Run(ctx context.Context, r Receiver) error
	// Close confirms the slot's position, unless it is 0, and lets the slot go.
	Close(confirm LSN)
}

// StreamInfo is what is known of a stream when it is attached.
type StreamInfo struct {
	Server Server
	// Slot is the slot's name, and Publication as in State.
	Slot        string
	Publication string
	// Fresh: the slot was made by Attach. It brings what commits after
	// Consistent; what was there before is the backlog.
	Fresh      bool
	Consistent LSN
	// Inherited: there was a slot of that name before Attach made one. If the
	// journal remembers nothing then, it is younger than the slot: event IDs have
	// been given that it does not know.
	Inherited bool
	// Reason says why the slot was made, for the log.
	Reason string
	// WALEnd is the server's position at attaching, Now its clock, and
	// Confirmed the slot's position.
	WALEnd    LSN
	Now       time.Time
	Confirmed LSN
}

// Transaction is what is known of a transaction while its rows come in. It has
// committed.
type Transaction struct {
	// Commit is the position of the commit record, the order of transactions.
	Commit LSN
	// CommittedAt is by the server's clock.
	CommittedAt time.Time
}

// Receiver takes in what a stream brings, in order: Begin, its rows, End, and
// between transactions Idle. The stream answers the server by itself while a
// call blocks only if the receiver lets it: see Full.
type Receiver interface {
	Begin(tx Transaction)
	// Row takes the next row of the transaction, its ordinal being the count
	// of Row calls since Begin.
	Row(row *Row)
	// End ends the transaction; end is the position after its commit record.
	End(end LSN)
	// Idle tells that every transaction that ended before end has been brought.
	Idle(end LSN)
	// Full returns a channel to wait on while no more rows can be taken, nil
	// while they can. The stream stops reading until the channel is closed, and
	// goes on answering the server.
	Full() <-chan struct{}
	// Safe is the position up to which the slot may be confirmed.
	Safe() LSN
}
