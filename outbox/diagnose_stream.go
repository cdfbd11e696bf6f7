package outbox

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const findMorePublished = `
SELECT CASE WHEN p.puballtables THEN 'all tables' ELSE (
         SELECT string_agg(g.relid::regclass::text, ', ') FROM pg_catalog.pg_get_publication_tables(p.pubname) g
          WHERE g.relid <> pg_catalog.to_regclass('sync_events') AND g.relid NOT IN (SELECT l.relid FROM pg_catalog.pg_partition_tree('sync_events') l)) END
  FROM pg_catalog.pg_publication p WHERE p.pubname = $1`

const findPublicationRights = `
SELECT pg_catalog.has_database_privilege(current_database(), 'CREATE'), pg_catalog.pg_has_role(c.relowner, 'USAGE'),
       coalesce((SELECT pg_catalog.pg_has_role(pubowner, 'USAGE') FROM pg_catalog.pg_publication WHERE pubname = $1), false)
  FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass('sync_events')`

func (d *diagnosis) checkPublication(ctx context.Context) (Check, error) {
	fault, mend, err := findFault(ctx, d.conn, d.o.Publication, d.table)
	if err != nil {
		return Check{}, err
	}
	var create, ownsTable, owns bool
	if err := d.conn.QueryRow(ctx, findPublicationRights, d.o.Publication).Scan(&create, &ownsTable, &owns); err != nil {
		return Check{}, err
	}
	missing := strings.HasPrefix(strings.Join(mend, ""), "CREATE")
	mayMend := owns && ownsTable || missing && create && ownsTable
	what := fmt.Sprintf("%s (%s)", strings.Replace(strings.Replace(fault, "was missing", "is missing", 1), "did not publish", "does not publish", 1), d.o.Publication)
	switch {
	case fault != "" && mayMend:
		return Warn("", "%s; serve mends that, and then reads what it may have missed from the table", what).BySQL(mend...), nil
	case fault != "":
		return Fail("", "%s, and role %s may not mend that", what, d.role).BySQL(mend...), nil
	}
	var more *string
	if err := d.conn.QueryRow(ctx, findMorePublished, d.o.Publication).Scan(&more); err != nil {
		return Check{}, err
	}
	if more != nil {
		name, outbox := quote(d.o.Publication), d.table.name.Sanitize()
		statements := []string{`ALTER PUBLICATION ` + name + ` SET TABLE ` + outbox}
		if *more == "all tables" {
			statements = []string{`DROP PUBLICATION ` + name, `CREATE PUBLICATION ` + name + ` FOR TABLE ` + outbox + ` WITH (publish = 'insert', publish_via_partition_root = true)`,
				`ALTER PUBLICATION ` + name + ` OWNER TO ` + quote(d.role)}
		}
		return Warn("", "publication %q publishes %s besides, which costs the server and the relay work for nothing", d.o.Publication, *more).BySQL(statements...), nil
	}
	return OK("", "publication %q publishes the inserts into %s", d.o.Publication, d.table.name.Sanitize()), nil
}

func (d *diagnosis) checkSlot(context.Context) (Check, error) {
	s, name := d.slot, d.o.Slot
	drop := `SELECT pg_drop_replication_slot(` + literal(name) + `)`
	switch {
	case !s.exists:
		return OK("", "there is no slot %q: serve makes it, and reads rows that have no event yet from the table", name), nil
	case s.kind != "logical" || !s.here || s.plugin != "pgoutput":
		return Fail("", "slot %q is there already, and is a %s slot of database %q with plugin %q", name, s.kind, s.database, s.plugin).
			By("set database.slot to another name, or, if nobody needs it: %s", drop), nil
	case s.pid != 0 && !s.streaming:
		return Fail("", "slot %q is in use by process %d (application %q)", name, s.pid, s.holder).
			BySQL(fmt.Sprintf(`SELECT pg_terminate_backend(%d)`, s.pid)), nil
	case s.temporary:
		return Warn("", "slot %q is a temporary one, which serve replaces", name).BySQL(drop), nil
	case s.status == "lost":
		return Warn("", "slot %q is lost: the server has removed log that it needed (max_slot_wal_keep_size); serve replaces it, and reads rows that have no event yet from the table", name).BySQL(drop), nil
	case s.status == "unreserved":
		return Warn("", "slot %q is about to be lost: the server may remove log that it needs at its next checkpoint (max_slot_wal_keep_size)", name).
			By("start a relay now (syncrelay serve), or let the one that runs catch up"), nil
	case s.streaming:
		return OK("", "a relay streams from slot %q (process %d)", name, s.pid), nil
	}
	return OK("", "slot %q is there and waits for a relay", name), nil
}

