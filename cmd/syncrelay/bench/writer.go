package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// paced writes rows at a steady rate, each in its own transaction.
type paced struct {
	rate      int // rows a second
	sql       string
	arguments func(n int) []any
	// committed is when the COMMIT of each row has returned, Unix time in
	// nanoseconds; its length is how many rows are written.
	committed []int64
	took      time.Duration
}

func (p *paced) run(ctx context.Context, db *database, writers int) error {
	writing, ctx := errgroup.WithContext(ctx)
	begun := time.Now()
	for w := range writers {
		writing.Go(func() error {
			conn, err := db.pool.Acquire(ctx)
			if err != nil {
				return fmt.Errorf("connect a writer: %w", err)
			}
			defer conn.Release()
			wait := time.NewTimer(0)
			defer wait.Stop()
			for n := w; n < len(p.committed); n += writers {
				wait.Reset(time.Until(begun.Add(time.Duration(n) * time.Second / time.Duration(p.rate))))
				select {
				case <-wait.C:
				case <-ctx.Done():
					return ctx.Err()
				}
				if _, err := conn.Exec(ctx, p.sql, p.arguments(n)...); err != nil {
					return fmt.Errorf("write a row: %w", err)
				}
				p.committed[n] = time.Now().UnixNano()
			}
			return nil
		})
	}
	err := writing.Wait()
	p.took = time.Since(begun)
	return err
}

// bulk writes rows as fast as it goes, so many in each transaction.
type bulk struct {
	rows, each int
	first      int64 // when the first transaction was begun, as paced.committed
	last       int64 // when the last COMMIT has returned
}

const writeBulk = `INSERT INTO sync_events (event_type, cadet_id, payload)
SELECT 'grade_update', 1 + n % 100, jsonb_build_object('n', n, 'merits', 3) FROM generate_series($1::bigint, $2::bigint) n`

func (k *bulk) run(ctx context.Context, db *database) error {
	writing, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	k.first = time.Now().UnixNano()
	for range ingestWriters {
		writing.Go(func() error {
			conn, err := db.pool.Acquire(ctx)
			if err != nil {
				return fmt.Errorf("connect a writer: %w", err)
			}
			defer conn.Release()
			for {
				from := next.Add(int64(k.each)) - int64(k.each)
				if from >= int64(k.rows) {
					return nil
				}
				if _, err := conn.Exec(ctx, writeBulk, from, min(from+int64(k.each), int64(k.rows))-1); err != nil {
					return fmt.Errorf("write %d rows: %w", k.each, err)
				}
			}
		})
	}
	err := writing.Wait()
	k.last = time.Now().UnixNano()
	return err
}
