package outbox

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/syncrelay/syncrelay/relay"
)

// stream is an attached slot. It implements relay.Stream.
type stream struct {
	o        Options
	logger   *slog.Logger
	conn     *pgconn.PgConn
	table    table
	info     relay.StreamInfo
	snapshot string
	unusable *atomic.Pointer[string]
	stumbles *stumbles

	streaming bool // the connection is in copy mode
	received  relay.LSN
	confirmed relay.LSN // what the server was told last
}

// Info is part of relay.Stream.
func (s *stream) Info() relay.StreamInfo { return s.info }

// statusInterval is how often the server is told where the relay stands, at the
// latest. It must be well below wal_sender_timeout.
const statusInterval = time.Second

// Run is part of relay.Stream.
func (s *stream) Run(ctx context.Context, r relay.Receiver) error {
	err := pglogrepl.StartReplication(ctx, s.conn, quote(s.o.Slot), 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{
			"proto_version '1'",
			"publication_names " + literal(quote(s.o.Publication)),
			"binary 'true'",
		},
	})
	if err != nil {
		return s.judge(fmt.Errorf("start the stream of slot %q: %w", s.o.Slot, err))
	}
	s.streaming = true
	s.received = s.info.Confirmed
	// The connection's own deadline is used rather than a context for each
	// message: watching a context costs a goroutine a message. A deadline that
	// has passed leaves the connection usable.
	socket := s.conn.Conn()
	unhook := context.AfterFunc(ctx, func() { _ = socket.SetReadDeadline(time.Unix(1, 0)) })
	defer unhook()
	l := streamLoop{stream: s, receiver: r, decoder: newDecoder(s.table.name)}
	if err := l.run(ctx); err != nil {
		return s.stumble(s.judge(err), l.tx.Commit)
	}
	return nil
}

// literal writes a string as a literal of the replication grammar.
func literal(s string) string { return `'` + strings.ReplaceAll(s, `'`, `''`) + `'` }

// judge remembers from an error that the slot can't be used any more.
func (s *stream) judge(err error) error {
	lost := ""
	switch code(err) {
	case codeUndefinedObject: // the publication was missing when the row was written
		lost = "the server can't decode the log: " + err.Error()
	case codeNotInState:
		lost = "the slot was invalidated: " + err.Error()
	case codeUndefinedFile:
		lost = "the server has lost log that the slot needed: " + err.Error()
	}
	if lost != "" {
		s.unusable.Store(&lost)
	}
	return err
}

// Close is part of relay.Stream.
func (s *stream) Close(confirm relay.LSN) {
	if s.streaming && confirm != 0 && !s.conn.IsClosed() {
		if err := s.finish(confirm); err != nil {
			s.logger.Debug("the slot's last position could not be confirmed", "error", err)
		}
	}
	closeConn(s.conn)
}

// farewell bounds the orderly end of a stream.
const farewell = 2 * time.Second

// finish confirms a position and ends the stream in order. Closing the
// connection while the server's data is on its way could reset it, and the
// server would not get to read what was confirmed.
func (s *stream) finish(confirm relay.LSN) error {
	if err := s.conn.Conn().SetDeadline(time.Now().Add(farewell)); err != nil {
		return fmt.Errorf("set the connection's deadline: %w", err)
	}
	if err := s.status(confirm, false); err != nil {
		return err
	}
	if _, err := pglogrepl.SendStandbyCopyDone(context.Background(), s.conn); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	return nil
}

// status tells the server what was received and what is safe.
func (s *stream) status(safe relay.LSN, ask bool) error {
	s.received = max(s.received, safe)
	err := pglogrepl.SendStandbyStatusUpdate(context.Background(), s.conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: pglogrepl.LSN(s.received),
		WALFlushPosition: pglogrepl.LSN(safe),
		WALApplyPosition: pglogrepl.LSN(safe),
		ReplyRequested:   ask,
	})
	if err != nil {
		return fmt.Errorf("confirm %s: %w", safe, err)
	}
	s.confirmed = safe
	return nil
}

// streamLoop is one run of a stream.
type streamLoop struct {
	*stream
	receiver relay.Receiver
	decoder  *decoder
	inTx     bool
	tx       relay.Transaction
	due      time.Time // when the server is told next
	heard    time.Time // when it was known to have said something last
	talking  bool      // it has said something since the last report
	rows     int
}

func (l *streamLoop) run(ctx context.Context) error {
	l.heard = time.Now()
	// Asking for an answer tells at once how far the server's own reading has
	// come, so that the relay knows when it has caught up.
	if err := l.report(ctx, true); err != nil {
		return err
	}
	for {
		if full := l.receiver.Full(); full != nil {
			if err := l.wait(ctx, full); err != nil {
				return err
			}
		}
		msg, err := l.conn.ReceiveMessage(context.Background())
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // the end of ctx broke off the wait
		case err != nil && pgconn.Timeout(err):
			err = l.report(ctx, false)
		case err != nil:
			err = fmt.Errorf("receive: %w", err)
		default:
			l.talking = true
			err = l.message(ctx, msg)
		}
		if err != nil {
			return err
		}
	}
}

