package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// tenure is the session of the owner. It implements relay.Tenure. Every write
// is fenced in its own statement: it changes nothing unless the row of
// syncrelay.state still bears this tenure's number.
type tenure struct {
	logger  *slog.Logger
	timeout time.Duration
	state   relay.State
	number  int64

	publication, slot string // their names

	mu        sync.Mutex // one statement at a time
	conn      *pgx.Conn
	used      time.Time
	stop      context.CancelFunc
	stopped   chan struct{}
	confirmed relay.LSN // as written to the state
	// marked is a confirmed position, and markedAt a position of the server's
	// log that is behind the commit that wrote it; flushed is the newest marked
	// position whose markedAt the server has flushed.
	marked, markedAt, flushed relay.LSN

	copied copyBatch // its memory
}

const openTenure = `
UPDATE syncrelay.state SET tenure = tenure + 1
RETURNING tenure, epoch, epoch_after, last_event_id, high_commit::text, high_ordinal, floors,
          system_id, timeline, coalesce(server_started_at, 'epoch'), slot, confirmed::text, resend::text, publication, backlog, clean, deleted_event_id,
          coalesce((SELECT min(event_id) FROM syncrelay.journal), 0)`

// open takes the next tenure's number, which fences every earlier owner, and
// reads what the journal remembers.
func (t *tenure) open(ctx context.Context) error {
	s := &t.state
	var high, confirmed, resend string
	var floors []byte
	err := t.conn.QueryRow(ctx, openTenure).Scan(&s.Tenure, &s.Epoch, &s.EpochAfter, &s.LastID, &high, &s.High.Ordinal, &floors,
		&s.Server.SystemID, &s.Server.Timeline, &s.Server.StartedAt, &s.Slot, &confirmed, &resend, &s.Publication, &s.Backlog, &s.Clean, &s.Deleted, &s.Oldest)
	if err != nil {
		return fmt.Errorf("open a tenure in the journal: %w", err)
	}
	if s.High.Commit, err = parseLSN(high); err != nil {
		return err
	}
	if s.Confirmed, err = parseLSN(confirmed); err != nil {
		return err
	}
	if s.Resend, err = parseLSN(resend); err != nil {
		return err
	}
	if err := json.Unmarshal(floors, &s.Floors); err != nil {
		return fmt.Errorf("read the floors of the journal's state: %w", err)
	}
	t.number, t.confirmed = s.Tenure, s.Confirmed
	return nil
}

func parseLSN(text string) (relay.LSN, error) {
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return 0, fmt.Errorf("read a position of the journal's state: %w", err)
	}
	return relay.LSN(lsn), nil
}

// keepAlive says something to the server now and then, so that it does not take
// a long backlog or a long wait for a slot for the owner's death.
func (t *tenure) keepAlive() {
	ctx, cancel := context.WithCancel(context.Background())
	t.stop, t.stopped, t.used = cancel, make(chan struct{}), time.Now()
	go func() {
		defer close(t.stopped)
		tick := time.NewTicker(t.timeout / 4)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			t.mu.Lock()
			if time.Since(t.used) > t.timeout/5 {
				_, err := t.exec(ctx, operationTimeout, `SELECT 1`)
				if err != nil && ctx.Err() == nil {
					t.logger.Debug("the owner's session does not answer", "error", err)
				}
			}
			t.mu.Unlock()
		}
	}()
}

// exec runs a statement of the owner. t.mu is held.
func (t *tenure) exec(ctx context.Context, timeout time.Duration, sql string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tag, err := t.conn.Exec(ctx, sql, args...)
	t.used = time.Now()
	if err != nil {
		return 0, explain(err, t.conn.Config())
	}
	return tag.RowsAffected(), nil
}

// State is part of relay.Tenure.
func (t *tenure) State() relay.State { return t.state }

