package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/schema"
)

// server is the Postgres that is measured on: one of the bench's own, or the
// operator's. On the latter the bench makes databases of its own, and drops them.
type server struct {
	url     string
	own     *localpg.Server // nil for the operator's
	version string
	prefix  string   // of the names of databases and slots
	made    int      // databases
	roles   []string // those that were there before
}

// settings of a server of the bench's own: large transactions must not wait for
// the checkpoints of a server that was made for small ones. Everything else is as
// it comes, fsync too.
func settings() map[string]string {
	return map[string]string{"max_wal_size": "4GB", "checkpoint_timeout": "30min"}
}

func (b *bench) startServer(ctx context.Context) (*server, error) {
	s := &server{url: b.o.DatabaseURL, prefix: "syncrelay_bench_" + strings.ToLower(rand.Text()[:8])}
	if s.url == "" {
		b.progress("starting Postgres")
		// Ctrl-C must not cut off the start of the server half way: it is stopped in the end.
		own, err := localpg.Start(context.WithoutCancel(ctx), localpg.Options{BinDir: b.o.PostgresBin, Settings: settings()})
		if err != nil {
			return nil, err
		}
		s.own, s.url = own, own.URL("postgres")
	}
	err := s.administer(ctx, func(conn *pgx.Conn) error {
		var level string
		if err := conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('wal_level')`).Scan(&s.version, &level); err != nil {
			return fmt.Errorf("ask the server for its version: %w", err)
		}
		if level != "logical" {
			return fmt.Errorf("the server's wal_level is %s; the relay needs logical: ALTER SYSTEM SET wal_level = logical, and restart Postgres", level)
		}
		rows, err := conn.Query(ctx, `SELECT rolname FROM pg_roles WHERE rolname LIKE 'syncrelay\_%'`)
		if err == nil {
			s.roles, err = pgx.CollectRows(rows, pgx.RowTo[string])
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, s.stop(ctx))
	}
	return s, nil
}

// administer runs something in a session of the server's own database.
func (s *server) administer(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return do(conn)
}

// cleanupTimeout bounds each step of what is done in the end, and after Ctrl-C.
const cleanupTimeout = 60 * time.Second

// stop removes what the bench has made. Its databases have been dropped.
func (s *server) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if s.own != nil {
		return s.own.Stop(ctx)
	}
	return s.administer(ctx, func(conn *pgx.Conn) error {
		for _, role := range []string{"syncrelay_relay", "syncrelay_writer"} {
			if slices.Contains(s.roles, role) {
				continue
			}
			if _, err := conn.Exec(ctx, `DROP ROLE IF EXISTS `+role); err != nil {
				return fmt.Errorf("drop role %s, which the bench has made: %w", role, err)
			}
		}
		return nil
	})
}

// database is a database of the bench's own, with the schema.
type database struct {
	server    *server
	name, url string
	pool      *pgxpool.Pool
	dropped   bool
}

// poolSize is how many sessions write at most.
const poolSize = 16

// newDatabase makes a database for one measurement, which nothing has been
// written to.
func (b *bench) newDatabase(ctx context.Context) (*database, error) {
	s := b.server
	s.made++
	db := &database{server: s, name: fmt.Sprintf("%s_%d", s.prefix, s.made)}
	var err error
	if db.url, err = withDatabase(s.url, db.name); err != nil {
		return nil, err
	}
	err = s.administer(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `CREATE DATABASE `+db.name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a database: %w", err)
	}
	b.databases = append(b.databases, db)
	if _, err := schema.Migrate(ctx, db.url, schema.Options{}); err != nil {
		return nil, fmt.Errorf("migrate database %s: %w", db.name, err)
	}
	config, err := pgxpool.ParseConfig(db.url)
	if err != nil {
		return nil, fmt.Errorf("read the database's URL: %w", err)
	}
	config.MaxConns = poolSize
	if db.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", db.name, err)
	}
	return db, nil
}

// withDatabase is a connection string with another database in it.
func withDatabase(connection, name string) (string, error) {
	if !strings.HasPrefix(connection, "postgres://") && !strings.HasPrefix(connection, "postgresql://") {
		return connection + " dbname=" + name, nil
	}
	u, err := url.Parse(connection)
	if err != nil {
		return "", errors.New("the database's URL can't be read; write it as postgres://user:password@host:5432/database")
	}
	query := u.Query()
	query.Del("dbname")
	query.Del("database")
	u.Path, u.RawQuery = "/"+name, query.Encode()
	return u.String(), nil
}

// drop removes the database and its slots. Dropping twice is safe.
func (db *database) drop(ctx context.Context) error {
	if db.dropped {
		return nil
	}
	if db.pool != nil {
		db.pool.Close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	err := db.server.administer(ctx, func(conn *pgx.Conn) error {
		for _, sql := range []string{
			`SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE database = '` + db.name + `' AND active`,
			`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '` + db.name + `'`,
			`DROP DATABASE ` + db.name + ` WITH (FORCE)`,
		} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("drop database %s, which the bench has made: %w", db.name, err)
	}
	db.dropped = true
	return nil
}

// exec runs a statement.
func (db *database) exec(ctx context.Context, sql string, args ...any) error {
	if _, err := db.pool.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// newSlot makes a slot for a floor, which brings what is written from now on.
func (db *database) newSlot(ctx context.Context) (name string, err error) {
	name = db.name + "_floor"
	return name, db.exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name)
}

// dropSlot removes it. The floor has ended, but the server may not know yet.
func (db *database) dropSlot(ctx context.Context, name string) error {
	err := db.exec(ctx, `SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE slot_name = $1 AND active`, name)
	if err == nil {
		err = db.exec(ctx, `SELECT pg_drop_replication_slot($1)`, name)
	}
	return err
}

// settlePatience is how long the server may take to note by itself, with nobody to
// ask it to, where a reader of the log could begin.
const settlePatience = 20 * time.Second

// settleSlot waits until the relay's slot need not be read from before the present
// again. A server begins each reading at the last place that it has noted for it,
// which is up to fifteen seconds back, or at the last checkpoint: right after a load
// it would read all of that once more before anything new, which the floor's new
// slot does not.
func (db *database) settleSlot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settlePatience)
	defer cancel()
	var now string
	if err := db.pool.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&now); err != nil {
		return fmt.Errorf("ask where the server's log is: %w", err)
	}
	if err := db.exec(ctx, `CHECKPOINT`); err != nil {
		// The role may not: the server will do it by itself.
		if ctx.Err() != nil {
			return err
		}
	}
	for {
		var settled bool
		err := db.pool.QueryRow(ctx, `SELECT coalesce(bool_and(restart_lsn >= $1::text::pg_lsn), true) FROM pg_replication_slots WHERE slot_name = $2`, now, db.name).Scan(&settled)
		switch {
		case ctx.Err() != nil || err == nil && settled:
			return nil // or as good as it gets
		case err != nil:
			return fmt.Errorf("ask where the slot would be read from: %w", err)
		}
		// The note is written into the log with what is written next.
		if err := db.exec(ctx, `SELECT pg_logical_emit_message(true, 'syncrelay bench', '')`); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}
