package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// A row can be such that the server can't send it: a few kilobytes of jsonb whose
// numbers are a gigabyte when they are written out, a character that UTF-8 does
// not have, a damaged page. The server's own stream fails at it each time that it
// comes to it. Such a row must not stop the relay: it is read from the table,
// where the rows around it can be read without it, and numbered with a fault.

// unreadable reports whether the server's error is about the data of a row, and
// so comes again each time that the row is read.
func unreadable(err error) bool {
	const (
		dataException = "22"    // a class
		programLimit  = "54"    // a class
		dataCorrupted = "XX001" // a code
	)
	c := code(err)
	return strings.HasPrefix(c, dataException) || strings.HasPrefix(c, programLimit) || c == dataCorrupted
}

// stumbles counts how often in a row the stream has failed at a row.
type stumbles struct {
	at    relay.LSN // the furthest transaction that had begun
	times int
}

// maxStumbles is how often the stream may fail at a row before the row is called
// unreadable.
const maxStumbles = 2

// stumble judges an error with which the stream has ended, after the beginning of
// the transaction at a position, 0 for none.
func (s *stream) stumble(err error, at relay.LSN) error {
	if !unreadable(err) {
		return err
	}
	if at > s.stumbles.at {
		*s.stumbles = stumbles{at: at}
	}
	s.stumbles.times++
	if s.stumbles.times >= maxStumbles {
		lost := fmt.Sprintf("the server has failed %d times to send a row: %v", s.stumbles.times, err)
		s.unusable.Store(&lost)
	}
	return err
}

// place is where a row of a backlog stands in the table, and what is known of it
// without reading it.
type place struct {
	id                 int64
	createdAt          time.Time
	committed          *time.Time
	partition, address string
}

// placesAtOnce is how many rows are asked for at once; one that can't be read
// costs two more questions.
const placesAtOnce = 100

// carefully reads the backlog's rows, from the first that was not handed over,
// by their places in the table. One that the server can't send is handed over
// with what is known of it and the fault.
func (r *backlogReader) carefully(ctx context.Context, tx pgx.Tx, timestamps bool) error {
	query := fmt.Sprintf(`SELECT s.id::bigint, %s, s.backlog_committed, s.backlog_partition, s.backlog_address FROM (%s OFFSET %d) s`, createdAt(`now()`),
		backlogQuery(r.table, timestamps, `s.id, s.created_at, s.tableoid::bigint::text AS backlog_partition, s.ctid::text AS backlog_address`), r.rows)
	// The places come in one query, and the rows meanwhile by another session.
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	return r.underSnapshot(ctx, func(ctx context.Context, tx pgx.Tx, _ bool) error {
		var places []place
		for rows.Next() {
			var p place
			if err := rows.Scan(&p.id, &p.createdAt, &p.committed, &p.partition, &p.address); err != nil {
				return err
			}
			if places = append(places, p); len(places) == placesAtOnce {
				if err := r.readPlaces(ctx, tx, places); err != nil {
					return err
				}
				places = places[:0]
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return r.readPlaces(ctx, tx, places)
	})
}

// readPlaces hands over the rows at some places, and those that can't be read
// with their faults.
func (r *backlogReader) readPlaces(ctx context.Context, tx pgx.Tx, places []place) error {
	for len(places) > 0 {
		before := r.rows
		err := r.fetch(ctx, tx, places)
		if r.refused != nil || err != nil && !unreadable(err) {
			return err
		}
		places = places[r.rows-before:]
		if len(places) == 0 {
			return nil
		}
		if err == nil {
			return errors.New("a row that the snapshot shows is not at its place")
		}
		// The error came with the next row, or with one behind it.
		before = r.rows
		if err = r.fetch(ctx, tx, places[:1]); r.refused != nil || err != nil && !unreadable(err) {
			return err
		}
		if r.rows == before {
			if err == nil {
				return errors.New("a row that the snapshot shows is not at its place")
			}
			row := relay.Row{ID: places[0].id, CreatedAt: places[0].createdAt, Fault: fmt.Errorf("the server can't send it: %w", err)}
			if err := r.hand(&row, places[0].committed); err != nil {
				return err
			}
		}
		places = places[1:]
	}
	return nil
}

// fetch hands over the rows at some places, one after another, up to the first
// that can't be read. The transaction outlives the error.
func (r *backlogReader) fetch(ctx context.Context, tx pgx.Tx, places []place) error {
	partitions, addresses := make([]string, len(places)), make([]string, len(places))
	for i, p := range places {
		partitions[i], addresses[i] = p.partition, p.address
	}
	return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { // a savepoint
		rows, err := tx.Query(ctx, `SELECT `+rowColumns(`now()`)+`, s.backlog_number
  FROM (SELECT s.*, p.n AS backlog_number
          FROM unnest($1::text[]::oid[], $2::text[]::tid[]) WITH ORDINALITY p (partition, address, n)
          JOIN `+r.table.name.Sanitize()+` s ON s.ctid = p.address AND s.tableoid = p.partition
         ORDER BY p.n) s`, partitions, addresses)
		if err != nil {
			return err
		}
		defer rows.Close()
		var row relay.Row
		for rows.Next() {
			var n int
			if err := r.table.scanRow(rows, &row, &n); err != nil {
				return err
			}
			if err := r.hand(&row, places[n-1].committed); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// readPast ends a page whose reading failed behind its first entries with the
// one after them of those that were asked for, which is a gap if its row can't be
// read: the next page goes on behind it.
func (j *Journal) readPast(ctx context.Context, conn *pgx.Conn, t table, page *entriesPage, failed error, entries []entry) error {
	next, _ := slices.BinarySearchFunc(entries, entry{event: page.at + 1}, compareEntries)
	if next == len(entries) { // it came with nothing that was asked for
		return failed
	}
	id := entries[next].event
	one, err := readEntries(ctx, conn, t, theseEntries, 1, 1, columnsOf(entries[next:next+1])...)
	if err != nil && !unreadable(err) {
		return fmt.Errorf("read event %d by itself: %w", id, err)
	}
	if err != nil {
		j.logger.Warn("an event's row can't be read any more: clients that replay it are told of a gap", "event_id", id, "error", failed)
	}
	page.Events = append(page.Events, one.Events...)
	page.Through = id
	if err := conn.QueryRow(ctx, askDeleted).Scan(&page.deleted); err != nil {
		return fmt.Errorf("ask what was deleted: %w", err)
	}
	return nil
}
