package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Retention says for how long events are kept.
type Retention struct {
	// Window is how long, counted from a row's created_at.
	Window time.Duration
	// Interval is the time between two runs.
	Interval time.Duration
	// Retained is told, after each run, of the oldest event that is left (0 for
	// none) and of the newest that was deleted, by this relay or another.
	Retained func(oldest, deleted int64)
	// Failed is told of a run that did not come to its end; nil for nobody.
	Failed func()
}

// Work is what a janitor has done.
type Work struct {
	// Deleted counts events.
	Deleted int64
	// LastSuccess is when a run last came to its end; zero for never.
	LastSuccess time.Time
}

// Janitor makes partitions ahead and deletes what is past the retention window.
// Only rows that the journal holds are deleted, so only what was relayed. Any
// number of janitors may run on a database: one works, the others look on.
type Janitor struct {
	o      Options
	r      Retention
	logger *slog.Logger

	mu   sync.Mutex
	work Work
}

// NewJanitor makes a janitor.
func NewJanitor(o Options, r Retention) *Janitor {
	o = o.withDefaults()
	return &Janitor{o: o, r: r, logger: o.Logger}
}

// Work is what has been done so far.
func (j *Janitor) Work() Work {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.work
}

// lockJanitor is the key of the advisory lock of the janitor that works: "rtnt".
const lockJanitor = 0x72746e74

const (
	// daysAhead is how far ahead partitions are made.
	daysAhead = 7
	// batchRows bounds the rows that one statement deletes.
	batchRows = 2000
	// lockTimeout bounds how long a change of the table's partitions may wait for
	// its lock, because writers wait behind it. What doesn't get its lock is done
	// in the next run.
	lockTimeout = "200ms"
)

// What a run's questions may take: those about single things, those that delete
// one batch, and those that look at a whole partition.
const (
	batchTimeout     = 2 * time.Minute
	partitionTimeout = 30 * time.Minute
)

// Run works once an interval until ctx ends, give or take a little, so that several
// relays don't for ever meet at the same moment, where one of them looks on. A run that fails is logged, and
// the next one makes up for it.
func (j *Janitor) Run(ctx context.Context) error {
	timer := time.NewTimer(min(j.r.Interval, 5*time.Second)) // not in the way of the start
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if err := j.Once(ctx); err != nil && ctx.Err() == nil {
			if j.r.Failed != nil {
				j.r.Failed()
			}
			j.logger.Warn("retention did not come to its end and is tried again", "error", err, "in", j.r.Interval)
		}
		timer.Reset(j.r.Interval - rand.N(j.r.Interval/10+1)) //nolint:gosec // needs no secrecy
	}
}

// Once makes one run.
func (j *Janitor) Once(ctx context.Context) error {
	conn, err := connect(ctx, j.o.URL, map[string]string{"lock_timeout": lockTimeout})
	if err != nil {
		return err
	}
	defer closeConn(conn) // and with it the lock
	short, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var mine bool
	if err := conn.QueryRow(short, `SELECT pg_catalog.pg_try_advisory_lock($1, $2)`, lockClass, lockJanitor).Scan(&mine); err != nil {
		return fmt.Errorf("ask whether another relay does the retention: %w", explain(err, conn.Config()))
	}
	var failed error
	if mine {
		failed = j.clean(ctx, conn)
	}
	short, cancel = context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var oldest, deleted int64
	err = conn.QueryRow(short, `SELECT coalesce((SELECT min(event_id) FROM syncrelay.journal), 0), deleted_event_id FROM syncrelay.state`).Scan(&oldest, &deleted)
	if err != nil {
		return errors.Join(failed, fmt.Errorf("ask what is left: %w", explain(err, conn.Config())))
	}
	if j.r.Retained != nil {
		j.r.Retained(oldest, deleted)
	}
	if mine && failed == nil { // what another does is its success
		j.mu.Lock()
		j.work.LastSuccess = time.Now()
		j.mu.Unlock()
	}
	return failed
}

// clean does the work of a run. Each part is worth doing though another failed.
func (j *Janitor) clean(ctx context.Context, conn *pgx.Conn) error {
	short, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	t, err := lookUpTable(short, conn)
	if err != nil {
		return err
	}
	var cutoff time.Time
	if err := conn.QueryRow(short, `SELECT now() - $1::interval`, j.r.Window).Scan(&cutoff); err != nil {
		return fmt.Errorf("ask for the server's time: %w", err)
	}
	var failed error
	if _, err := conn.Exec(short, `SELECT syncrelay.make_partitions($1)`, daysAhead); err != nil {
		failed = fmt.Errorf("make partitions ahead: %w", explain(err, conn.Config()))
	}
	if t.partitioned {
		failed = errors.Join(failed, j.dropDays(ctx, conn, t, cutoff))
	}
	return errors.Join(failed, j.deleteRows(ctx, conn, t, cutoff))
}

// dayName is the name of a day's partition, as syncrelay.make_partitions gives it.
var dayName = regexp.MustCompile(`^sync_events_p(\d{8})$`)

// findPartitions lists the partitions that this role may drop. What stands in
// others is deleted row by row.
const findPartitions = `
SELECT n.nspname, c.relname
  FROM pg_catalog.pg_partition_tree('sync_events') p
  JOIN pg_catalog.pg_class c ON c.oid = p.relid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.isleaf AND pg_catalog.pg_has_role(c.relowner, 'USAGE') ORDER BY c.relname`

