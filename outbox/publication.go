package outbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// findPublication tells whether the publication is as the relay needs it:
// inserts only matter, through the partition root, of this table, all of its
// rows and columns.
const findPublication = `
SELECT p.pubinsert, p.pubviaroot,
       p.puballtables OR EXISTS (
         SELECT FROM pg_catalog.pg_publication_tables t
          WHERE t.pubname = p.pubname AND t.schemaname = $2 AND t.tablename = $3),
       EXISTS (
         SELECT FROM pg_catalog.pg_publication_rel r
          WHERE r.prpubid = p.oid AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)
            AND r.prrelid = pg_catalog.to_regclass('sync_events'))
  FROM pg_catalog.pg_publication p
 WHERE p.pubname = $1`

// ensurePublication makes the publication, or sets it right. It returns why the
// slot has to be replaced, if it has: the server decodes the log by the
// publication as it was when a row was written, so rows that were written while
// it was missing or other than needed will not come by the slot.
func (a *attachment) ensurePublication(ctx context.Context) (replace string, err error) {
	var inserts, viaRoot, hasTable, narrowed bool
	name, table := quote(a.o.Publication), a.table.name.Sanitize()
	err = a.conn.QueryRow(ctx, findPublication, a.o.Publication, a.table.name[0], a.table.name[1]).
		Scan(&inserts, &viaRoot, &hasTable, &narrowed)
	var statements []string
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		statements = []string{`CREATE PUBLICATION ` + name + ` FOR TABLE ` + table + ` WITH (publish = 'insert', publish_via_partition_root = true)`}
		replace = "the publication was missing"
	case err != nil:
		return "", fmt.Errorf("look up publication %q: %w", a.o.Publication, err)
	case inserts && hasTable && !narrowed && (viaRoot || !a.table.partitioned):
		return "", nil
	default:
		replace = "the publication did not publish all inserts into " + table + " through its root"
		if narrowed {
			statements = append(statements, `ALTER PUBLICATION `+name+` DROP TABLE `+table)
		}
		if narrowed || !hasTable {
			statements = append(statements, `ALTER PUBLICATION `+name+` ADD TABLE `+table)
		}
		statements = append(statements, `ALTER PUBLICATION `+name+` SET (publish = 'insert', publish_via_partition_root = true)`)
	}
	for _, sql := range statements {
		if _, err := a.conn.Exec(ctx, sql); err != nil {
			if code(err) == codeNoPrivilege {
				return "", &Problem{What: fmt.Sprintf("%s (publication %q), and role %s may not mend that", replace, a.o.Publication, a.conn.Config().User), Mend: sql, Fatal: true, Cause: err}
			}
			return "", fmt.Errorf("%s: %w", sql, err)
		}
		a.logger.Warn("set the publication right", "publication", a.o.Publication, "statement", sql, "reason", replace)
	}
	return replace, nil
}