// report tells the server where the relay stands and sets the time of the next
// report. A server that has been silent for longer than it may be is gone.
func (l *streamLoop) report(ctx context.Context, ask bool) error {
	now := time.Now()
	if l.talking {
		l.heard, l.talking = now, false
	}
	silence := now.Sub(l.heard)
	if silence > l.o.OwnerTimeout {
		return fmt.Errorf("the server has been silent for %s", silence.Round(time.Second))
	}
	ask = ask || silence > l.o.OwnerTimeout/2
	if err := l.status(l.receiver.Safe(), ask); err != nil {
		return err
	}
	l.due = now.Add(statusInterval)
	if err := l.conn.Conn().SetReadDeadline(l.due); err != nil {
		return fmt.Errorf("set the connection's deadline: %w", err)
	}
	if ctx.Err() != nil { // the deadline that ctx's end had set was overwritten
		return l.conn.Conn().SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

// wait waits until the receiver takes rows again, and goes on answering the
// server meanwhile: backpressure ends in the write-ahead log.
func (l *streamLoop) wait(ctx context.Context, full <-chan struct{}) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		select {
		case <-full:
			return nil
		case <-ctx.Done():
			return nil
		case <-tick.C:
			l.talking = true // for all that is known: nobody is listening
			if err := l.report(ctx, false); err != nil {
				return err
			}
		}
	}
}

func (l *streamLoop) message(ctx context.Context, msg pgproto3.BackendMessage) error {
	switch msg := msg.(type) {
	case *pgproto3.CopyData:
		if len(msg.Data) == 0 {
			return fmt.Errorf("an empty message in the stream")
		}
		switch msg.Data[0] {
		case pglogrepl.XLogDataByteID:
			return l.data(ctx, msg.Data[1:])
		case pglogrepl.PrimaryKeepaliveMessageByteID:
			return l.keepalive(ctx, msg.Data[1:])
		}
		return nil
	case *pgproto3.ErrorResponse:
		return pgconn.ErrorResponseToPgError(msg)
	case *pgproto3.CopyDone:
		return fmt.Errorf("the server has ended the stream")
	default:
		return nil // notices and parameters
	}
}

// keepalive handles a primary keepalive message: between transactions its
// position says that all before it has been sent.
func (l *streamLoop) keepalive(ctx context.Context, b []byte) error {
	k, err := pglogrepl.ParsePrimaryKeepaliveMessage(b)
	if err != nil {
		return fmt.Errorf("read a keepalive: %w", err)
	}
	if !l.inTx {
		l.received = max(l.received, relay.LSN(k.ServerWALEnd))
		l.receiver.Idle(relay.LSN(k.ServerWALEnd))
	}
	if k.ReplyRequested {
		return l.report(ctx, false)
	}
	return l.reportIfDue(ctx)
}

// reportIfDue reads the clock, and reports if it is time.
func (l *streamLoop) reportIfDue(ctx context.Context) error {
	if time.Now().Before(l.due) {
		return nil
	}
	return l.report(ctx, false)
}

// rowsPerClock is how many rows of a long transaction pass between two looks at
// the clock.
const rowsPerClock = 1024

// xlogHeader is the part of an XLogData message before its data: the data's
// position, the server's position, and the server's clock.
const xlogHeader = 24

// data handles an XLogData message. It is the hot path: a row is decoded in
// place, in the connection's own buffer.
func (l *streamLoop) data(ctx context.Context, b []byte) error {
	if len(b) <= xlogHeader {
		return fmt.Errorf("read a message of the stream: %w", errShort)
	}
	b = b[xlogHeader:]
	kind, b := b[0], b[1:]
	switch kind {
	case messageInsert:
		row, err := l.decoder.insert(b, l.tx.CommittedAt)
		if err != nil {
			return fmt.Errorf("decode a row of the transaction at %s: %w", l.tx.Commit, err)
		}
		if row != nil {
			l.receiver.Row(row)
		}
		l.rows++
		if l.rows%rowsPerClock == 0 {
			return l.reportIfDue(ctx)
		}
		return nil
	case messageBegin:
		tx, err := l.decoder.begin(b)
		if err != nil {
			return fmt.Errorf("decode the beginning of a transaction: %w", err)
		}
		l.inTx, l.tx = true, tx
		l.receiver.Begin(tx)
		return nil
	case messageCommit:
		end, err := l.decoder.commit(b)
		if err != nil {
			return fmt.Errorf("decode the end of the transaction at %s: %w", l.tx.Commit, err)
		}
		l.inTx = false
		l.received = max(l.received, end)
		l.receiver.End(end)
		return l.reportIfDue(ctx)
	case messageRelation:
		if err := l.decoder.relation(b); err != nil {
			return fmt.Errorf("decode the description of table %d: %w", relationID(b), err)
		}
	}
	return nil // origins, types, and what a publication of inserts does not bring
}

func relationID(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