// dropDays drops the partitions of days that are past the window.
func (j *Janitor) dropDays(ctx context.Context, conn *pgx.Conn, t table, cutoff time.Time) error {
	short, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	rows, err := conn.Query(short, findPartitions)
	if err != nil {
		return fmt.Errorf("list the partitions: %w", explain(err, conn.Config()))
	}
	type partition struct{ Schema, Name string }
	partitions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[partition])
	if err != nil {
		return fmt.Errorf("list the partitions: %w", err)
	}
	var failed error
	for _, p := range partitions {
		m := dayName.FindStringSubmatch(p.Name)
		if m == nil {
			continue
		}
		day, err := time.Parse("20060102", m[1])
		if err != nil || day.AddDate(0, 0, 1).After(cutoff) {
			continue
		}
		failed = errors.Join(failed, j.dropDay(ctx, conn, t, pgx.Identifier{p.Schema, p.Name}))
	}
	return failed
}

// dropDay empties a day's partition, if everything in it was relayed, and drops
// it. Emptying locks only the partition itself, where nobody writes any more;
// dropping the empty table locks the whole table for the moment that it takes,
// and gives up if it can't have that lock soon. (Postgres can't detach a
// partition concurrently from a table with a default partition.)
func (j *Janitor) dropDay(ctx context.Context, conn *pgx.Conn, t table, partition pgx.Identifier) error {
	ctx, cancel := context.WithTimeout(ctx, partitionTimeout)
	defer cancel()
	name := partition.Sanitize()
	kept := false
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// Replays read on meanwhile, and nobody writes.
		if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+name+` IN SHARE ROW EXCLUSIVE MODE`); err != nil {
			return err
		}
		// Without statistics of the partition, the planner would compare each of its
		// rows with each of the journal's.
		if _, err := tx.Exec(ctx, `SET LOCAL enable_nestloop = off`); err != nil {
			return err
		}
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM ONLY `+name+` s WHERE NOT EXISTS (SELECT FROM syncrelay.journal j WHERE `+t.joined()+`))`).Scan(&kept)
		if err != nil || kept {
			return err
		}
		_, err = tx.Exec(ctx, `TRUNCATE ONLY `+name)
		return err
	})
	if err != nil {
		return fmt.Errorf("empty partition %s: %w", name, explain(err, conn.Config()))
	}
	if kept {
		j.logger.Warn("a partition past the retention window is kept, because it has rows that were not relayed", "partition", name)
		return nil
	}
	begun := time.Now()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+t.name.Sanitize()+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		// A row with a date of long ago may have come since.
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM ONLY `+name+`)`).Scan(&kept); err != nil || kept {
			return err
		}
		_, err := tx.Exec(ctx, `DROP TABLE `+name)
		return err
	})
	if err != nil {
		return fmt.Errorf("drop the empty partition %s: %w", name, explain(err, conn.Config()))
	}
	if kept {
		return nil
	}
	j.logger.Info("dropped a day's partition", "partition", name, "writers_waited_at_most", time.Since(begun).Round(time.Microsecond))
	return nil
}

// deleteOld deletes the oldest journaled rows that are past the window, and
// their journal entries, and notes the newest event ID of them.
func deleteOld(t table) string {
	return `
WITH old AS (
  SELECT event_id, row_id, created_at FROM syncrelay.journal
   WHERE created_at < $1 ORDER BY event_id LIMIT $2
), j AS (
  DELETE FROM syncrelay.journal e USING old WHERE e.event_id = old.event_id
), a AS (
  DELETE FROM syncrelay.journal_audience e
   WHERE e.event_id BETWEEN (SELECT min(event_id) FROM old) AND (SELECT max(event_id) FROM old)
     AND e.event_id IN (SELECT event_id FROM old)
), r AS (
  DELETE FROM ` + t.name.Sanitize() + ` s USING old j WHERE ` + t.joined() + `
), note AS (
  UPDATE syncrelay.state SET deleted_event_id = greatest(deleted_event_id, (SELECT max(event_id) FROM old))
   WHERE EXISTS (SELECT FROM old)
)
SELECT count(*) FROM old`
}

// deleteRows deletes in small batches what is past the window: rows of an adopted
// table or of the default partition, and journal entries of rows that have gone
// with their partition.
func (j *Janitor) deleteRows(ctx context.Context, conn *pgx.Conn, t table, cutoff time.Time) error {
	sql := deleteOld(t)
	var deleted int64
	defer func() {
		if deleted > 0 {
			j.logger.Info("deleted events past the retention window", "events", deleted, "older_than", cutoff)
		}
	}()
	for {
		var n int64
		one, cancel := context.WithTimeout(ctx, batchTimeout)
		err := conn.QueryRow(one, sql, cutoff, batchRows).Scan(&n)
		cancel()
		if err != nil {
			return fmt.Errorf("delete events past the retention window: %w", explain(err, conn.Config()))
		}
		deleted += n
		j.mu.Lock()
		j.work.Deleted += n
		j.mu.Unlock()
		if n < batchRows {
			return nil
		}
	}
}
