package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/syncrelay/syncrelay/relay"
)

// Source is the replication slot and the table behind it. It implements
// relay.Source.
type Source struct {
	o      Options
	logger *slog.Logger
	// unusable is set when the server said of the slot that it can't go on: the
	// next Attach replaces it.
	unusable atomic.Pointer[string]
	stumbles stumbles // of the streams, of which there is one at a time
}

// NewSource makes a source; it connects when the relay attaches.
func NewSource(o Options) *Source {
	o = o.withDefaults()
	return &Source{o: o, logger: o.Logger}
}

// Attach is part of relay.Source. The caller must be the owner.
func (s *Source) Attach(ctx context.Context, known relay.State) (relay.Stream, error) {
	conn, err := connect(ctx, s.o.URL, nil)
	if err != nil {
		return nil, err
	}
	defer closeConn(conn)
	a := attachment{Source: s, conn: conn, known: known}
	st, err := a.attach(ctx)
	if err != nil {
		return nil, explain(err, conn.Config())
	}
	return st, nil
}

// attachment is one run of Attach.
type attachment struct {
	*Source
	conn  *pgx.Conn
	known relay.State
	table table
}

func (a *attachment) attach(ctx context.Context) (st *stream, err error) {
	if err := a.checkLogical(ctx); err != nil {
		return nil, err
	}
	if a.table, err = lookUpTable(ctx, a.conn); err != nil {
		return nil, err
	}
	reason, err := a.ensurePublication(ctx)
	if err != nil {
		return nil, err
	}
	if why := a.unusable.Load(); why != nil {
		reason = *why
	}
	repl, err := connectReplication(ctx, a.o.URL, map[string]string{
		// The server's own default of 60 s is what a stopped relay would keep
		// the slot for; it also bounds how long a half-open connection lives.
		"wal_sender_timeout": strconv.FormatInt(a.o.OwnerTimeout.Milliseconds(), 10),
	})
	if err != nil {
		return nil, err
	}
	st = &stream{o: a.o, logger: a.logger, conn: repl, table: a.table, unusable: &a.unusable, stumbles: &a.stumbles}
	defer func() {
		if err != nil {
			closeConn(repl)
		}
	}()
	if err := a.identify(ctx, st); err != nil {
		return nil, err
	}
	if err := a.conn.QueryRow(ctx, publicationIdentity, a.o.Publication).Scan(&st.info.Publication); err != nil {
		return nil, fmt.Errorf("identify publication %q: %w", a.o.Publication, err)
	}
	why, err := a.claimSlot(ctx, st)
	if err != nil {
		return nil, err
	}
	if reason == "" {
		reason = why
	}
	if reason == "" {
		return st, nil
	}
	if err := a.replaceSlot(ctx, st, reason); err != nil {
		return nil, err
	}
	a.unusable.Store(nil)
	a.stumbles = stumbles{}
	return st, nil
}

func (a *attachment) checkLogical(ctx context.Context) error {
	var level string
	if err := a.conn.QueryRow(ctx, `SHOW wal_level`).Scan(&level); err != nil {
		return fmt.Errorf("ask for wal_level: %w", err)
	}
	if level != "logical" {
		return &Problem{
			What:  fmt.Sprintf("the server's wal_level is %s, and logical replication needs logical", level),
			Mend:  "ALTER SYSTEM SET wal_level = logical, and restart Postgres",
			Fatal: true,
		}
	}
	return nil
}

// findStart asks when the server was started. One of whose processes was killed
// recovers as from any crash and goes on with its old start time; but the
// recovery has emptied the unlogged table, so that time is now, unless the start
// is one that the journal does not know yet ($1 is the one that it knows).
const findStart = `
WITH known AS (SELECT max(started_at) AS at FROM syncrelay.incarnation), made AS (
  INSERT INTO syncrelay.incarnation (started_at)
  SELECT CASE WHEN pg_catalog.pg_postmaster_start_time() > $1 THEN pg_catalog.pg_postmaster_start_time() ELSE pg_catalog.clock_timestamp() END
    FROM known WHERE at IS NULL
  RETURNING started_at)
SELECT greatest(pg_catalog.pg_postmaster_start_time(), known.at, made.started_at), pg_catalog.clock_timestamp()
  FROM known LEFT JOIN made ON true`

// identify asks the server who it is and where its log stands.
func (a *attachment) identify(ctx context.Context, st *stream) error {
	sys, err := pglogrepl.IdentifySystem(ctx, st.conn)
	if err != nil {
		return fmt.Errorf("identify the server: %w", err)
	}
	st.info.Server.SystemID, st.info.Server.Timeline = sys.SystemID, sys.Timeline
	st.info.WALEnd = relay.LSN(sys.XLogPos)
	st.info.Slot = a.o.Slot
	err = a.conn.QueryRow(ctx, findStart, a.known.Server.StartedAt).Scan(&st.info.Server.StartedAt, &st.info.Now)
	if err != nil {
		return fmt.Errorf("ask when the server was started: %w", err)
	}
	return a.compare(ctx, st)
}

