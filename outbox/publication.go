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
       p.puballtables
       OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = t.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n WHERE n.pnpubid = p.oid AND n.pnnspid = t.relnamespace),
       EXISTS (
         SELECT FROM pg_catalog.pg_publication_rel r
          WHERE r.prpubid = p.oid AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL)
            AND r.prrelid = t.oid)
  FROM pg_catalog.pg_publication p, pg_catalog.pg_class t
 WHERE p.pubname = $1 AND t.oid = pg_catalog.to_regclass('sync_events')`

// publicationIdentity is the text of relay.State's Publication, for the
// publication named $1: the table, the publication, and the places in it of the
// table and of the table's schema, with the transactions that wrote them last.
const publicationIdentity = `
SELECT coalesce(string_agg(concat_ws(' ', pg_catalog.to_regclass('sync_events')::oid, p.oid, p.xmin, r.oid, r.xmin, n.oid, n.xmin), ','), 'none')
  FROM pg_catalog.pg_publication p
  LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = pg_catalog.to_regclass('sync_events')
  LEFT JOIN pg_catalog.pg_publication_namespace n ON n.pnpubid = p.oid
   AND n.pnnspid = (SELECT c.relnamespace FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass('sync_events'))
 WHERE p.pubname = $1`

// findFault looks at the publication and returns what is wrong with it, in a few
// words, and the statements that set it right; nothing if nothing is.
func findFault(ctx context.Context, conn *pgx.Conn, publication string, t table) (fault string, mend []string, err error) {
	var inserts, viaRoot, hasTable, narrowed bool
	name, outbox := quote(publication), t.name.Sanitize()
	err = conn.QueryRow(ctx, findPublication, publication).Scan(&inserts, &viaRoot, &hasTable, &narrowed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return "the publication was missing", []string{`CREATE PUBLICATION ` + name + ` FOR TABLE ` + outbox + ` WITH (publish = 'insert', publish_via_partition_root = true)`}, nil
	case err != nil:
		return "", nil, fmt.Errorf("look up publication %q: %w", publication, err)
	case inserts && hasTable && !narrowed && (viaRoot || !t.partitioned):
		return "", nil, nil
	}
	if narrowed {
		mend = append(mend, `ALTER PUBLICATION `+name+` DROP TABLE `+outbox)
	}
	if narrowed || !hasTable {
		mend = append(mend, `ALTER PUBLICATION `+name+` ADD TABLE `+outbox)
	}
	mend = append(mend, `ALTER PUBLICATION `+name+` SET (publish = 'insert', publish_via_partition_root = true)`)
	return "the publication did not publish all inserts into " + outbox + " through its root", mend, nil
}

// ensurePublication makes the publication, or sets it right. It returns why the
// slot has to be replaced, if it has: the server decodes the log by the
// publication as it was when a row was written, so rows that were written while
// it was missing or other than needed will not come by the slot.
func (a *attachment) ensurePublication(ctx context.Context) (replace string, err error) {
	replace, statements, err := findFault(ctx, a.conn, a.o.Publication, a.table)
	if err != nil {
		return "", err
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
