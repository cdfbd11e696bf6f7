package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// archiveDays is over how many days the events of the archive are spread.
const archiveDays = 7

// archiveLoaders write parts of it at the same time.
const archiveLoaders = 4

// The archive's tables are filled as the relay would have, had it been there for
// the week: partitions of days, an entry for every row, and a state that goes on
// from there. The rows are about one cadet after the other.
const (
	makeArchiveDay = `CREATE TABLE %s PARTITION OF sync_events FOR VALUES FROM ('%s') TO ('%s')`
	fillArchive    = `
WITH made AS (
  INSERT INTO sync_events (id, event_type, cadet_id, payload, created_at)
  SELECT n, 'grade_update', 1 + n %% %d, '{"merits": 3, "reason": "the parade ground was swept twice"}',
         now() - make_interval(secs => %d * (1 - n::float8 / %d))
    FROM generate_series($1::bigint, $2::bigint) n
  RETURNING id, created_at, cadet_id)
INSERT INTO syncrelay.journal (event_id, row_id, created_at, cadet_id, staff) SELECT id, id, created_at, cadet_id, true FROM made`
)

// theArchive is a database with a log of many events. It is made once in a run.
func (b *bench) theArchive(ctx context.Context) (*database, error) {
	if b.archived != nil {
		return b.archived, nil
	}
	events := b.scale.ArchiveEvents
	b.progress("writing a log of %d events of %d days", events, archiveDays)
	db, err := b.newDatabase(ctx)
	if err != nil {
		return nil, err
	}
	today := time.Now().UTC().Truncate(24 * time.Hour)
	for day := range archiveDays {
		from := today.AddDate(0, 0, day-archiveDays)
		err := db.exec(ctx, fmt.Sprintf(makeArchiveDay, "sync_events_p"+from.Format("20060102"), from.Format(time.RFC3339), from.AddDate(0, 0, 1).Format(time.RFC3339)))
		if err != nil {
			return nil, err
		}
	}
	span := int64(archiveDays*24*time.Hour/time.Second) - 60 // the oldest is not due yet to be deleted
	fill := fmt.Sprintf(fillArchive, b.scale.ArchiveCadets, span, events)
	indexes, err := db.dropIndexes(ctx, "syncrelay.journal")
	if err != nil {
		return nil, err
	}
	loading, loadCtx := errgroup.WithContext(ctx)
	for part := range archiveLoaders {
		loading.Go(func() error {
			return db.exec(loadCtx, fill, 1+events*part/archiveLoaders, events*(part+1)/archiveLoaders)
		})
	}
	if err := loading.Wait(); err != nil {
		return nil, fmt.Errorf("write the log: %w", err)
	}
	for _, sql := range append(indexes,
		fmt.Sprintf(`UPDATE syncrelay.state SET last_event_id = %d`, events),
		fmt.Sprintf(`SELECT setval(pg_get_serial_sequence('sync_events', 'id'), %d)`, events),
		`VACUUM (ANALYZE) sync_events`,
		`VACUUM (ANALYZE) syncrelay.journal`,
	) {
		if err := db.exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	b.archived = db
	return db, nil
}

// dropIndexes drops those indexes of a table that are not its primary key, and
// returns how to make them again: at the end that takes less.
func (db *database) dropIndexes(ctx context.Context, table string) (definitions []string, err error) {
	rows, err := db.pool.Query(ctx, `SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1::text::regclass AND NOT indisprimary`, table)
	if err != nil {
		return nil, fmt.Errorf("list the indexes of %s: %w", table, err)
	}
	type index struct{ Name, Definition string }
	indexes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
	if err != nil {
		return nil, fmt.Errorf("list the indexes of %s: %w", table, err)
	}
	for _, i := range indexes {
		if err := db.exec(ctx, `DROP INDEX `+i.Name); err != nil {
			return nil, err
		}
		definitions = append(definitions, i.Definition)
	}
	return definitions, nil
}

// archiveGoal bounds the replay of one cadet's events, in ms.
const archiveGoal = 50

// archive measures the replay of one cadet's events out of a long log, and looks
// at how the server has found them.
func (b *bench) archive(ctx context.Context, row *Row) error {
	db, err := b.theArchive(ctx)
	if err != nil {
		return err
	}
	each := b.scale.ArchiveEvents / b.scale.ArchiveCadets
	b.progress("archive: one cadet's %d events out of %d", each, b.scale.ArchiveEvents)
	floor, err := b.scanArchive(ctx, db)
	if err != nil {
		return fmt.Errorf("the floor: %w", err)
	}
	begun := time.Now()
	d, err := b.serve(ctx, db, keepArchive, ringOfOne)
	if err != nil {
		return err
	}
	started := time.Since(begun)
	meter, err := b.begin(d.child)
	var times []float64
	if err == nil {
		times, err = b.replayArchive(ctx, d, 0)
	}
	var u usage
	if err == nil {
		u, err = meter.end()
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		return err
	}
	row.limit("the relay", u)
	const floorIs = "an index range scan of the same rows, by pgx"
	row.add("median", "ms", median(times), median(floor), floorIs, below(archiveGoal, "ms"))
	row.add("slowest", "ms", quantile(times, 1), quantile(floor, 1), floorIs, below(archiveGoal, "ms"))
	row.note("%d events of one cadet out of %d, spread over %d days and %d cadets; %d cadets one after the other, from the dial to replay_complete", each, b.scale.ArchiveEvents, archiveDays, b.scale.ArchiveCadets, len(times))
	row.note("memory.ring_events is 1, so that all of them come from the journal")
	row.note("the relay's first start on it took %.1f s", started.Seconds())
	if b.server.own == nil {
		row.note("how the server has found them can be seen only on a Postgres that is started for the run")
		return nil
	}
	plans, err := b.explainArchive(ctx, db)
	if err != nil {
		return fmt.Errorf("explain: %w", err)
	}
	other := plans.others()
	row.add("scans that are no index range scan", "", float64(len(other)), 0, "none", below(0, ""))
	row.note("EXPLAIN of %d queries of the log, as they ran: %s", plans.queries, plans)
	return nil
}

// keepArchive keeps retention from deleting the log while it is measured.
const keepArchive = "SYNCRELAY_RETENTION_WINDOW=30d"

// archiveSample is which cadet is replayed as the nth: they lie far from each
// other, and the floor's and the relay's are not the same, so that neither finds
// what the other has read.
func (b *bench) archiveSample(n, offset int) int64 {
	return int64(1 + (offset+n*b.scale.ArchiveCadets/b.scale.ArchiveSamples)%b.scale.ArchiveCadets)
}

// The floor of a replay: the ranges of indexes that it can't do without.
const (
	byIndexOnly = `SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off`
	scanCadet   = `
SELECT j.event_id, s.event_type, s.cadet_id, s.payload::text, s.created_at
  FROM syncrelay.journal j JOIN sync_events s ON s.id = j.row_id AND s.created_at = j.created_at
 WHERE j.cadet_id = $1 AND j.event_id > 0 ORDER BY j.event_id`
)

// scanArchive reads cadets' events by the journal's index and the rows' keys. The
// first one is not counted: with it the session learns what the tables are.
func (b *bench) scanArchive(ctx context.Context, db *database) (times []float64, err error) {
	err = pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, byIndexOnly); err != nil {
			return err
		}
		for n := range 1 + b.scale.ArchiveSamples {
			begun := time.Now()
			rows, err := tx.Query(ctx, scanCadet, b.archiveSample(n, 1))
			if err != nil {
				return err
			}
			found := 0
			for rows.Next() {
				found++
			}
			if err := rows.Err(); err != nil {
				return err
			}
			times = append(times, milliseconds(time.Since(begun)))
			if want := b.scale.ArchiveEvents / b.scale.ArchiveCadets; found != want {
				return fmt.Errorf("%d rows were found of %d", found, want)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return times[1:], nil
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }

// replayArchive has cadets replay their events, one after the other. The first
// one is not counted, as in scanArchive.
func (b *bench) replayArchive(ctx context.Context, d *daemon, offset int) (times []float64, err error) {
	for n := range 1 + b.scale.ArchiveSamples {
		cadet := b.archiveSample(n, offset)
		who, err := b.visitors(1, 0, func(int) (user int64, role string, of int64) { return 1_000_000 + cadet, "cadet", cadet })
		if err != nil {
			return nil, err
		}
		c := newCrowd(d.child, d.public)
		begun := time.Now()
		err = c.join(ctx, 1, 1, who)
		if err == nil {
			err = c.wait(ctx, "replay_complete", func() bool { return c.completed.Load() == 1 })
		}
		times = append(times, milliseconds(time.Since(begun)))
		if err == nil {
			err = c.verifyEach(func(*client) int64 { return int64(b.scale.ArchiveEvents / b.scale.ArchiveCadets) })
		}
		c.leave()
		if err != nil {
			return nil, fmt.Errorf("cadet %d: %w", cadet, err)
		}
	}
	return times[1:], nil
}
