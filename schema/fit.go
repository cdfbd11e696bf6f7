package schema

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// ErrTable: the outbox table is such that rows would be lost or mixed up.
var ErrTable = errors.New("the outbox table does not fit")

// findFit looks at the outbox table: whether the id names a row (in a partitioned
// table, whose unique indexes must have the partition key, the id together with
// created_at), and whether row security would hide rows from this role.
const findFit = `
SELECT t.oid::regclass::text, t.relname, id.attnotnull,
       EXISTS (
         SELECT FROM pg_catalog.pg_index i
          WHERE i.indrelid = t.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
            AND id.attnum = ANY (i.indkey)
            AND NOT EXISTS (
              SELECT FROM pg_catalog.pg_attribute k
               WHERE k.attrelid = t.oid AND k.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                 AND k.attname <> 'id' AND NOT (t.relkind = 'p' AND k.attname = 'created_at'))),
       t.relkind = 'p', pg_catalog.row_security_active(t.oid), current_user::text
  FROM pg_catalog.pg_class t
  JOIN pg_catalog.pg_attribute id ON id.attrelid = t.oid AND id.attname = 'id' AND NOT id.attisdropped
 WHERE t.oid = pg_catalog.to_regclass('sync_events')`

// fits checks that the outbox table, if it is there, is one whose rows can be told
// apart, and, unless it is for the migrating role, that all of them can be seen.
// Its error says what mends the table.
func fits(ctx context.Context, conn *pgx.Conn, migrating bool) error {
	var table, name, role string
	var notNull, unique, partitioned, hidden bool
	err := conn.QueryRow(ctx, findFit).Scan(&table, &name, &notNull, &unique, &partitioned, &hidden, &role)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil // whoever needs the table says so
	case err != nil:
		return fmt.Errorf("look at the outbox table: %w", err)
	}
	var found, mend []string
	if !notNull {
		found = append(found, "may be NULL")
		mend = append(mend, fmt.Sprintf("ALTER TABLE %s ALTER COLUMN id SET NOT NULL", table))
	}
	switch {
	case unique:
	case partitioned: // where an index can't be made concurrently
		found = append(found, "is not unique together with created_at")
		mend = append(mend, fmt.Sprintf("CREATE UNIQUE INDEX ON %s (id, created_at)", table))
	default:
		found = append(found, "is not unique")
		mend = append(mend, fmt.Sprintf("CREATE UNIQUE INDEX CONCURRENTLY %s ON %s (id)", pgx.Identifier{name + "_id_key"}.Sanitize(), table))
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: the id of %s %s, and it is what a row is found by; to mend it: %s", ErrTable, table, strings.Join(found, " and "), strings.Join(mend, "; "))
	}
	if hidden && !migrating {
		return fmt.Errorf("%w: row security would hide rows of %s from role %s; to mend it: ALTER ROLE %s BYPASSRLS", ErrTable, table, role, pgx.Identifier{role}.Sanitize())
	}
	return nil
}
