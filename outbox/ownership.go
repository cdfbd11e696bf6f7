package outbox

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/schema"
)

// The key of the advisory lock that the owner of a database holds for as long
// as its session lives: "sync" and "rlay" in ASCII.
const (
	lockClass = 0x73796e63
	lockOwner = 0x726c6179
)

// lockPatience is how long a standby waits for the lock in one statement. The
// wait costs no polling, and ends the moment that the owner's session does; but
// a statement that waits holds a snapshot, and so keeps vacuum from its work,
// which must not last for days.
const lockPatience = 15 * time.Second

// Acquire is part of relay.Journal. The owner is whose session holds the lock:
// it ends with the session, and the server ends a session that says nothing for
// Options.OwnerTimeout, so a relay that was stopped in its tracks loses it too.
func (j *Journal) Acquire(ctx context.Context, wait func(reason string)) (relay.Tenure, error) {
	conn, err := connect(ctx, j.o.URL, map[string]string{
		"idle_session_timeout": strconv.FormatInt(j.o.OwnerTimeout.Milliseconds(), 10),
		"lock_timeout":         strconv.FormatInt(lockPatience.Milliseconds(), 10),
		"synchronous_commit":   "off", // see relay.Tenure; Save and End wait for the disk
		"jit":                  "off",
	})
	if err != nil {
		return nil, err
	}
	t, err := j.acquire(ctx, conn, wait)
	if err != nil {
		closeConn(conn)
		return nil, explain(err, conn.Config())
	}
	return t, nil
}

func (j *Journal) acquire(ctx context.Context, conn *pgx.Conn, wait func(reason string)) (*tenure, error) {
	if err := schema.Verify(ctx, conn); err != nil {
		return nil, &Problem{What: err.Error(), Fatal: true, Cause: err}
	}
	var free bool
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock($1, $2)`, lockClass, lockOwner).Scan(&free); err != nil {
		return nil, fmt.Errorf("ask for the ownership: %w", err)
	}
	for !free {
		pid, owner := findOwner(ctx, conn)
		if pid != 0 && pid == j.session.Load() {
			// It is a session of this very process, whose connection broke in a way
			// that the server has not noticed yet.
			if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_terminate_backend($1, $2)`, pid, operationTimeout.Milliseconds()); err != nil {
				return nil, fmt.Errorf("end this relay's own earlier session: %w", err)
			}
		} else {
			wait(owner)
		}
		_, err := conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_lock($1, $2)`, lockClass, lockOwner)
		switch {
		case err == nil:
			free = true
		case code(err) != codeLockNotAvailable:
			return nil, fmt.Errorf("wait for the ownership: %w", err)
		}
	}
	t := &tenure{conn: conn, logger: j.logger, timeout: j.o.OwnerTimeout}
	if err := t.open(ctx); err != nil {
		return nil, err
	}
	tab, err := lookUpTable(ctx, conn)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	j.table = tab
	j.mu.Unlock()
	j.session.Store(conn.PgConn().PID())
	t.keepAlive()
	return t, nil
}

const ownerQuery = `
SELECT l.pid, coalesce(host(a.client_addr), 'a local socket'), a.backend_start
  FROM pg_catalog.pg_locks l
  JOIN pg_catalog.pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.classid = $1 AND l.objid = $2 AND l.granted
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())`

// findOwner says which session the owner's is, as well as this role may know it.
func findOwner(ctx context.Context, conn *pgx.Conn) (pid uint32, description string) {
	var from string
	var since time.Time
	if err := conn.QueryRow(ctx, ownerQuery, lockClass, lockOwner).Scan(&pid, &from, &since); err != nil {
		return 0, "another relay owns this database"
	}
	return pid, fmt.Sprintf("another relay owns this database: server process %d, from %s, since %s", pid, from, since.UTC().Format(time.RFC3339))
}
