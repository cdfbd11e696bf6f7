package outbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// pageBytes bounds the payloads of one read, as stored, and so the memory that
// a reader costs. One event is read however large it is.
const pageBytes = 2 << 20

// Read is part of relay.JournalReader.
func (j *Journal) Read(ctx context.Context, after, through int64, groups []relay.Group, limit int) ([]*relay.Event, int64, error) {
	entries, args := entriesOf(groups, limit)
	events, last, err := j.read(ctx, entries, pageBytes, limit, append([]any{after, through}, args...)...)
	if last == 0 {
		last = through // there is nothing more up to there
	}
	return events, last, err
}

// newestEntries selects the newest entries of the journal: at most $1.
const newestEntries = `SELECT event_id FROM syncrelay.journal ORDER BY event_id DESC LIMIT $1`

// entriesOf is the query for the entries that are for one of the groups, above
// $1 and up to $2: one range of an index for each group.
func entriesOf(groups []relay.Group, limit int) (query string, args []any) {
	const bounds = `event_id > $1 AND event_id <= $2 ORDER BY event_id LIMIT `
	var parts []string
	for _, g := range groups {
		var from string
		switch cadet, isCadet := g.Cadet(); {
		case g == relay.Staff:
			from = `syncrelay.journal WHERE staff AND `
		case isCadet:
			args = append(args, cadet)
			from = fmt.Sprintf(`syncrelay.journal WHERE cadet_id = $%d AND `, len(args)+2)
		default:
			args = append(args, g.String())
			from = fmt.Sprintf(`syncrelay.journal_audience WHERE audience = $%d AND `, len(args)+2)
		}
		parts = append(parts, fmt.Sprintf(`(SELECT event_id FROM %s%s%d)`, from, bounds, limit))
	}
	return fmt.Sprintf(`SELECT event_id FROM (%s) u ORDER BY event_id LIMIT %d`, strings.Join(parts, " UNION "), limit), args
}

// eventsQuery reads the rows of the entries that a query selects, in the order
// of their IDs. It gives up after maxBytes of payloads, counted from the end at
// which the query begins, and tells by the number of entries that it did. A row
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
          FROM (%s) e
          JOIN syncrelay.journal j USING (event_id)
          LEFT JOIN %s s ON %s) s
 WHERE s.bytes_before < %d
 ORDER BY s.event_id`,
		rowColumns(`s.journaled_created_at`), direction, entries, t.name.Sanitize(), t.joined(), maxBytes)
}

// read runs a query of entries and encodes their events. last is where the next
// read must go on, 0 if there was nothing more than what was read.
func (j *Journal) read(ctx context.Context, entries string, maxBytes, limit int, args ...any) (events []*relay.Event, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	conn, err := j.pool.Acquire(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Release()
	t, err := j.knownTable(ctx, conn.Conn())
	if err != nil {
		return nil, 0, err
	}
	rows, err := conn.Query(ctx, eventsQuery(t, entries, maxBytes, entries == newestEntries), args...)
	if err != nil {
		return nil, 0, explain(err, conn.Conn().Config())
	}
	defer rows.Close()
	var row relay.Row
	var id, found, read int64
	for rows.Next() {
		var present bool
		read++
		if err := t.scanEntry(rows, &row, &id, &found, &present); err != nil {
			return nil, 0, err
		}
		if present {
			events = append(events, relay.NewEvent(id, &row, time.Time{}))
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, explain(err, conn.Conn().Config())
	}
	if read < found || found == int64(limit) {
		last = id
	}
	return events, last, nil
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