func (d *diagnosis) checkRetained(ctx context.Context) (Check, error) {
	var lag Lag
	if d.standby {
		return leftOut(""), nil
	}
	err := d.conn.QueryRow(ctx, measureLag, d.o.Slot).Scan(&lag.Bytes, &lag.Retained, &lag.SafeBytes, &lag.Status)
	if err != nil {
		return Check{}, err
	}
	safe := ""
	if lag.SafeBytes >= 0 {
		safe = fmt.Sprintf("; in %s more the slot is lost", bytesText(lag.SafeBytes))
	}
	if !d.slot.exists {
		return OK("", "the server keeps no log for a slot that is not there"), nil
	}
	if d.e.WALWarning <= 0 || lag.Retained <= d.e.WALWarning {
		return OK("", "the server keeps %s of log for the slot%s", bytesText(lag.Retained), safe), nil
	}
	c := Warn("", "the server keeps %s of log for the slot, more than database.wal_warning (%s)%s", bytesText(lag.Retained), bytesText(d.e.WALWarning), safe)
	if d.slot.pid != 0 {
		return c.By("let the relay catch up, and end transactions that have been open for long (see the check transactions)"), nil
	}
	c = c.BySQL(`SELECT pg_drop_replication_slot(` + literal(d.o.Slot) + `)`)
	c.Mend = "start a relay (syncrelay serve), or give the slot up, which loses no event: " + c.Mend
	return c, nil
}

