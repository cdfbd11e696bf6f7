package outbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// pageBytes bounds the payloads of one read, as stored, and so the memory that
// a reader costs. One event is read however large it is.
const pageBytes = 2 << 20

// entriesPage is what read found.
type entriesPage struct {
	relay.Page
	// deleted is the newest event that retention had deleted when the rest had been
	// read.
	deleted int64
	// read is how many entries were, events and gaps, and at the last of them.
	read, at int64
}

// Entries whose events are read.
const (
	// newestEntries selects the newest of the journal: at most $1.
	newestEntries = `SELECT event_id, row_id, created_at FROM syncrelay.journal ORDER BY event_id DESC LIMIT $1`
	// theseEntries selects those that were found: such as are known to have a row at a
	// certain place ($1 to $3), and others ($4).
	theseEntries = `SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::timestamptz[]) e (event_id, row_id, created_at)
       UNION ALL SELECT j.event_id, j.row_id, j.created_at FROM unnest($4::bigint[]) e (event_id) JOIN syncrelay.journal j USING (event_id)`
)

// eventsQuery reads the rows of the entries that a query selects, by their IDs
// from the end at which the query begins. It gives up after maxBytes of payloads and
// tells by the number of entries that it did. A row
// that somebody has deleted from the table leaves its entry without one.
func eventsQuery(t table, entries string, maxBytes int, newestFirst bool) string {
	direction := ``
	if newestFirst {
		direction = ` DESC`
	}
	return fmt.Sprintf(`
SELECT %s, s.event_id, s.entries, s.present
  FROM (SELECT s.*, j.event_id, j.created_at AS journaled_created_at, s.id IS NOT NULL AS present,
               count(*) OVER () AS entries,
               sum(coalesce(pg_column_size(s.payload), 0)) OVER (ORDER BY j.event_id%s) - coalesce(pg_column_size(s.payload), 0) AS bytes_before
          FROM (%s) j
          LEFT JOIN %s s ON %s) s
 WHERE s.bytes_before < %d
 ORDER BY s.event_id%s`,
		rowColumns(`s.journaled_created_at`), direction, entries, t.name.Sanitize(), t.joined(), maxBytes, direction)
}

// readThese reads the events of entries, in order. Through is the last that it has
// come to, 0 if it has come to all.
func (j *Journal) readThese(entries []entry) (page entriesPage, err error) {
	err = j.inSession(context.Background(), func(ctx context.Context, conn *pgx.Conn) error {
		t, err := j.knownTable(ctx, conn)
		if err != nil {
			return err
		}
		if page, err = readEntries(ctx, conn, t, theseEntries, pageBytes, len(entries), columnsOf(entries)...); unreadable(err) {
			err = j.readPast(ctx, conn, t, &page, err, entries)
		}
		return err
	})
	return page, err
}

// columnsOf is the arguments of theseEntries.
func columnsOf(entries []entry) []any {
	var events, rows, others []int64
	var created []time.Time
	for _, e := range entries {
		if !e.located {
			others = append(others, e.event)
			continue
		}
		events, rows, created = append(events, e.event), append(rows, e.row), append(created, time.UnixMicro(e.created))
	}
	return []any{events, rows, created, others}
}

// Newest is part of relay.JournalReader.
func (j *Journal) Newest(ctx context.Context, epoch string, limit, maxBytes int) ([]*relay.Event, error) {
	var page entriesPage
	err := j.inSession(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		t, err := j.knownTable(ctx, conn)
		if err != nil {
			return err
		}
		var present string
		if err := conn.QueryRow(ctx, `SELECT epoch FROM syncrelay.state`).Scan(&present); err != nil {
			return fmt.Errorf("ask for the journal's epoch: %w", err)
		}
		if !isOf(present, epoch) {
			return relay.ErrNewEpoch
		}
		if page, err = readEntries(ctx, conn, t, newestEntries, maxBytes, limit, limit); unreadable(err) {
			err = nil // what is newer than the row will do
		}
		return err
	})
	slices.Reverse(page.Events)
	return page.Events, err
}

// inSession does something in a session that reads.
func (j *Journal) inSession(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	conn, err := j.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return explain(do(ctx, conn.Conn()), conn.Conn().Config())
}

// readEntries runs a query of entries and encodes their events, which it returns
// with an error too, up to where that came. Through is where the next read must go
// on, 0 if there was nothing more than what was read.
func readEntries(ctx context.Context, conn *pgx.Conn, t table, entries string, maxBytes, limit int, args ...any) (page entriesPage, err error) {
	newestFirst := entries == newestEntries
	var batch pgx.Batch
	batch.Queue(eventsQuery(t, entries, maxBytes, newestFirst), args...).Query(func(rows pgx.Rows) error {
		return t.scanEntries(rows, &page, limit, newestFirst, maxBytes)
	})
	// After the rows, in a snapshot of its own: whatever was deleted before they
	// were read is noted by then.
	batch.Queue(askDeleted).QueryRow(func(row pgx.Row) error { return row.Scan(&page.deleted) })
	err = conn.SendBatch(ctx, &batch).Close()
	return page, err
}

const askDeleted = `SELECT deleted_event_id FROM syncrelay.state`

// inflation bounds how much larger than stored the events of one read may be:
// the server counts payloads compressed.
const inflation = 4

// scanEntries reads the rows of an eventsQuery into a page.
func (t table) scanEntries(rows pgx.Rows, page *entriesPage, limit int, newestFirst bool, maxBytes int) error {
	var row relay.Row
	var id, found int64
	bytes := 0
	for bytes <= inflation*maxBytes && rows.Next() {
		var present bool
		if err := t.scanEntry(rows, &row, &id, &found, &present); err != nil {
			return err
		}
		page.read, page.at = page.read+1, id
		if !present {
			page.Gap = true
			continue
		}
		e := relay.NewEvent(id, &row, time.Time{})
		bytes += e.Size()
		page.Events = append(page.Events, e)
	}
	rows.Close()
	if !newestFirst && (page.read < found || found == int64(limit)) {
		page.Through = id
	}
	return rows.Err()
}

// scanEntry reads an entry of eventsQuery, whose row may be missing.
func (t table) scanEntry(rows pgx.Rows, row *relay.Row, id, found *int64, present *bool) error {
	raw := rows.RawValues()
	if raw[0] != nil {
		return t.scanRow(rows, row, id, found, present)
	}
	skip := make([]any, len(raw))
	skip[len(raw)-3], skip[len(raw)-2], skip[len(raw)-1] = id, found, present
	return rows.Scan(skip...)
}
