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
// The rows come in the order of their commit times where the server keeps them
// (track_commit_timestamp), else by created_at and id, which is the order in
// which they were written but not always that in which they committed.
func (s *stream) Backlog(ctx context.Context, each func(*relay.Row, time.Time) error) error {
	conn, err := connect(ctx, s.o.URL, nil)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return fmt.Errorf("begin: %w", explain(err, conn.Config()))
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SET TRANSACTION SNAPSHOT `+literal(s.snapshot)); err != nil {
		return fmt.Errorf("use the slot's snapshot: %w", explain(err, conn.Config()))
	}
	var timestamps bool
	if err := tx.QueryRow(ctx, `SELECT current_setting('track_commit_timestamp')::bool`).Scan(&timestamps); err != nil {
		return fmt.Errorf("ask for track_commit_timestamp: %w", err)
	}
	rows, err := tx.Query(ctx, backlogQuery(s.table, timestamps))
	if err != nil {
		return fmt.Errorf("read rows without a journal entry: %w", explain(err, conn.Config()))
	}
	defer rows.Close()
	var row relay.Row
	for rows.Next() {
		var committed *time.Time
		if err := s.table.scanRow(rows, &row, &committed); err != nil {
			return fmt.Errorf("read a row without a journal entry: %w", err)
		}
		var at time.Time
		if committed != nil {
			at = *committed
		}
		if err := each(&row, at); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read rows without a journal entry: %w", explain(err, conn.Config()))
	}
	return nil
}

// backlogQuery reads rows in the columns that scanRow expects, and the time of
// the commit. The server sorts and compares, on disk if need be.
func backlogQuery(t table, timestamps bool) string {
	committed, order := `NULL::timestamptz`, `s.created_at, s.id`
	if timestamps {
		committed = `pg_catalog.pg_xact_commit_timestamp(s.xmin)`
		order = committed + ` NULLS FIRST, ` + order
	}
	return `SELECT ` + rowColumns(`now()`) + `, ` + committed + `
  FROM ` + t.name.Sanitize() + ` s
 WHERE NOT EXISTS (SELECT FROM syncrelay.journal j WHERE ` + t.joined() + `)
 ORDER BY ` + order
}

// joined is the condition under which j is the journal's entry of row s. In a
// partitioned table the id alone is neither unique nor enough to find the row.
func (t table) joined() string {
	if t.partitioned {
		return `j.row_id = s.id AND j.created_at = s.created_at`
	}
	return `j.row_id = s.id`
}

// rowColumns are the columns of a row s as scanRow reads them, with otherwise
// for a created_at that is NULL. The casts let an adopted table have other types.
func rowColumns(otherwise string) string {
	return `s.id::bigint, s.event_type::text, s.cadet_id::bigint, s.user_ids::bigint[], s.roles::text[], s.payload::text,
       CASE s.created_at WHEN 'infinity' THEN '9999-12-31 23:59:59.999999+00'
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
