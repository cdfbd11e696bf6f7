package schema

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrations embed.FS

//go:embed demo/*.sql
var demo embed.FS

//go:embed converge.sql
var converge string

// Options of a migration. The zero value is right for most.
type Options struct {
	// Publication is the publication's name; syncrelay by default.
	Publication string
	Logger      *slog.Logger
	// Progress is told every ProgressInterval (default 3 s) how a migration goes;
	// nobody is if it is nil.
	Progress         func(Progress)
	ProgressInterval time.Duration
}

// Report says what a migration has done.
type Report struct {
	// Applied are the files that were applied, in order; none if the schema was
	// up to date.
	Applied []string
	// Warnings are what the migrating role may not do, each with the statement
	// that does it.
	Warnings []string
}

// oldestServer is the oldest version of the server that is supported.
const oldestServer = 150000

// The advisory locks under which schemas change: of goose's own session, and of
// converge.sql. Any number that nobody else uses will do.
const (
	lockMigrate  = 0x73796e63_6d696772
	lockConverge = 0x73796e63_636f6e76
)

// Migrate brings a database's schema up to date: it makes what is missing,
// adopts a sync_events table that is there, and sets roles, grants and the
// publication right. It may be run again, and by several processes at once.
//
// It needs the rights of the database's owner, and to create roles; what it may
// not do is in the report, and does not stop it.
func Migrate(ctx context.Context, databaseURL string, o Options) (Report, error) {
	if o.Publication == "" {
		o.Publication = "syncrelay"
	}
	return run(ctx, databaseURL, o, migrations, "migrations", "syncrelay.schema_version", func(ctx context.Context, conn *pgx.Conn) error {
		return settle(ctx, conn, o.Publication)
	})
}

// MigrateDemo adds the demo grading tables, in schema demo, to a database that
// [Migrate] has brought up to date.
func MigrateDemo(ctx context.Context, databaseURL string, o Options) (Report, error) {
	return run(ctx, databaseURL, o, demo, "demo", "syncrelay.demo_version", nil)
}

func run(ctx context.Context, databaseURL string, o Options, files embed.FS, dir, versions string, after func(context.Context, *pgx.Conn) error) (report Report, err error) {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return report, errors.New("the database's URL can't be read; write it as postgres://user:password@host:5432/database")
	}
	config.RuntimeParams["application_name"] = "syncrelay migrate " + rand.Text()[:8] // so that watch knows this one
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" {
			report.Warnings = append(report.Warnings, hinted(n.Message, n.Hint))
			logger.Warn(n.Message, "mend", n.Hint)
		}
	}
	if o.Progress != nil {
		watching, end := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			watch(watching, config, o)
		}()
		defer func() { end(); <-ended }()
	}
	db := stdlib.OpenDB(*config)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := prepare(ctx, db); err != nil {
		return report, explain(err)
	}
	provider, err := newProvider(db, files, dir, versions)
	if err != nil {
		return report, err
	}
	results, err := provider.Up(ctx)
	for _, r := range results {
		report.Applied = append(report.Applied, r.Source.Path)
		logger.Info("applied a migration", "file", r.Source.Path, "took", r.Duration)
	}
	if err != nil {
		return report, explain(err)
	}
	if after == nil {
		return report, nil
	}
	return report, explain(withConn(ctx, db, after))
}

