package main

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/schema"
)

func TestMain(m *testing.M) {
	pgtest.Run(m, removeBinary, removeImage, http.DefaultClient.CloseIdleConnections)
}

const testSecret = "a secret of the tests that is long enough"

// product is a database with the schema, and a daemon on it that runs with the
// rights of the relay's own role.
type product struct {
	testing.TB
	url    string // as the superuser
	pool   *pgxpool.Pool
	judge  *pgtest.Judge
	daemon *daemon
	stop   func()
}

// newDatabase prepares a database on the shared server.
func newDatabase(t testing.TB) *product {
	t.Helper()
	return newDatabaseAt(t, pgtest.Database(t))
}

func newDatabaseAt(t testing.TB, databaseURL string) *product {
	t.Helper()
	p := &product{TB: t, url: databaseURL}
	if _, err := schema.Migrate(t.Context(), p.url, schema.Options{}); err != nil {
		t.Fatal(err)
	}
	// Writers hold two transactions at times: a pool of the usual size would make
	// them wait for each other.
	pool, err := pgxpool.New(t.Context(), p.url+"&pool_max_conns=24")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	p.pool = pool
	p.exec(`ALTER ROLE syncrelay_relay LOGIN`)
	p.judge = pgtest.NewJudge(t, p.url)
	return p
}

// newProduct prepares a database and starts a daemon on it.
func newProduct(t testing.TB) *product {
	t.Helper()
	p := newDatabase(t)
	p.start()
	return p
}

// settings of a daemon on this database: environment entries.
func (p *product) settings() []string {
	p.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		p.Fatal(err)
	}
	u.User = url.User("syncrelay_relay")
	return []string{
		"SYNCRELAY_DATABASE_URL=" + u.String(),
		"SYNCRELAY_DATABASE_SLOT=" + strings.TrimPrefix(u.Path, "/"), // slots are the server's
		"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret,
		"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0",
		"SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0",
		"SYNCRELAY_DRAIN_TIMEOUT=5s",
	}
}

// start starts the daemon in this process and waits until it streams.
func (p *product) start(more ...string) {
	p.Helper()
	p.startWith(append(p.settings(), more...))
}

// startWith is start with these settings only.
func (p *product) startWith(environ []string) {
	p.Helper()
	settings, err := configs.Load("", environ)
	if err != nil {
		p.Fatal(err)
	}
	d, err := newDaemon(p.Context(), settings, slog.New(slog.NewTextHandler(p.Output(), nil)))
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.run(ctx) }()
	stopped := false
	p.daemon, p.stop = d, func() {
		p.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				p.Errorf("the daemon ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			p.Error("the daemon did not end within 30 s")
		}
	}
	p.Cleanup(p.stop)
	eventually(p, "the relay streams", func() bool { return d.relay.Status().Phase == relay.Streaming })
}

func (p *product) address() string { return p.daemon.public.Addr().String() }

func (p *product) exec(sql string, args ...any) {
	p.Helper()
	if _, err := p.pool.Exec(p.Context(), sql, args...); err != nil {
		p.Fatalf("%s: %v", sql, err)
	}
}

// rows reads rows of sync_events as a function of their ids.
func (p *product) rows() map[int64]outboxRow {
	p.Helper()
	rows, err := p.pool.Query(p.Context(), `SELECT id, cadet_id, payload->>'n' FROM sync_events`)
	if err != nil {
		p.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[outboxRow])
	if err != nil {
		p.Fatal(err)
	}
	byID := make(map[int64]outboxRow, len(list))
	for _, r := range list {
		byID[r.ID] = r
	}
	return byID
}

type outboxRow struct {
	ID    int64
	Cadet *int64
	N     *string
}

func sign(t testing.TB, c tokenClaims) string {
	t.Helper()
	c.Approved = true
	token, err := signToken(testSecret, c, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func staffToken(t testing.TB) string { return sign(t, tokenClaims{UserID: 1, Role: "admin"}) }

func cadetToken(t testing.TB, cadet int64) string {
	return sign(t, tokenClaims{UserID: 100 + cadet, Role: "cadet", CadetID: cadet})
}