const saveState = `
UPDATE syncrelay.state
   SET epoch = $2, epoch_after = $3, last_event_id = $4, high_commit = $5::text::pg_lsn, high_ordinal = $6, floors = $7,
       system_id = $8, timeline = $9, server_started_at = $10, slot = $11, confirmed = $12::text::pg_lsn, backlog = $13, clean = $14, resend = $15::text::pg_lsn, publication = $16
 WHERE tenure = $1`

// Save is part of relay.Tenure.
func (t *tenure) Save(ctx context.Context, s relay.State) error {
	floors, err := json.Marshal(s.Floors)
	if err != nil {
		return fmt.Errorf("write the floors: %w", err)
	}
	if s.Floors == nil {
		floors = []byte(`[]`)
	}
	err = t.durably(ctx, operationTimeout, saveState, t.number, s.Epoch, s.EpochAfter, s.LastID, s.High.Commit.String(), s.High.Ordinal, floors,
		s.Server.SystemID, s.Server.Timeline, s.Server.StartedAt, s.Slot, s.Confirmed.String(), s.Backlog, s.Clean, s.Resend.String(), s.Publication)
	if err == nil {
		t.confirmed, t.flushed = s.Confirmed, s.Confirmed
	}
	return err
}

// durably runs a fenced statement in a transaction that waits for the disk, and
// so for everything that committed before it.
func (t *tenure) durably(ctx context.Context, timeout time.Duration, sql string, args ...any) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer func() { t.used = time.Now() }()
	return explain(pgx.BeginFunc(ctx, t.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, sql, args...)
		if err == nil && tag.RowsAffected() == 0 {
			err = relay.ErrFenced
		}
		return err
	}), t.conn.Config())
}

// fence is the part of a statement that moves the high-water mark if the tenure
// is still this one; what follows it selects from it.
const fence = `
WITH fence AS (
  UPDATE syncrelay.state
     SET last_event_id = $2, high_commit = $3::text::pg_lsn, high_ordinal = $4, confirmed = $5::text::pg_lsn
   WHERE tenure = $1
  RETURNING tenure)`

const appendEntries = fence + `
INSERT INTO syncrelay.journal (event_id, row_id, created_at, cadet_id, staff)
SELECT e.* FROM fence, unnest($6::bigint[], $7::bigint[], $8::timestamptz[], $9::bigint[], $10::boolean[]) e`

const appendWithAudience = fence + `, audience AS (
  INSERT INTO syncrelay.journal_audience (audience, event_id)
  SELECT a.* FROM fence, unnest($11::text[], $12::bigint[]) a)
INSERT INTO syncrelay.journal (event_id, row_id, created_at, cadet_id, staff)
SELECT e.* FROM fence, unnest($6::bigint[], $7::bigint[], $8::timestamptz[], $9::bigint[], $10::boolean[]) e`

// timePerAudience is what an entry of journal_audience may take on a slow server;
// 5 µs are usual.
const timePerAudience = 100 * time.Microsecond

// Append is part of relay.Tenure.
func (t *tenure) Append(ctx context.Context, b *relay.Batch) error {
	if len(b.Events) >= copyFrom {
		confirmed := max(t.confirmed, b.Confirm)
		err := t.copy(ctx, b, confirmed)
		if err == nil {
			t.confirmed = confirmed
		}
		return err
	}
	n := len(b.Events)
	ids, rows := make([]int64, n), make([]int64, n)
	created, cadets, staff := make([]time.Time, n), make([]*int64, n), make([]bool, n)
	var audiences []string
	var audienceIDs []int64
	for i, e := range b.Events {
		ids[i], rows[i], created[i], staff[i] = e.ID, e.RowID, e.CreatedAt, e.Audience.Staff
		if e.Audience.HasCadet {
			cadets[i] = &e.Audience.CadetID
		}
		for _, g := range e.Groups() {
			if hasAudience(g) {
				audiences, audienceIDs = append(audiences, g.String()), append(audienceIDs, e.ID)
			}
		}
	}
	confirmed := max(t.confirmed, b.Confirm)
	args := []any{t.number, ids[n-1], b.High.Commit.String(), b.High.Ordinal, confirmed.String(), ids, rows, created, cadets, staff}
	sql := appendEntries
	if len(audiences) > 0 {
		sql, args = appendWithAudience, append(args, audiences, audienceIDs)
	}
	// One row may name millions of users, and must not fail for ever because of it.
	timeout := operationTimeout + time.Duration(len(audiences))*timePerAudience
	if b.Durable {
		if err := t.durably(ctx, timeout, sql, args...); err != nil {
			return err
		}
	} else if err := t.fenced(ctx, timeout, sql, args...); err != nil {
		return err
	}
	t.confirmed = confirmed
	return nil
}

