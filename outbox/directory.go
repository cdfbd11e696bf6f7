package outbox

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/syncrelay/syncrelay/relay"
)

// Directory asks the application's own tables who users are, with a query that
// the settings give. It only ever reads.
type Directory struct {
	query string
	pool  *pgxpool.Pool
}

// askSettings are those of the sessions that ask.
var askSettings = map[string]string{
	"default_transaction_read_only": "on",
	"statement_timeout":             "5s",
	"row_security":                  "on", // the application's own rules hold for its tables
	"jit":                           "off",
}

// askers is how many sessions ask at once, at most: one for those who connect and
// two for those who are connected.
const askers = 3

// NewDirectory makes a directory; it connects when it is first asked. The query
// takes the users' IDs as $1, a bigint[], and gives rows of four columns: user ID,
// role, cadet ID (or NULL) and approval (where NULL is none).
func NewDirectory(o Options, query string) (*Directory, error) {
	o = o.withDefaults()
	pool, err := newPool(o.URL, askSettings, askers)
	if err != nil {
		return nil, err
	}
	return &Directory{query: query, pool: pool}, nil
}

// Close closes the sessions.
func (d *Directory) Close() { d.pool.Close() }

// People returns those of the users that there are, in any order.
func (d *Directory) People(ctx context.Context, users []int64) ([]relay.Person, error) {
	var people []relay.Person
	err := d.pool.AcquireFunc(ctx, func(c *pgxpool.Conn) (err error) {
		people, err = ask(ctx, c.Conn(), d.query, users)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask who users are: %w", explainAsking(err, d.pool.Config().ConnConfig))
	}
	return people, nil
}

// ask runs the query. It says itself that $1 is a bigint[], so that one user with
// a number that is too large for an integer column is no error for all others.
func ask(ctx context.Context, conn *pgx.Conn, query string, users []int64) (people []relay.Person, err error) {
	result := conn.PgConn().ExecParams(ctx, query, [][]byte{arrayText(users)}, []uint32{pgtype.Int8ArrayOID}, nil, nil)
	rows := pgx.RowsFromResultReader(conn.TypeMap(), result)
	defer rows.Close()
	for rows.Next() {
		if n := len(rows.FieldDescriptions()); n != personColumns {
			return nil, badQuery(fmt.Sprintf("gives %d columns, and not %d", n, personColumns), nil)
		}
		var user, cadet *int64
		var role *string
		var approved *bool
		if err := rows.Scan(&user, &role, &cadet, &approved); err != nil {
			return nil, badQuery("gives columns of other types", err)
		}
		if user == nil {
			continue // it is nobody who was asked for
		}
		person := relay.Person{Identity: relay.Identity{UserID: *user}, Approved: approved != nil && *approved}
		if role != nil {
			person.Role = *role
		}
		if cadet != nil {
			person.CadetID, person.HasCadet = *cadet, true
		}
		people = append(people, person)
	}
	return people, rows.Err()
}

// personColumns is how many columns the query gives.
const personColumns = 4

func badQuery(what string, cause error) error {
	return &Problem{
		What: "auth.identity_query " + what, Mend: "let it give user ID (bigint), role (text), cadet ID (bigint or null) and approval (boolean), in this order",
		Fatal: true, Cause: cause,
	}
}

// arrayText is an array as Postgres reads it.
func arrayText(numbers []int64) []byte {
	text := []byte{'{'}
	for i, n := range numbers {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, n, 10)
	}
	return append(text, '}')
}

// explainAsking is explain for a query that is not the relay's own.
func explainAsking(err error, c *pgx.ConnConfig) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return explain(err, c)
	}
	p := &Problem{What: "auth.identity_query: " + pg.Message, Fatal: true, Cause: err}
	switch pg.Code {
	case codeNoPrivilege:
		p.Mend = fmt.Sprintf("GRANT SELECT ON what it reads TO %s, and USAGE ON its schema", quote(c.User))
	case codeUndefinedTable, codeUndefinedColumn, codeUndefinedFunction, codeSyntax:
		p.Mend = "correct it; configs/README.md has examples"
	default:
		return explain(err, c)
	}
	return p
}
