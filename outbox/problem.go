package outbox

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Problem is an error of the database that an operator can do something about.
type Problem struct { //nolint:errname // it is one, and not only in Go's sense
	// What is wrong, with what was found.
	What string
	// Mend is the statement or the setting that mends it.
	Mend string
	// Fatal: trying again is no use before somebody has done that.
	Fatal bool
	// Cause may be nil.
	Cause error
}

// Error is one line.
func (p *Problem) Error() string {
	line := p.What
	if p.Mend != "" {
		line += "; to mend it: " + p.Mend
	}
	return line
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Cause }

// Permanent is what relay.IsPermanent asks for.
func (p *Problem) Permanent() bool { return p.Fatal }

// relayRole has all rights that a relay needs; migrate makes it.
const relayRole = "syncrelay_relay"

// Codes of errors, from appendix A of the Postgres manual.
const (
	codeInvalidPassword      = "28P01"
	codeInvalidAuthorization = "28000"
	codeNoDatabase           = "3D000"
	codeNoPrivilege          = "42501"
	codeUndefinedObject      = "42704"
	codeUndefinedTable       = "42P01"
	codeUndefinedColumn      = "42703"
	codeUndefinedFunction    = "42883"
	codeSyntax               = "42601"
	codeNotInState           = "55000"
	codeObjectInUse          = "55006"
	codeLockNotAvailable     = "55P03"
	codeLimitExceeded        = "53400"
	codeTooManyConnections   = "53300"
	codeDuplicateObject      = "42710"
	codeUndefinedFile        = "58P01"
)

// code is the SQLSTATE of an error, empty if it is not the server's.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// explain turns an error of the server into one that names what mends it. Any
// other error is returned as it is, and so is one that names that already.
func explain(err error, c *pgx.ConnConfig) error {
	var explained *Problem
	if errors.As(err, &explained) {
		return err
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return unreachable(err, c)
	}
	p := &Problem{What: strings.TrimSuffix(pg.Message, "."), Cause: err}
	switch {
	case pg.Code == codeInvalidPassword:
		p.Fatal = true
		p.Mend = fmt.Sprintf("set the right password for %s in database.url, or ALTER ROLE %s PASSWORD '…'", c.User, quote(c.User))
	case pg.Code == codeInvalidAuthorization:
		p.Fatal = true
		p.Mend = fmt.Sprintf("allow role %s to log in to database %s (pg_hba.conf, and ALTER ROLE %s LOGIN), or set another role in database.url", c.User, c.Database, quote(c.User))
	case pg.Code == codeNoDatabase:
		p.Fatal = true
		p.Mend = fmt.Sprintf("CREATE DATABASE %s, or name another one in database.url", quote(c.Database))
	case pg.Code == codeNoPrivilege && strings.Contains(strings.ToLower(pg.Message+pg.Detail), "replication"): // the wording changed in 16
		p.Fatal = true
		p.Mend = fmt.Sprintf("ALTER ROLE %s REPLICATION", quote(c.User))
	case pg.Code == codeNoPrivilege && strings.Contains(pg.Message, "row-level security"):
		p.Fatal = true
		p.Mend = fmt.Sprintf("ALTER ROLE %s BYPASSRLS", quote(c.User))
	case pg.Code == codeNoPrivilege && c.User == relayRole:
		p.Fatal = true
		p.Mend = "run syncrelay doctor, which prints the GRANT that is missing"
	case pg.Code == codeNoPrivilege:
		p.Fatal = true
		p.Mend = fmt.Sprintf("run syncrelay migrate as the database's owner, then GRANT %s TO %s", relayRole, quote(c.User))
	case pg.Code == codeUndefinedTable, pg.Code == codeUndefinedColumn:
		p.Fatal = true
		p.Mend = "run syncrelay migrate"
	case pg.Code == codeNotInState && strings.Contains(pg.Message, "wal_level"):
		p.Fatal = true
		p.Mend = "ALTER SYSTEM SET wal_level = logical, and restart Postgres"
	case pg.Code == codeLimitExceeded && strings.Contains(pg.Message, "replication slots"):
		p.Fatal = true
		p.Mend = "SELECT pg_drop_replication_slot(slot_name) for a slot that nobody needs (see pg_replication_slots), or ALTER SYSTEM SET max_replication_slots higher and restart Postgres"
	case pg.Code == codeTooManyConnections && strings.Contains(pg.Message, "max_wal_senders"):
		p.Mend = "ALTER SYSTEM SET max_wal_senders higher, and restart Postgres"
	case pg.Code == codeTooManyConnections:
		p.Mend = "raise max_connections, or close connections that nobody needs"
	default:
		return err
	}
	return p
}

// unreachable says in one line where the server was looked for. pgx's own
// message is right but long, and repeats itself for each address.
func unreachable(err error, c *pgx.ConnConfig) error {
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return err
	}
	return &Problem{
		What:  fmt.Sprintf("the database at %s:%d can't be reached: %v", c.Host, c.Port, root(err)),
		Mend:  "start it, or correct database.url",
		Cause: err,
	}
}

// root is the innermost error; of several addresses that were tried, the last's.
func root(err error) error {
	for {
		var next error
		switch e := err.(type) { //nolint:errorlint // the chain is walked by hand
		case interface{ Unwrap() []error }:
			if all := e.Unwrap(); len(all) > 0 {
				next = all[len(all)-1]
			}
		default:
			next = errors.Unwrap(err)
		}
		if next == nil {
			return err
		}
		err = next
	}
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// parse reads a database URL. Its error never holds the URL, which has a
// password in it.
func parse(databaseURL string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, &Problem{
			What:  "database.url can't be read",
			Mend:  "write it as postgres://user:password@host:5432/database" + hint(databaseURL),
			Fatal: true,
		}
	}
	return c, nil
}

func hint(databaseURL string) string {
	if u, err := url.Parse(databaseURL); err == nil && u.Scheme != "" && u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return fmt.Sprintf(" (found the scheme %q)", u.Scheme)
	}
	return ""
}