// bytesText is a size for people.
func bytesText(n int64) string {
	const unit = 1024
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	size, i := float64(n), 0
	for size >= unit && i < len(units)-1 {
		size, i = size/unit, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", size, units[i])
}

// usualKeepSize is the max_slot_wal_keep_size that is proposed, in GiB: hours of a
// busy database, and little of a usual disk.
const usualKeepSize = 16

func (d *diagnosis) checkKeepSize(ctx context.Context) (Check, error) {
	var megabytes int64
	if err := d.conn.QueryRow(ctx, `SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'`).Scan(&megabytes); err != nil {
		return Check{}, err
	}
	size := max(usualKeepSize, (4*d.e.WALWarning)>>30)
	mend := []string{fmt.Sprintf(`ALTER SYSTEM SET max_slot_wal_keep_size = '%dGB'`, size), `SELECT pg_reload_conf()`}
	switch {
	case megabytes < 0:
		return Warn("", "max_slot_wal_keep_size is -1: while no relay runs, the server keeps log until its disk is full").BySQL(mend...), nil
	case megabytes<<20 <= d.e.WALWarning:
		return Warn("", "max_slot_wal_keep_size is %s, not more than database.wal_warning (%s): the slot is lost before anybody is warned",
			bytesText(megabytes<<20), bytesText(d.e.WALWarning)).BySQL(mend...), nil
	}
	return OK("", "max_slot_wal_keep_size is %s", bytesText(megabytes<<20)), nil
}

func (d *diagnosis) checkSenderTimeout(ctx context.Context) (Check, error) {
	value, err := d.setting(ctx, "wal_sender_timeout")
	return OK("", "the server's is %s, and a relay's own session has database.owner_timeout, %s", value, d.o.OwnerTimeout), err
}

func (d *diagnosis) checkCommitTimes(ctx context.Context) (Check, error) {
	value, err := d.setting(ctx, "track_commit_timestamp")
	if value != "on" {
		return OK("", "it is off: rows that are read from the table, after the slot was lost, come in the order of created_at; on, they come in the order of their commits"), err
	}
	return OK("", "it is on: rows that are read from the table come in the order of their commits"), err
}

func (d *diagnosis) checkDurability(ctx context.Context) (Check, error) {
	var what, mend []string
	for _, name := range []string{"fsync", "full_page_writes"} {
		value, err := d.setting(ctx, name)
		if err != nil {
			return Check{}, err
		}
		if value == "off" {
			what = append(what, name+" is off")
			mend = append(mend, `ALTER SYSTEM SET `+name+` = on`)
		}
	}
	if len(what) > 0 {
		return Warn("", "%s: a crash of the machine may spoil the database, and event IDs with it", strings.Join(what, ", ")).BySQL(append(mend, `SELECT pg_reload_conf()`)...), nil
	}
	return OK("", "fsync and full_page_writes are on"), nil
}

const findTransactions = `
SELECT format('process %s of %s (%s) since %s', pid, coalesce(usename, 'nobody'), coalesce(nullif(application_name, ''), 'no application name'), to_char(xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')),
       format('SELECT pg_terminate_backend(%s)', pid)
  FROM pg_catalog.pg_stat_activity
 WHERE backend_xid IS NOT NULL AND xact_start < clock_timestamp() - $1::interval AND pid <> pg_catalog.pg_backend_pid()
UNION ALL
SELECT format('a prepared one, %L, since %s', gid, to_char(prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')), format('ROLLBACK PREPARED %L', gid)
  FROM pg_catalog.pg_prepared_xacts WHERE prepared < clock_timestamp() - $1::interval
 LIMIT 10`

func (d *diagnosis) checkTransactions(ctx context.Context) (Check, error) {
	rows, err := d.conn.Query(ctx, findTransactions, d.e.LongTransaction)
	if err != nil {
		return Check{}, err
	}
	type transaction struct{ What, Mend string }
	open, err := pgx.CollectRows(rows, pgx.RowToStructByPos[transaction])
	if err != nil {
		return Check{}, err
	}
	if len(open) == 0 {
		return OK("", "no transaction that writes is older than %s", d.e.LongTransaction), nil
	}
	var what, mend []string
	for _, t := range open {
		what, mend = append(what, t.What), append(mend, t.Mend)
	}
	return Warn("", "transactions are open that make the server keep log, and a new slot wait: %s", strings.Join(what, "; ")).BySQL(mend...), nil
}

// maxSkew is by how much two clocks may differ without harm: latencies are
// measured with it, and tokens end by it.
const maxSkew = time.Second

func (d *diagnosis) checkClock(ctx context.Context) (Check, error) {
	var skew, trip time.Duration
	for i := range 3 { // the quickest answer tells best
		begun := d.e.Now()
		var server time.Time
		if err := d.conn.QueryRow(ctx, `SELECT pg_catalog.clock_timestamp()`).Scan(&server); err != nil {
			return Check{}, err
		}
		took := d.e.Now().Sub(begun)
		if i == 0 || took < trip {
			skew, trip = server.Sub(begun.Add(took/2)), took
		}
	}
	if skew.Abs() > maxSkew+trip {
		direction := "ahead of"
		if skew < 0 {
			direction = "behind"
		}
		return Warn("", "the server's clock is %s %s this machine's: latencies are measured wrong, and tokens may end early or late", skew.Abs().Round(time.Millisecond), direction).
			By("keep both by NTP (timedatectl set-ntp true, or chrony)"), nil
	}
	return OK("", "the server's clock and this machine's differ by %s", skew.Abs().Round(time.Millisecond)), nil
}

func (d *diagnosis) checkOwner(ctx context.Context) (Check, error) {
	_, text := findOwner(ctx, d.conn)
	if text == "" {
		return OK("", "no relay owns this database now"), nil
	}
	return OK("", "%s; one that is started now waits as a standby", text), nil
}