func newProvider(db *sql.DB, files embed.FS, dir, versions string) (*goose.Provider, error) {
	sub, err := fs.Sub(files, dir)
	if err != nil {
		return nil, fmt.Errorf("open the embedded migrations: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockID(lockMigrate), lock.WithLockTimeout(1, 600))
	if err != nil {
		return nil, fmt.Errorf("make the migrations' lock: %w", err)
	}
	store, err := database.NewStore(goose.DialectPostgres, versions)
	if err != nil {
		return nil, fmt.Errorf("name the migrations' table: %w", err)
	}
	provider, err := goose.NewProvider("", db, sub, goose.WithStore(store), goose.WithSessionLocker(locker))
	if err != nil {
		return nil, fmt.Errorf("read the embedded migrations: %w", err)
	}
	return provider, nil
}

// prepare checks the server and a table that is there, and makes the schema that the versions stand in.
func prepare(ctx context.Context, db *sql.DB) error {
	return withConn(ctx, db, func(ctx context.Context, conn *pgx.Conn) error {
		var version int
		var name string
		if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version')`).Scan(&version, &name); err != nil {
			return err
		}
		if version < oldestServer {
			return fmt.Errorf("the server is PostgreSQL %s; use PostgreSQL 15 or later", name)
		}
		if err := fits(ctx, conn, true); err != nil {
			return err
		}
		return underLock(ctx, conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS syncrelay`)
			return err
		})
	})
}

// settle makes hold what must hold after each run.
func settle(ctx context.Context, conn *pgx.Conn, publication string) error {
	return underLock(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, converge); err != nil {
			return err
		}
		return publish(ctx, tx, publication)
	})
}

// underLock runs a transaction that no other migration runs beside.
func underLock(ctx context.Context, conn *pgx.Conn, do func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(lockConverge)); err != nil {
			return err
		}
		return do(tx)
	})
}

// publish makes the publication, or sets it right: inserts only, through the
// partition root.
func publish(ctx context.Context, tx pgx.Tx, name string) error {
	quoted := pgx.Identifier{name}.Sanitize()
	var exists, has, right, owned bool
	var table string
	err := tx.QueryRow(ctx, `
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1),
       EXISTS (SELECT FROM pg_publication p LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid
                WHERE p.pubname = $1 AND (p.puballtables OR r.prrelid = 'sync_events'::regclass)),
       EXISTS (SELECT FROM pg_publication WHERE pubname = $1 AND pubviaroot
                  AND pubinsert AND NOT pubupdate AND NOT pubdelete AND NOT pubtruncate),
       EXISTS (SELECT FROM pg_publication p JOIN pg_roles o ON o.oid = p.pubowner
                WHERE p.pubname = $1 AND o.rolname = 'syncrelay_relay'),
       'sync_events'::regclass::text`, name).Scan(&exists, &has, &right, &owned, &table)
	if err != nil {
		return fmt.Errorf("look up publication %q: %w", name, err)
	}
	const properties = `publish = 'insert', publish_via_partition_root = true`
	var statements []string
	switch {
	case !exists:
		statements = []string{`CREATE PUBLICATION ` + quoted + ` FOR TABLE ` + table + ` WITH (` + properties + `)`}
	case !has:
		statements = []string{`ALTER PUBLICATION ` + quoted + ` ADD TABLE ` + table, `ALTER PUBLICATION ` + quoted + ` SET (` + properties + `)`}
	case !right: // only then, because a relay reads its backlog anew after a change
		statements = []string{`ALTER PUBLICATION ` + quoted + ` SET (` + properties + `)`}
	}
	// Its owner makes it again if somebody drops it. Who is not a member of the
	// role may not give it away, and then keeps it.
	if !owned {
		statements = append(statements, `DO $$ BEGIN ALTER PUBLICATION `+quoted+` OWNER TO syncrelay_relay;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN NULL; END $$`)
	}
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("publication %q: %w", name, err)
		}
	}
	return nil
}

func withConn(ctx context.Context, db *sql.DB, do func(context.Context, *pgx.Conn) error) error {
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // back to the pool
	return conn.Raw(func(driver any) error {
		return do(ctx, driver.(*stdlib.Conn).Conn()) //nolint:forcetypeassert // stdlib.OpenDB makes no other
	})
}

// explain makes one line of a server's error, with its hint.
func explain(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return unreachable(err)
	}
	mend := pg.Hint
	switch pg.Code {
	case "28P01", "28000":
		mend = "set another user or password in the database's URL"
	case "3D000":
		mend = "CREATE DATABASE, or name another one in the database's URL"
	case "55P03":
		mend = "a long transaction uses the table: let it end, and run syncrelay migrate again"
	case "42501":
		if mend == "" {
			mend = "run syncrelay migrate as the database's owner"
		}
	}
	return &Error{Line: hinted(pg.Message, mend), cause: err}
}

// unreachable makes one line of an error of connecting, which has a line for
// each address that was tried.
func unreachable(err error) error {
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return err
	}
	lines := strings.Split(strings.TrimSpace(connect.Error()), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	return &Error{Line: "the database can't be reached: " + last + "; to mend it: start it, or correct its URL", cause: err}
}

// Error is an error of the server on one line, with what mends it.
type Error struct {
	Line  string
	cause error
}

func (e *Error) Error() string { return e.Line }

// Unwrap returns the server's own error.
func (e *Error) Unwrap() error { return e.cause }

func hinted(message, hint string) string {
	message = strings.ReplaceAll(strings.TrimSuffix(message, "."), "\n", " ")
	if hint == "" {
		return message
	}
	return message + "; to mend it: " + strings.TrimSuffix(hint, ".")
}

// ErrVersion: the schema is missing, or of another version than this program's.
var ErrVersion = errors.New("the database's schema does not fit")

// Verify checks that a database's schema is the one that this program works
// with, and that the session's role can see the outbox's rows and tell them
// apart. Its error is one line that says what to do.
func Verify(ctx context.Context, conn *pgx.Conn) error {
	var found int64
	err := conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM syncrelay.schema_version WHERE is_applied`).Scan(&found)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000"):
		return fmt.Errorf("%w: database %s has none; run syncrelay migrate", ErrVersion, conn.Config().Database)
	case err != nil:
		return fmt.Errorf("read the schema's version: %w", err)
	}
	want, err := latest()
	if err != nil {
		return err
	}
	switch {
	case found < want:
		return fmt.Errorf("%w: it is version %d, this program needs %d; run syncrelay migrate", ErrVersion, found, want)
	case found > want:
		return fmt.Errorf("%w: it is version %d, this program knows %d; use the newer program that has migrated it", ErrVersion, found, want)
	}
	return fits(ctx, conn, false)
}

// latest is the version of the newest migration.
func latest() (version int64, err error) {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		return 0, fmt.Errorf("list the embedded migrations: %w", err)
	}
	for _, f := range files {
		v, err := goose.NumericComponent(f)
		if err != nil {
			return 0, fmt.Errorf("read the version of %s: %w", f, err)
		}
		version = max(version, v)
	}
	return version, nil
}
