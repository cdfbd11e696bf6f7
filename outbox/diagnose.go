package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/schema"
)

// Check is one thing that was looked at, so that somebody can set it right.
type Check struct {
	// Name is for programs, and stays.
	Name  string     `json:"name"`
	State CheckState `json:"state"`
	// Found is what was found, on one line.
	Found string `json:"found"`
	// Mend says what mends it, empty if nothing needs to be. Where statements do,
	// SQL is those, to be run by the database's owner or a superuser, and Restart
	// says that the server must be started anew then.
	Mend    string   `json:"mend,omitempty"`
	SQL     []string `json:"sql,omitempty"`
	Restart bool     `json:"restart,omitempty"`
}

// CheckState is the outcome of a check.
type CheckState string

// The outcomes of a check.
const (
	// CheckOK: nothing to do.
	CheckOK CheckState = "ok"
	// CheckWarning: a relay works, and something may go wrong, or does not go as
	// well as it could.
	CheckWarning CheckState = "warning"
	// CheckFails: no relay works like this, or events would be lost.
	CheckFails CheckState = "fails"
	// CheckLeftOut: it could not be looked at, because something else fails.
	CheckLeftOut CheckState = "left out"
)

// OK makes a check that has found nothing to do.
func OK(name, format string, args ...any) Check {
	return Check{Name: name, State: CheckOK, Found: fmt.Sprintf(format, args...)}
}

// Warn makes a check that warns.
func Warn(name, format string, args ...any) Check {
	return Check{Name: name, State: CheckWarning, Found: fmt.Sprintf(format, args...)}
}

// Fail makes a check that fails.
func Fail(name, format string, args ...any) Check {
	return Check{Name: name, State: CheckFails, Found: fmt.Sprintf(format, args...)}
}

// By says what mends it.
func (c Check) By(format string, args ...any) Check {
	c.Mend = fmt.Sprintf(format, args...)
	return c
}

// BySQL says which statements mend it.
func (c Check) BySQL(statements ...string) Check {
	c.SQL = statements
	c.Mend = strings.Join(statements, "; ")
	return c
}

// AndRestart says that the server must be started anew after the statements.
func (c Check) AndRestart() Check {
	c.Restart = true
	c.Mend += ", and restart Postgres"
	return c
}

// CheckError turns an error of this package into a failing check.
func CheckError(name string, err error) Check {
	c := Check{Name: name, State: CheckFails, Found: err.Error()}
	var p *Problem
	if errors.As(err, &p) {
		c.Found, c.Mend = p.What, p.Mend
	}
	return c
}

// Expectations are what is compared with.
type Expectations struct {
	// WALWarning is how many bytes of log the server may keep for the slot.
	WALWarning int64
	// LongTransaction is from when on a transaction is a long one; default 5 min.
	LongTransaction time.Duration
	// Now is this machine's clock; default [time.Now].
	Now func() time.Time
}

// Diagnose looks at a database with the eyes and the rights of a relay, as far as
// it gets. It changes nothing.
func Diagnose(ctx context.Context, o Options, e Expectations) []Check {
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.LongTransaction <= 0 {
		e.LongTransaction = 5 * time.Minute
	}
	d := &diagnosis{o: o.withDefaults(), e: e}
	conn, err := connect(ctx, o.URL, nil)
	if err != nil {
		return append([]Check{CheckError("database", err)}, d.leaveOut()...)
	}
	defer closeConn(conn)
	d.conn, d.role = conn, conn.Config().User
	if err := d.lookAround(ctx); err != nil {
		return append([]Check{CheckError("database", explain(err, conn.Config()))}, d.leaveOut()...)
	}
	c := conn.Config()
	checks := []Check{OK("database", "database %s at %s:%d, as role %s", c.Database, c.Host, c.Port, d.role)}
	for _, p := range d.procedures() {
		if p.needs != nil && !*p.needs {
			checks = append(checks, leftOut(p.name))
			continue
		}
		check, err := p.do(ctx)
		if err != nil {
			check = CheckError("", explain(err, c))
			check.State, check.Found = CheckWarning, "this could not be looked at: "+check.Found
		}
		check.Name = p.name
		checks = append(checks, check)
	}
	return checks
}