// compare makes sure that both sessions are of one server: a URL may name several
// hosts, and in the middle of a failover each session may reach another.
func (a *attachment) compare(ctx context.Context, st *stream) error {
	const ask = `SELECT pg_catalog.pg_postmaster_start_time()::text || pg_catalog.current_setting('port')`
	var here string
	if err := a.conn.QueryRow(ctx, ask).Scan(&here); err != nil {
		return fmt.Errorf("ask which server this is: %w", err)
	}
	there, err := st.conn.Exec(ctx, ask).ReadAll()
	if err != nil {
		return fmt.Errorf("ask which server the stream comes from: %w", err)
	}
	if len(there) != 1 || len(there[0].Rows) != 1 || string(there[0].Rows[0][0]) != here {
		return errors.New("database.url names several hosts, and its sessions reach different servers")
	}
	return nil
}

const findSlot = `
SELECT coalesce(s.plugin, ''), coalesce(s.database, ''), coalesce(s.database = current_database(), false), s.temporary, s.slot_type, coalesce(s.wal_status, ''), s.confirmed_flush_lsn::text,
       coalesce(s.active_pid, 0), coalesce(a.application_name, '')
  FROM pg_catalog.pg_replication_slots s
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = $1`

// claimSlot looks at the slot, sees to it that nobody holds it, and returns why
// it has to be replaced, or nothing if the stream can go on from it.
func (a *attachment) claimSlot(ctx context.Context, st *stream) (replace string, err error) {
	var plugin, database, kind, status, holder string
	var confirmed *string
	var here, temporary bool
	var pid int
	err = a.conn.QueryRow(ctx, findSlot, a.o.Slot).Scan(&plugin, &database, &here, &temporary, &kind, &status, &confirmed, &pid, &holder)
	switch {
	case errors.Is(err, pgx.ErrNoRows) && a.known.Epoch == "":
		return "this is the first start", nil
	case errors.Is(err, pgx.ErrNoRows):
		return "the slot is missing", nil
	case err != nil:
		return "", fmt.Errorf("look up slot %q: %w", a.o.Slot, err)
	}
	if kind != "logical" || !here || plugin != "pgoutput" {
		return "", &Problem{
			What: fmt.Sprintf("slot %q is there already, and is a %s slot of database %q with plugin %q", a.o.Slot, kind, database, plugin),
			Mend: "set database.slot to another name", Fatal: true,
		}
	}
	st.info.Inherited = true
	if pid != 0 {
		if err := a.evict(ctx, pid, holder); err != nil {
			return "", err
		}
	}
	if confirmed != nil {
		lsn, err := pglogrepl.ParseLSN(*confirmed)
		if err != nil {
			return "", fmt.Errorf("read the position of slot %q: %w", a.o.Slot, err)
		}
		st.info.Confirmed = relay.LSN(lsn)
	}
	switch {
	case temporary:
		return "the slot was a temporary one", nil
	case status == "lost":
		return "the server has removed log that the slot needed (wal_status is lost; see max_slot_wal_keep_size)", nil
	case a.known.Epoch == "":
		return "the slot was there before the journal", nil
	case a.known.Slot != a.o.Slot:
		return fmt.Sprintf("the slot was %q before", a.known.Slot), nil
	case a.known.Server.SystemID != st.info.Server.SystemID:
		return "the slot is another server's than the journal was", nil
	case st.info.WALEnd < a.known.High.Commit:
		return fmt.Sprintf("the server's log stands at %s, before the journal's last position %s", st.info.WALEnd, a.known.High.Commit), nil
	case a.known.Publication != "" && a.known.Publication != st.info.Publication:
		return "the publication or the table was changed, or made anew, while no relay was looking", nil
	case a.known.Backlog:
		return "the reading of the backlog was interrupted", nil
	case st.info.Confirmed > a.known.Confirmed:
		return fmt.Sprintf("the slot stands at %s, and was never confirmed beyond %s by this relay: somebody else has made it or read from it", st.info.Confirmed, a.known.Confirmed), nil
	}
	return "", nil
}

// evict ends the session of an earlier owner that still holds the slot: the
// caller owns the journal, so that session can do nothing useful any more.
func (a *attachment) evict(ctx context.Context, pid int, holder string) error {
	if holder != applicationName {
		return &Problem{What: fmt.Sprintf("slot %q is in use by process %d (application %q)", a.o.Slot, pid, holder),
			Mend: fmt.Sprintf("stop that program, or SELECT pg_terminate_backend(%d), or set database.slot to another name", pid)}
	}
	a.logger.Info("ending the session of an earlier owner that still holds the slot", "pid", pid)
	// The timeout makes the function wait for the session's end.
	if err := a.asOwner(ctx, `SELECT pg_catalog.pg_terminate_backend($2, $3)::text`, pid, operationTimeout.Milliseconds()); err != nil {
		return fmt.Errorf("end process %d, which holds slot %q: %w", pid, a.o.Slot, err)
	}
	return nil
}

