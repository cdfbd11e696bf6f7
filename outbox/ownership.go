package outbox

import (
	"context"
	"errors"
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

// lockPatience is how long a standby waits for the lock in one statement, at most
// and unless Options.OwnerTimeout is shorter. The wait costs no polling, and ends
// the moment that the owner's session does; but a statement that waits holds a
// snapshot, and so keeps vacuum from its work, which must not last for days.
const lockPatience = 15 * time.Second

func (o Options) lockPatience() time.Duration { return min(lockPatience, o.OwnerTimeout) }

// Acquire is part of relay.Journal. The owner is whose session holds the lock:
// it ends with the session, and the server ends a session that says nothing for
// Options.OwnerTimeout, so a relay that was stopped in its tracks loses it too.
func (j *Journal) Acquire(ctx context.Context, wait func(reason string)) (relay.Tenure, error) {
	conn, err := connect(ctx, j.o.URL, map[string]string{
		"idle_session_timeout":                strconv.FormatInt(j.o.OwnerTimeout.Milliseconds(), 10),
		"idle_in_transaction_session_timeout": strconv.FormatInt(j.o.OwnerTimeout.Milliseconds(), 10),
		"lock_timeout":                        strconv.FormatInt(j.o.lockPatience().Milliseconds(), 10),
		"synchronous_commit":                  "off", // see relay.Tenure; Save and End wait for the disk
		"jit":                                 "off",
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
	if err := j.await(ctx, conn, wait); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	t := &tenure{conn: conn, logger: j.logger, timeout: j.o.OwnerTimeout, publication: j.o.Publication, slot: j.o.Slot}
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
	if own, _ := findOwner(ctx, conn); own.pid == conn.PgConn().PID() {
		j.session.Store(&own)
	}
	t.keepAlive()
	return t, nil
}

// await waits until the session holds the lock.
func (j *Journal) await(ctx context.Context, conn *pgx.Conn, wait func(reason string)) error {
	free, err := j.tryLock(ctx, conn)
	for err == nil && !free {
		free, err = j.waitForLock(ctx, conn, wait)
	}
	if err == nil {
		// The owner's own statements have deadlines of their own.
		_, err = conn.Exec(ctx, `SET lock_timeout = 0`)
	}
	return err
}

func (j *Journal) tryLock(ctx context.Context, conn *pgx.Conn) (free bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if err := schema.Verify(ctx, conn); err != nil {
		if errors.Is(err, schema.ErrVersion) || errors.Is(err, schema.ErrTable) {
			return false, &Problem{What: err.Error(), Fatal: true, Cause: err}
		}
		return false, fmt.Errorf("look at the schema: %w", err)
	}
	return j.askForLock(ctx, conn)
}

// askForLock takes the lock if it is free.
func (j *Journal) askForLock(ctx context.Context, conn *pgx.Conn) (free bool, err error) {
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_try_advisory_lock($1, $2)`, lockClass, lockOwner).Scan(&free); err != nil {
		return false, fmt.Errorf("ask for the ownership: %w", err)
	}
	return free, nil
}

// waitForLock waits for the lock in one statement, and no longer than the server
// lets it: an answer that does not come then never will, because the connection
// has died without a word.
func (j *Journal) waitForLock(ctx context.Context, conn *pgx.Conn, wait func(reason string)) (free bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, j.o.lockPatience()+j.o.OwnerTimeout)
	defer cancel()
	holder, owner := findOwner(ctx, conn)
	if owner == "" {
		// It has just become free: perhaps this relay's own earlier session has ended,
		// and clients need not be sent away as though there were another relay.
		return j.askForLock(ctx, conn)
	}
	if own := j.session.Load(); own != nil && *own == holder {
		// It is a session of this very process, whose connection broke in a way
		// that the server has not noticed yet.
		if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_terminate_backend($1, $2)`, holder.pid, j.o.lockPatience().Milliseconds()); err != nil {
			return false, fmt.Errorf("end this relay's own earlier session: %w", err)
		}
	} else {
		wait(owner)
	}
	_, err = conn.Exec(ctx, `SELECT pg_catalog.pg_advisory_lock($1, $2)`, lockClass, lockOwner)
	switch {
	case err == nil:
		return true, nil
	case code(err) == codeLockNotAvailable:
		return false, nil
	default:
		return false, fmt.Errorf("wait for the ownership: %w", err)
	}
}

const ownerQuery = `
SELECT l.pid, coalesce(host(a.client_addr), 'a local socket'), a.backend_start
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
 WHERE l.locktype = 'advisory' AND l.classid = $1 AND l.objid = $2 AND l.granted
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())`

// backend is a process of the server. Numbers of processes come again.
type backend struct {
	pid   uint32
	since int64 // microseconds since 1970
}

// anotherOwner is what is known of an owner at least.
const anotherOwner = "another relay owns this database"

// findOwner says which session the owner's is, as well as this role may know it. The
// description is empty if there is none.
func findOwner(ctx context.Context, conn *pgx.Conn) (b backend, description string) {
	var from string
	var since time.Time
	switch err := conn.QueryRow(ctx, ownerQuery, lockClass, lockOwner).Scan(&b.pid, &from, &since); {
	case errors.Is(err, pgx.ErrNoRows):
		return backend{}, ""
	case err != nil:
		return backend{}, anotherOwner
	}
	b.since = since.UnixMicro()
	return b, fmt.Sprintf(anotherOwner+": server process %d, from %s, since %s", b.pid, from, since.UTC().Format(time.RFC3339))
}
