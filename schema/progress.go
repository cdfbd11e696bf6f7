package schema

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Progress is told while a migration takes long.
type Progress struct {
	// For is how long it has taken so far.
	For time.Duration
	// Doing says what it is at, and what it waits for if it does.
	Doing string
}

// progressInterval is how often progress is told, unless Options say otherwise.
const progressInterval = 3 * time.Second

// findDoing says what the migration's sessions do, who is in their way, and
// whether another migration is at work.
const findDoing = `
WITH mine AS (
  SELECT pid, wait_event_type, unnest(CASE WHEN wait_event_type = 'Lock' THEN pg_catalog.pg_blocking_pids(pid) ELSE '{}' END) AS blocker
    FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND state = 'active'
)
SELECT coalesce(
  (SELECT format('waiting for process %s of %s (%s), in a transaction since %s', a.pid, coalesce(a.usename, 'nobody'), coalesce(nullif(a.application_name, ''), 'no application name'),
                 to_char(a.xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS "UTC"'))
     FROM mine JOIN pg_catalog.pg_stat_activity a ON a.pid = mine.blocker ORDER BY a.xact_start LIMIT 1),
  (SELECT format('process %s of the server is at work', pid) FROM pg_catalog.pg_stat_activity WHERE application_name = $1 AND state = 'active' LIMIT 1),
  (SELECT format('waiting for another syncrelay migrate, process %s of the server', pid)
     FROM pg_catalog.pg_stat_activity WHERE application_name LIKE 'syncrelay migrate%' AND application_name NOT IN ($1, $2) AND datname = current_database() LIMIT 1),
  'between two steps')`

// watch tells how a migration goes until ctx ends, with a session of its own: the
// migration's own sessions wait for what they do. A watcher that can't connect says
// nothing; the migration will.
func watch(ctx context.Context, c *pgx.ConnConfig, o Options) {
	interval := o.ProgressInterval
	if interval <= 0 {
		interval = progressInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	begun := time.Now()
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx)) // it was only asked
		}
	}()
	c = c.Copy()
	watched := c.RuntimeParams["application_name"]
	c.RuntimeParams["application_name"] = watcherName
	c.OnNotice = nil
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var err error
		if conn == nil || conn.IsClosed() {
			if conn, err = pgx.ConnectConfig(ctx, c); err != nil {
				conn = nil
				continue
			}
		}
		var doing string
		if err := conn.QueryRow(ctx, findDoing, watched, watcherName).Scan(&doing); err != nil {
			continue
		}
		o.Progress(Progress{For: time.Since(begun), Doing: doing})
	}
}

const watcherName = "syncrelay migrate: progress"

// String is for people.
func (p Progress) String() string {
	return fmt.Sprintf("still at work after %s: %s", p.For.Round(time.Second), p.Doing)
}