// asOwner runs a query of one value, from $2 on, unless another relay has become
// the owner: one that was stopped for a while at this very place must not take the
// slot away from it.
func (a *attachment) asOwner(ctx context.Context, query string, args ...any) error {
	var result *string
	err := a.conn.QueryRow(ctx, `SELECT (`+query+`) FROM syncrelay.state WHERE tenure = $1`, append([]any{a.known.Tenure}, args...)...).Scan(&result)
	if errors.Is(err, pgx.ErrNoRows) {
		return relay.ErrFenced
	}
	return err
}

// replaceSlot makes the slot anew, with a snapshot for the backlog.
func (a *attachment) replaceSlot(ctx context.Context, st *stream, reason string) error {
	if st.info.Confirmed != 0 || a.known.Epoch != "" {
		a.logger.Warn("replacing the replication slot; rows that it would not bring are read from the table", "slot", a.o.Slot, "reason", reason)
	}
	err := a.asOwner(ctx, `SELECT pg_catalog.pg_drop_replication_slot(slot_name)::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $2`, a.o.Slot)
	if err != nil {
		return fmt.Errorf("drop slot %q: %w", a.o.Slot, err)
	}
	a.dropFormerSlot(ctx)
	done := a.tellWhileWaiting(ctx)
	made, err := createSlot(ctx, st.conn, a.o.Slot)
	done()
	if err != nil {
		return fmt.Errorf("create slot %q: %w", a.o.Slot, err)
	}
	at, err := pglogrepl.ParseLSN(made.ConsistentPoint)
	if err != nil {
		return fmt.Errorf("read the position of the new slot %q: %w", a.o.Slot, err)
	}
	st.snapshot = made.SnapshotName
	st.info.Fresh, st.info.Reason = true, reason
	st.info.Consistent, st.info.Confirmed = relay.LSN(at), relay.LSN(at)
	return nil
}

const findFormerSlot = `
SELECT s.slot_type = 'logical' AND s.plugin = 'pgoutput' AND s.database = current_database() AND s.confirmed_flush_lsn <= $2::text::pg_lsn,
       coalesce(s.active_pid, 0), coalesce(a.application_name, '')
  FROM pg_catalog.pg_replication_slots s
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
 WHERE s.slot_name = $1`

// dropFormerSlot drops the slot that the journal was fed from before
// database.slot was changed: nobody would read from it again, and the server
// would keep all log from there on. What may be somebody else's, or can't be
// dropped, is warned of.
func (a *attachment) dropFormerSlot(ctx context.Context) {
	former := a.known.Slot
	if former == "" || former == a.o.Slot {
		return
	}
	var ours *bool
	var pid int
	var holder string
	err := a.conn.QueryRow(ctx, findFormerSlot, former, a.known.Confirmed.String()).Scan(&ours, &pid, &holder)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return
	case err == nil && (ours == nil || !*ours):
		err = errors.New("it is not as this relay left it, and may be another program's")
	case err == nil && pid != 0:
		err = a.evict(ctx, pid, holder)
	}
	if err == nil {
		_, err = a.conn.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, former)
	}
	if err != nil {
		a.logger.Warn("the slot of before database.slot was changed is kept, and the server's log with it", "slot", former, "reason", err,
			"mend", `SELECT pg_drop_replication_slot(`+literal(former)+`)`)
		return
	}
	a.logger.Info("dropped the slot of before database.slot was changed", "slot", former)
}

// failoverSince is the first major version whose slots can follow a failover:
// standbys that are set up for it keep a copy of them.
const failoverSince = 17

func createSlot(ctx context.Context, conn *pgconn.PgConn, name string) (pglogrepl.CreateReplicationSlotResult, error) {
	options := `SNAPSHOT 'export'`
	number, _, _ := strings.Cut(conn.ParameterStatus("server_version"), ".")
	if major, err := strconv.Atoi(number); err == nil && major >= failoverSince {
		options += `, FAILOVER true`
	}
	return pglogrepl.ParseCreateReplicationSlot(conn.Exec(ctx,
		fmt.Sprintf(`CREATE_REPLICATION_SLOT %s LOGICAL pgoutput (%s)`, quote(name), options)))
}

// tellWhileWaiting logs that making a slot waits for the transactions that were
// under way at its beginning, which can be for as long as the longest of them.
func (a *attachment) tellWhileWaiting(ctx context.Context) (done func()) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		begun := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				a.logger.Info("making the slot waits for transactions that are under way", "slot", a.o.Slot,
					"for", time.Since(begun).Round(time.Second), "see", "SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start")
			}
		}
	}()
	return cancel
}
