package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options say which database, and under which names. Only URL is required.
type Options struct {
	// URL is a connection string as pgx understands it.
	URL string
	// Slot and Publication default to syncrelay.
	Slot, Publication string
	// OwnerTimeout is how long the owner may be silent, as a process that is
	// stopped is, before the server ends its sessions and a standby takes over;
	// default 30 s. The server's clock and timers do the counting.
	OwnerTimeout time.Duration
	Logger       *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Slot == "" {
		o.Slot = "syncrelay"
	}
	if o.Publication == "" {
		o.Publication = "syncrelay"
	}
	if o.OwnerTimeout <= 0 {
		o.OwnerTimeout = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// applicationName is how the relay's sessions call themselves.
const applicationName = "syncrelay"

// oldestServer is the oldest server version that works: row filters, binary
// streams and sessions that end when they are idle came until then.
const oldestServer = 150000

// transactionTimeoutSince is the first version that can limit transactions, and
// so a backlog's.
const transactionTimeoutSince = 170000

// connectTimeout bounds one attempt to connect, operationTimeout one statement
// of the relay's own, which are all short.
const (
	connectTimeout   = 10 * time.Second
	operationTimeout = 30 * time.Second
)

// sessionSettings are those of every session of the relay, whatever the server,
// the database or the role has as its defaults, which are meant for others: a
// limit of statements would break off a long backlog for ever.
var sessionSettings = map[string]string{
	"application_name":                    applicationName,
	"client_encoding":                     "UTF8", // not the database's: clients are sent JSON
	"timezone":                            "UTC",
	"datestyle":                           "ISO",
	"statement_timeout":                   "0", // the relay counts for itself
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"default_transaction_read_only":       "off",
	"default_transaction_isolation":       "read committed",
	"row_security":                        "off", // rows that a policy hides are an error, and not missed
}

// keepAlive finds a peer that has gone without a word within half a minute, while
// a session waits for the server and so sends nothing. What the network does
// not tell, the deadlines of each question find.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// configure sets what every session of the relay needs.
func configure(c *pgx.ConnConfig, settings map[string]string) {
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectTimeout
	}
	c.DialFunc = (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext
	for name, value := range sessionSettings {
		c.RuntimeParams[name] = value
	}
	for name, value := range settings {
		c.RuntimeParams[name] = value
	}
}

// connect opens a session and checks the server's version.
func connect(ctx context.Context, databaseURL string, settings map[string]string) (*pgx.Conn, error) {
	c, err := parse(databaseURL)
	if err != nil {
		return nil, err
	}
	configure(c, settings)
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, explain(err, c)
	}
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var version int
	var name string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version')`).Scan(&version, &name)
	if err == nil && version >= transactionTimeoutSince {
		_, err = conn.Exec(ctx, `SET transaction_timeout = 0`)
	}
	if err == nil && version < oldestServer {
		err = &Problem{What: "the server is PostgreSQL " + name, Mend: "use PostgreSQL 15 or later", Fatal: true}
	}
	if err != nil {
		closeConn(conn)
		return nil, explain(err, c)
	}
	return conn, nil
}

// connectReplication opens a session in which the server speaks the streaming
// replication protocol.
func connectReplication(ctx context.Context, databaseURL string, settings map[string]string) (*pgconn.PgConn, error) {
	c, err := parse(databaseURL)
	if err != nil {
		return nil, err
	}
	configure(c, settings)
	c.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, &c.Config)
	if err != nil {
		return nil, explain(err, c)
	}
	return conn, nil
}

// closeConn ends a session without waiting long for the server's good-bye.
func closeConn(conn interface{ Close(context.Context) error }) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the socket is closed in any case
}

// table is the outbox table as the server knows it.
type table struct {
	name        pgx.Identifier
	partitioned bool
	payloadType uint32 // the OID of the type of its payload
}

const findTable = `
SELECT n.nspname, c.relname, c.relkind = 'p', coalesce(a.atttypid, 0)
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'payload' AND NOT a.attisdropped
 WHERE c.oid = pg_catalog.to_regclass('sync_events')`

// lookUpTable finds the outbox table by the search_path, as writers do.
func lookUpTable(ctx context.Context, conn *pgx.Conn) (table, error) {
	var schema, name string
	var t table
	err := conn.QueryRow(ctx, findTable).Scan(&schema, &name, &t.partitioned, &t.payloadType)
	if err == pgx.ErrNoRows { //nolint:errorlint // Scan returns it bare
		return t, &Problem{What: "there is no table sync_events in database " + conn.Config().Database, Mend: "run syncrelay migrate", Fatal: true}
	}
	if err != nil {
		return t, fmt.Errorf("look up sync_events: %w", explain(err, conn.Config()))
	}
	t.name = pgx.Identifier{schema, name}
	return t, nil
}

// newPool makes a pool of at most so many sessions, none of which is kept for long
// when it is idle. It connects when it is first needed.
func newPool(url string, settings map[string]string, most int32) (*pgxpool.Pool, error) {
	if _, err := parse(url); err != nil {
		return nil, err
	}
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, &Problem{What: "a pool_… parameter of database.url can't be read", Mend: "leave it out", Fatal: true}
	}
	configure(c.ConnConfig, settings)
	c.MaxConns, c.MinConns = most, 0
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		return nil, fmt.Errorf("make a pool of sessions: %w", err)
	}
	return pool, nil
}
