package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/syncrelay/syncrelay/relay"
)

// Record is what the database knows of a row and its event.
type Record struct {
	// EventID is 0 for a row that has not been given one.
	EventID int64
	RowID   int64
	// CreatedAt is the row's created_at, as the journal has it.
	CreatedAt time.Time
	// Groups are those that the journal keeps the event for: decided by the relay
	// when it gave the event its ID, and what replays go by. Nil for a row that has
	// none.
	Groups []relay.Group
	// Row and Event are the row as it stands in the table now, and the event that is
	// made of it. Event is nil if the row has gone.
	Row   relay.Row
	Event *relay.Event
}

// Standing is where the journal stands.
type Standing struct {
	// LastID is the newest event ID assigned, Oldest the oldest that is kept (0 for
	// none), and Deleted the newest that retention has deleted.
	LastID, Oldest, Deleted int64
	// Epoch, and the ID that is above all those of the epochs before.
	Epoch      string
	EpochAfter int64
	// Streaming: a session holds the slot.
	Streaming bool
	// LastRowID is the newest id that the table has given a row, 0 if this role may
	// not know.
	LastRowID int64
}

const traceColumns = `s.event_id, s.row_id, s.journaled_created_at, s.journaled_cadet_id, s.staff,
       (SELECT array_agg(a.audience ORDER BY a.audience) FROM syncrelay.journal_audience a WHERE a.event_id = s.event_id)`

// traceQuery reads the rows of the entries that a query selects, whose columns are
// those of a row of the table and of its journal entry.
func traceQuery(entries string) string {
	return `SELECT ` + rowColumns(`coalesce(s.journaled_created_at, now())`) + `, ` + traceColumns + ` FROM (` + entries + `) s ORDER BY s.event_id NULLS LAST`
}

const traceEntry = `s.*, j.event_id, coalesce(j.row_id, s.id) AS row_id, j.created_at AS journaled_created_at, j.cadet_id AS journaled_cadet_id, coalesce(j.staff, false) AS staff`

func traceEvent(t table) string {
	return traceQuery(`SELECT ` + traceEntry + ` FROM syncrelay.journal j LEFT JOIN ` + t.name.Sanitize() + ` s ON ` + t.joined() + ` WHERE j.event_id = $1`)
}

// traceRow looks for a row in the table, and for entries whose row has gone.
func traceRow(t table) string {
	return traceQuery(`SELECT ` + traceEntry + ` FROM ` + t.name.Sanitize() + ` s LEFT JOIN syncrelay.journal j ON ` + t.joined() + ` WHERE s.id = $1
    UNION ALL SELECT ` + traceEntry + ` FROM syncrelay.journal j LEFT JOIN ` + t.name.Sanitize() + ` s ON ` + t.joined() + ` WHERE j.row_id = $1 AND s.id IS NULL`)
}

const findStanding = `
SELECT t.last_event_id, coalesce((SELECT min(event_id) FROM syncrelay.journal), 0), t.deleted_event_id, t.epoch, t.epoch_after,
       EXISTS (SELECT FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND active),
       coalesce((SELECT CASE WHEN pg_catalog.has_sequence_privilege(q.seq, 'USAGE, SELECT') THEN pg_catalog.pg_sequence_last_value(q.seq) END
                   FROM (SELECT pg_catalog.pg_get_serial_sequence('sync_events', 'id')::regclass AS seq) q), 0)
  FROM syncrelay.state t`

// TraceEvent looks an event up; there is no record if the journal does not have it.
func (j *Journal) TraceEvent(ctx context.Context, id int64) ([]Record, Standing, error) {
	return j.trace(ctx, traceEvent, id)
}

// TraceRow looks up a row by its id. An id is unique only together with
// created_at, so there may be several.
func (j *Journal) TraceRow(ctx context.Context, id int64) ([]Record, Standing, error) {
	return j.trace(ctx, traceRow, id)
}

func (j *Journal) trace(ctx context.Context, query func(table) string, id int64) (records []Record, at Standing, err error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	err = j.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		conn := c.Conn()
		t, err := j.knownTable(ctx, conn)
		if err != nil {
			return err
		}
		// The standing after the records: what is not journaled yet by then was not
		// when they were read.
		rows, err := conn.Query(ctx, query(t), id)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			record, err := t.scanRecord(rows)
			if err != nil {
				return err
			}
			records = append(records, record)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		err = conn.QueryRow(ctx, findStanding, j.o.Slot).Scan(&at.LastID, &at.Oldest, &at.Deleted, &at.Epoch, &at.EpochAfter, &at.Streaming, &at.LastRowID)
		if errors.Is(err, pgx.ErrNoRows) {
			err = &Problem{What: "syncrelay.state is empty", Mend: "syncrelay doctor says how", Fatal: true}
		}
		return err
	})
	if err != nil {
		return nil, Standing{}, fmt.Errorf("look into the journal: %w", explain(err, j.pool.Config().ConnConfig))
	}
	return records, at, nil
}

// scanRecord reads a row of traceQuery.
func (t table) scanRecord(rows pgx.Rows) (r Record, err error) {
	var event *int64
	var created *time.Time
	var cadet *int64
	var staff bool
	var audience []string
	columns := []any{&event, &r.RowID, &created, &cadet, &staff, &audience}
	present := rows.RawValues()[0] != nil
	if present {
		err = t.scanRow(rows, &r.Row, columns...)
	} else {
		err = rows.Scan(slices.Concat(make([]any, len(rows.RawValues())-len(columns)), columns)...)
	}
	if err != nil {
		return r, err
	}
	r.CreatedAt = r.Row.CreatedAt
	if created != nil {
		r.CreatedAt = *created
	}
	if event != nil {
		r.EventID = *event
		if r.Groups, err = journaledGroups(cadet, staff, audience); err != nil {
			return r, err
		}
	}
	if present {
		r.Event = relay.NewEvent(r.EventID, &r.Row, time.Time{})
	}
	return r, nil
}

// journaledGroups is the groups that stand in the journal, as Append has written
// them.
func journaledGroups(cadet *int64, staff bool, audience []string) ([]relay.Group, error) {
	groups := []relay.Group{}
	if cadet != nil {
		groups = append(groups, relay.CadetGroup(*cadet))
	}
	if staff {
		groups = append(groups, relay.Staff)
	}
	for _, name := range audience {
		g, ok := relay.ParseGroup(name)
		if !ok {
			return nil, fmt.Errorf("the journal has an audience %q, which is no group", name)
		}
		groups = append(groups, g)
	}
	return groups, nil
}
