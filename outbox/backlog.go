package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/syncrelay/syncrelay/relay"
)

// Backlog is part of relay.Stream. It reads under the snapshot that was exported
// when the slot was made: what committed before it is here and only here, what
// commits after it comes by the stream and only by it.
//
// The rows come as backlogOrder says. They are read in one query, and from the
// first that the server can't send on one by one; see backlogReader.carefully.
func (s *stream) Backlog(ctx context.Context, each func(*relay.Row, time.Time) error) error {
	r := backlogReader{stream: s, each: each}
	err := r.underSnapshot(ctx, r.plainly)
	if r.refused == nil && unreadable(err) {
		s.logger.Warn("a row of the backlog can't be read: the rest is read row by row", "after", r.rows, "error", err)
		err = r.underSnapshot(ctx, r.carefully)
	}
	return err
}

// backlogReader is one reading of a backlog.
type backlogReader struct {
	*stream
	each    func(*relay.Row, time.Time) error
	rows    int64 // were handed over
	refused error // is what each returned last
}

// hand hands a row over.
func (r *backlogReader) hand(row *relay.Row, committed *time.Time) error {
	var at time.Time
	if committed != nil {
		at = *committed
	}
	r.rows++
	r.refused = r.each(row, at)
	return r.refused
}

// underSnapshot reads in a transaction that sees what was committed when the slot
// was made.
func (r *backlogReader) underSnapshot(ctx context.Context, read func(ctx context.Context, tx pgx.Tx, timestamps bool) error) error {
	conn, err := connect(ctx, r.o.URL, nil)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("begin: %w", explain(err, conn.Config()))
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SET TRANSACTION SNAPSHOT `+literal(r.snapshot)); err != nil {
		return fmt.Errorf("use the slot's snapshot: %w", explain(err, conn.Config()))
	}
	var timestamps bool
	if err := tx.QueryRow(ctx, `SELECT current_setting('track_commit_timestamp')::bool`).Scan(&timestamps); err != nil {
		return fmt.Errorf("ask for track_commit_timestamp: %w", err)
	}
	if err := read(ctx, tx, timestamps); err != nil {
		if r.refused != nil {
			return err
		}
		return fmt.Errorf("read rows without a journal entry: %w", explain(err, conn.Config()))
	}
	return nil
}

// plainly reads all rows in one query. The server sorts, on disk if need be, and
// this side keeps one row.
func (r *backlogReader) plainly(ctx context.Context, tx pgx.Tx, timestamps bool) error {
	rows, err := tx.Query(ctx, `SELECT `+rowColumns(`now()`)+`, s.backlog_committed FROM (`+backlogQuery(r.table, timestamps, `s.*`)+`) s`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var row relay.Row
	for rows.Next() {
		var committed *time.Time
		if err := r.table.scanRow(rows, &row, &committed); err != nil {
			return err
		}
		if err := r.hand(&row, committed); err != nil {
			return err
		}
	}
	return rows.Err()
}

// backlogQuery selects columns of the rows s that the journal lacks, and the time
// of their commits, in the order in which they are numbered.
//
// Where the server keeps commit times (track_commit_timestamp) that is the order
// of the commits, and within a transaction that of its commands. Elsewhere a
// transaction stands where the earliest created_at of its rows puts it, and its
// rows stay together. So do rows of before the server kept commit times. A
// transaction that has savepoints counts as several there, one for each.
//
// The columns are sorted as they are stored, and what is made of them is made
// outside: large payloads stay where they are.
func backlogQuery(t table, timestamps bool, columns string) string {
	const (
		writer = `s.xmin::text::bigint` // the server does not sort by the type xid
		begun  = `min(s.created_at) OVER (PARTITION BY ` + writer + `)`
		within = `s.cmin::text::bigint, s.id, s.tableoid, s.ctid`
	)
	committed, order := `NULL::timestamptz`, begun+`, `+writer+`, `+within
	if timestamps {
		committed = `pg_catalog.pg_xact_commit_timestamp(s.xmin)`
		order = committed + ` NULLS FIRST, CASE WHEN ` + committed + ` IS NULL THEN ` + begun + ` END, CASE WHEN ` + committed + ` IS NULL THEN ` + writer + ` END, ` + within
	}
	return `SELECT ` + columns + `, ` + committed + ` AS backlog_committed
  FROM ` + t.name.Sanitize() + ` s
 WHERE NOT EXISTS (SELECT FROM syncrelay.journal j WHERE ` + t.joined() + `)
 ORDER BY ` + order
}

// joined is the condition under which j is the journal's entry of row s. The id
// alone is neither unique in a partitioned table nor enough to find the row, and
// in an adopted one TRUNCATE … RESTART IDENTITY, which a Django flush is, makes
// other rows with the same ids. There created_at may be NULL or infinite, which
// the journal does not keep.
func (t table) joined() string {
	if t.partitioned {
		return `j.row_id = s.id AND j.created_at = s.created_at`
	}
	return `j.row_id = s.id AND (j.created_at = s.created_at::timestamptz OR s.created_at IS NULL OR NOT isfinite(s.created_at))`
}

// rowColumns are the columns of a row s as scanRow reads them, with otherwise
// for a created_at that is NULL. The casts let an adopted table have other types.
func rowColumns(otherwise string) string {
	return `s.id::bigint, coalesce(s.event_type::text, ''), s.cadet_id::bigint, s.user_ids::bigint[], s.roles::text[], s.payload::text,
       ` + createdAt(otherwise)
}

// createdAt is the created_at of a row s as the journal keeps it.
func createdAt(otherwise string) string {
	return `CASE s.created_at WHEN 'infinity' THEN '9999-12-31 23:59:59.999999+00'
                         WHEN '-infinity' THEN '0001-01-01 00:00:00+00'
                         ELSE coalesce(s.created_at, ` + otherwise + `) END::timestamptz`
}

// scanRow reads rowColumns and what follows them.
func (t table) scanRow(rows pgx.Rows, row *relay.Row, more ...any) error {
	var cadet *int64
	var users pgtype.FlatArray[*int64]
	var roles pgtype.FlatArray[*string]
	*row = relay.Row{}
	into := append([]any{&row.ID, &row.Type, &cadet, &users, &roles, &row.Payload, &row.CreatedAt}, more...)
	if err := rows.Scan(into...); err != nil {
		return err
	}
	if cadet != nil {
		row.CadetID, row.HasCadet = *cadet, true
	}
	row.UserIDs, row.Roles = present(users, nil), present(roles, nil)
	if row.Payload != nil {
		var err error
		if row.Payload, err = payload(t.payloadType, false, row.Payload); err != nil {
			return err
		}
	}
	return nil
}