// fenced runs a statement that changes nothing if another owner has taken over.
func (t *tenure) fenced(ctx context.Context, timeout time.Duration, sql string, args ...any) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.exec(ctx, timeout, sql, args...)
	if err == nil && n == 0 {
		err = relay.ErrFenced
	}
	return err
}

// Advance is part of relay.Tenure.
func (t *tenure) Advance(ctx context.Context, confirm relay.LSN) error {
	confirm = max(confirm, t.confirmed)
	err := t.fenced(ctx, operationTimeout, `UPDATE syncrelay.state SET confirmed = $2::text::pg_lsn WHERE tenure = $1`, t.number, confirm.String())
	if err == nil {
		t.confirmed = confirm
	}
	return err
}

// askPulse asks where the server's log stands, and what is published.
const askPulse = `SELECT pg_catalog.pg_current_wal_insert_lsn()::text, pg_catalog.pg_current_wal_flush_lsn()::text, (` + publicationIdentity + `)`

// Pulse is part of relay.Tenure. The commits are asynchronous, so that what
// was written is known to be on disk only when the server has flushed its log
// beyond a position that was read after the commit.
func (t *tenure) Pulse(ctx context.Context) (p relay.Pulse, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var inserted, flushed string
	err = t.conn.QueryRow(ctx, askPulse, t.publication).Scan(&inserted, &flushed, &p.Publication)
	t.used = time.Now()
	if err != nil {
		return p, explain(err, t.conn.Config())
	}
	if p.WALEnd, err = parseLSN(flushed); err != nil {
		return p, err
	}
	if p.WALEnd >= t.markedAt {
		t.flushed = max(t.flushed, t.marked)
		if t.markedAt, err = parseLSN(inserted); err != nil {
			return p, err
		}
		t.marked = t.confirmed
	}
	p.Flushed = t.flushed
	return p, nil
}

// askWorking asks what the process of the server does that reads the log for the
// slot: it waits for a client, for more log or for something of another process's
// when it is not at work. What this role may not see is no work.
const askWorking = `
SELECT coalesce(bool_or(a.state IS NOT NULL AND coalesce(a.wait_event_type, '') NOT IN ('Client', 'Activity', 'IPC', 'Extension')), false)
  FROM pg_catalog.pg_replication_slots s JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = $1`

// Working is part of relay.Tenure.
func (t *tenure) Working(ctx context.Context) (working bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	err = t.conn.QueryRow(ctx, askWorking, t.slot).Scan(&working)
	t.used = time.Now()
	return working, explain(err, t.conn.Config())
}

// End is part of relay.Tenure.
func (t *tenure) End(ctx context.Context, clean bool) (relay.LSN, error) {
	if err := t.durably(ctx, operationTimeout, `UPDATE syncrelay.state SET clean = $2 WHERE tenure = $1`, t.number, clean); err != nil {
		return 0, err
	}
	return t.confirmed, nil
}

// Close is part of relay.Tenure.
func (t *tenure) Close() {
	t.stop()
	<-t.stopped
	closeConn(t.conn)
}
