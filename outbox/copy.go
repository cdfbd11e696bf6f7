package outbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// copyFrom is how many events make COPY worth its round trips: it takes the server
// two thirds of the time, and writes a fraction of the log, which the stream's own
// server process has to read too.
const copyFrom = 256

const (
	copyJournal  = `COPY syncrelay.journal (event_id, row_id, created_at, cadet_id, staff) FROM STDIN (FORMAT binary)`
	copyAudience = `COPY syncrelay.journal_audience (audience, event_id) FROM STDIN (FORMAT binary)`
)

// The beginning and the end of a COPY in binary form (Postgres manual, "COPY",
// Binary Format): signature, flags, length of an extension; and a tuple of -1
// fields.
const (
	copyHeader  = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	copyTrailer = "\xff\xff"
)

// copyBatch is a batch in the form in which it is copied. Its memory is used again.
type copyBatch struct{ journal, audience []byte }

// encode writes the batch's entries and counts those for users and roles.
func (c *copyBatch) encode(b *relay.Batch) (audiences int) {
	c.journal = append(c.journal[:0], copyHeader...)
	c.audience = append(c.audience[:0], copyHeader...)
	for _, e := range b.Events {
		c.journal = binary.BigEndian.AppendUint16(c.journal, 5)
		c.journal = appendInt8(c.journal, e.ID)
		c.journal = appendInt8(c.journal, e.RowID)
		c.journal = appendInt8(c.journal, copyTime(e.CreatedAt))
		if e.Audience.HasCadet {
			c.journal = appendInt8(c.journal, e.Audience.CadetID)
		} else {
			c.journal = binary.BigEndian.AppendUint32(c.journal, math.MaxUint32) // NULL
		}
		c.journal = binary.BigEndian.AppendUint32(c.journal, 1)
		if e.Audience.Staff {
			c.journal = append(c.journal, 1)
		} else {
			c.journal = append(c.journal, 0)
		}
		for _, g := range e.Groups() {
			if !hasAudience(g) {
				continue
			}
			audiences++
			name := g.String()
			c.audience = binary.BigEndian.AppendUint16(c.audience, 2)
			c.audience = binary.BigEndian.AppendUint32(c.audience, uint32(len(name))) //nolint:gosec // a role or a user
			c.audience = append(c.audience, name...)
			c.audience = appendInt8(c.audience, e.ID)
		}
	}
	c.journal = append(c.journal, copyTrailer...)
	c.audience = append(c.audience, copyTrailer...)
	return audiences
}

// hasAudience reports whether the group is one of journal_audience's.
func hasAudience(g relay.Group) bool {
	_, isCadet := g.Cadet()
	return !isCadet && g != relay.Staff
}

func appendInt8(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(n)) //nolint:gosec // the server's int8 is signed
}

// copyTime is a timestamp as the server counts: microseconds since 2000. What the
// years at the end of its calendar overflow on the way, they overflow back.
func copyTime(t time.Time) int64 { return t.UnixMicro() - serverEpoch.UnixMicro() }

// copy adds a batch in a transaction of its own. It holds the lock on the state
// from the fence on, so that no other owner can begin before it ends.
func (t *tenure) copy(ctx context.Context, b *relay.Batch, confirmed relay.LSN) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	audiences := t.copied.encode(b)
	// One row may name millions of users, and must not fail for ever because of it.
	ctx, cancel := context.WithTimeout(ctx, operationTimeout+time.Duration(audiences)*timePerAudience)
	defer cancel()
	defer func() { t.used = time.Now() }()
	return explain(t.copyFenced(ctx, b, confirmed, audiences), t.conn.Config())
}

func (t *tenure) copyFenced(ctx context.Context, b *relay.Batch, confirmed relay.LSN, audiences int) (err error) {
	conn := t.conn.PgConn()
	commit := "on"
	if !b.Durable {
		commit = "off"
	}
	begin := fmt.Sprintf(`BEGIN; SET LOCAL synchronous_commit = %s;
UPDATE syncrelay.state SET last_event_id = %d, high_commit = '%s', high_ordinal = %d, confirmed = '%s' WHERE tenure = %d`,
		commit, b.Events[len(b.Events)-1].ID, b.High.Commit, b.High.Ordinal, confirmed, t.number)
	results, err := conn.Exec(ctx, begin).ReadAll()
	if err == nil && results[len(results)-1].CommandTag.RowsAffected() == 0 {
		err = relay.ErrFenced
	}
	if err == nil {
		_, err = conn.CopyFrom(ctx, bytes.NewReader(t.copied.journal), copyJournal)
	}
	if err == nil && audiences > 0 {
		_, err = conn.CopyFrom(ctx, bytes.NewReader(t.copied.audience), copyAudience)
	}
	if err != nil {
		if _, ended := conn.Exec(context.WithoutCancel(ctx), `ROLLBACK`).ReadAll(); ended != nil {
			t.logger.Debug("a transaction of the journal could not be rolled back", "error", ended)
		}
		return err
	}
	results, err = conn.Exec(ctx, `COMMIT`).ReadAll()
	if err == nil && results[0].CommandTag.String() != "COMMIT" {
		err = fmt.Errorf("the server answered COMMIT with %s", results[0].CommandTag)
	}
	return err
}