// diagnosis is one run of Diagnose.
type diagnosis struct {
	o    Options
	e    Expectations
	conn *pgx.Conn

	role      string
	superuser bool
	replicate bool // the role has REPLICATION, or is a superuser
	version   string
	major     int
	standby   bool
	hasSchema bool // there is a schema syncrelay
	readable  bool // and its tables may be read
	fits      bool // and it is of this program's version
	hasTable  bool
	table     table
	ours      bool // migrate has made the table
	slot      slotFacts
}

// slotFacts is what the server says of the slot.
type slotFacts struct {
	exists                 bool
	plugin, database, kind string
	here, temporary        bool // here: it is of this database
	status, holder         string
	pid                    int
	streaming              bool // a relay's session holds it
}

// procedure is a check that is made if what it needs is there.
type procedure struct {
	name  string
	needs *bool
	do    func(context.Context) (Check, error)
}

// procedures lists all checks, in the order in which one thing stands on another.
func (d *diagnosis) procedures() []procedure {
	mayReplicate := d.replicate && !d.standby
	return []procedure{
		{"server_version", nil, d.checkVersion},
		{"primary", nil, d.checkPrimary},
		{"wal_level", nil, d.checkWALLevel},
		{"replication_slots", nil, d.checkSlots},
		{"wal_senders", nil, d.checkSenders},
		{"connections", nil, d.checkConnections},
		{"replication_right", nil, d.checkReplication},
		{"replication_session", &mayReplicate, d.checkReplicationSession},
		{"journal_rights", &d.hasSchema, d.checkJournalRights},
		{"schema", nil, d.checkSchema},
		{"journal_state", &d.fits, d.checkState},
		{"table", nil, d.checkTable},
		{"table_rights", &d.hasTable, d.checkTableRights},
		{"row_security", &d.hasTable, d.checkRowSecurity},
		{"partitions", &d.hasTable, d.checkPartitions},
		{"partition_rights", &d.hasTable, d.checkPartitionRights},
		{"writers", &d.hasTable, d.checkWriters},
		{"publication", &d.hasTable, d.checkPublication},
		{"slot", nil, d.checkSlot},
		{"retained_wal", nil, d.checkRetained},
		{"max_slot_wal_keep_size", nil, d.checkKeepSize},
		{"wal_sender_timeout", nil, d.checkSenderTimeout},
		{"track_commit_timestamp", nil, d.checkCommitTimes},
		{"durability", nil, d.checkDurability},
		{"transactions", nil, d.checkTransactions},
		{"statistics_right", nil, d.checkStatisticsRight},
		{"clock", nil, d.checkClock},
		{"owner", nil, d.checkOwner},
	}
}

// LeftOut lists what a diagnosis looks at, for when there is no database to look
// at.
func LeftOut() []Check {
	return append([]Check{leftOut("database")}, (&diagnosis{}).leaveOut()...)
}

func (d *diagnosis) leaveOut() (checks []Check) {
	for _, p := range d.procedures() {
		checks = append(checks, leftOut(p.name))
	}
	return checks
}

func leftOut(name string) Check {
	return Check{Name: name, State: CheckLeftOut, Found: "what it needs is missing"}
}

const lookAroundQuery = `
SELECT r.rolsuper, r.rolreplication OR r.rolsuper, current_setting('server_version'), current_setting('server_version_num')::int / 10000,
       pg_catalog.pg_is_in_recovery(),
       EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'syncrelay'),
       EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = pg_catalog.to_regclass('sync_events') AND k.conname = 'event_type_must_not_be_empty_or_a_word_of_the_protocol')
  FROM pg_catalog.pg_roles r WHERE r.rolname = current_user`

// lookAround finds out what several checks want to know.
func (d *diagnosis) lookAround(ctx context.Context) error {
	err := d.conn.QueryRow(ctx, lookAroundQuery).Scan(&d.superuser, &d.replicate, &d.version, &d.major, &d.standby, &d.hasSchema, &d.ours)
	if err != nil {
		return err
	}
	if d.table, err = lookUpTable(ctx, d.conn); err == nil {
		d.hasTable = true
	}
	s := &d.slot
	var confirmed *string
	err = d.conn.QueryRow(ctx, findSlot, d.o.Slot).Scan(&s.plugin, &s.database, &s.here, &s.temporary, &s.kind, &s.status, &confirmed, &s.pid, &s.holder)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	s.exists, s.streaming = true, s.pid != 0 && s.holder == applicationName
	return nil
}

func (d *diagnosis) checkVersion(context.Context) (Check, error) {
	return OK("", "PostgreSQL %s", d.version), nil // connect has refused older ones
}

func (d *diagnosis) checkPrimary(context.Context) (Check, error) {
	if d.standby {
		return Fail("", "the server is a standby, which can't be written to").By("name the primary in database.url, or all hosts and target_session_attrs=read-write"), nil
	}
	return OK("", "the server is a primary"), nil
}

func (d *diagnosis) checkWALLevel(ctx context.Context) (Check, error) {
	level, err := d.setting(ctx, "wal_level")
	if err == nil && level != "logical" {
		return Fail("", "wal_level is %s, and logical replication needs logical", level).BySQL(`ALTER SYSTEM SET wal_level = logical`).AndRestart(), nil
	}
	return OK("", "wal_level is %s", level), err
}

// setting is a setting of the server as this session has it.
func (d *diagnosis) setting(ctx context.Context, name string) (value string, err error) {
	err = d.conn.QueryRow(ctx, `SELECT coalesce(current_setting($1, true), '')`, name).Scan(&value)
	return value, err
}

func (d *diagnosis) checkSlots(ctx context.Context) (Check, error) {
	var used, most int
	var idle string
	err := d.conn.QueryRow(ctx, `
SELECT count(*), current_setting('max_replication_slots')::int, coalesce(string_agg(slot_name, ', ') FILTER (WHERE NOT active), '')
  FROM pg_catalog.pg_replication_slots`).Scan(&used, &most, &idle)
	switch {
	case err != nil:
		return Check{}, err
	case used < most || d.slot.exists:
		return OK("", "%d of %d replication slots are in use (max_replication_slots)", used, most), nil
	}
	c := Fail("", "all %d replication slots are in use (max_replication_slots), and slot %q is none of them", most, d.o.Slot).
		BySQL(fmt.Sprintf(`ALTER SYSTEM SET max_replication_slots = %d`, most+5)).AndRestart()
	if idle != "" {
		c.Mend += "; or SELECT pg_drop_replication_slot(…) for one that nobody needs, of those not in use now: " + idle
	}
	return c, nil
}

func (d *diagnosis) checkSenders(ctx context.Context) (Check, error) {
	var used, most int
	err := d.conn.QueryRow(ctx, `
SELECT count(*), current_setting('max_wal_senders')::int FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walsender'`).Scan(&used, &most)
	if err == nil && used >= most && !d.slot.streaming {
		return Fail("", "all %d senders are in use (max_wal_senders)", most).BySQL(fmt.Sprintf(`ALTER SYSTEM SET max_wal_senders = %d`, most+5)).AndRestart(), nil
	}
	return OK("", "%d of %d senders are in use (max_wal_senders)", used, most), err
}

// sessions is how many a relay has, at most (see README.md), and a few for those
// that come and go.
const sessions = 12

func (d *diagnosis) checkConnections(ctx context.Context) (Check, error) {
	var used, most, byRole, roleLimit int
	err := d.conn.QueryRow(ctx, `
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'client backend'),
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true)::int, 0),
       (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename = current_user AND backend_type = 'client backend'),
       (SELECT rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = current_user)`).Scan(&used, &most, &byRole, &roleLimit)
	switch {
	case err != nil:
		return Check{}, err
	case d.slot.streaming:
	case roleLimit >= 0 && !d.superuser && roleLimit < sessions:
		return Warn("", "role %s may have %d connections at once, and a relay has up to %d", d.role, roleLimit, sessions).
			BySQL(fmt.Sprintf(`ALTER ROLE %s CONNECTION LIMIT -1`, quote(d.role))), nil
	case most-used < sessions:
		return Warn("", "%d of %d connections are in use (max_connections), and a relay has up to %d", used, most, sessions).
			BySQL(fmt.Sprintf(`ALTER SYSTEM SET max_connections = %d`, most+50)).AndRestart(), nil
	}
	return OK("", "%d of %d connections are in use (max_connections)", used, most), nil
}

func (d *diagnosis) checkSchema(ctx context.Context) (Check, error) {
	if d.hasSchema && !d.readable {
		return leftOut(""), nil
	}
	err := schema.Verify(ctx, d.conn)
	switch {
	case errors.Is(err, schema.ErrVersion):
		what, mend, _ := strings.Cut(err.Error(), "; ")
		return Fail("", "%s", what).By("%s", mend), nil
	case err != nil:
		return Check{}, err
	}
	d.fits = true
	return OK("", "the schema is the one that this program works with"), nil
}
