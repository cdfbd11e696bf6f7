// Package pgtest gives tests a real Postgres: one server for all tests of a
// process, with a database of its own for each, or a server of its own for a
// test that crashes it.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/syncrelay/syncrelay/outbox/localpg"
)

// BinVariable is the environment variable that names the directory of the
// server's programs, for a run of the tests on another version.
const BinVariable = "SYNCRELAY_TEST_POSTGRES_BIN"

// stopTimeout bounds the orderly end of a server.
const stopTimeout = 60 * time.Second

// shared is the server of this process, started by the first test that needs it.
var shared struct {
	sync.Mutex
	server    *localpg.Server
	databases int
}

// Run runs a package's tests, stops the shared server, calls what is to be done
// at the end, and exits. It fails if a goroutine or a temporary file is left:
//
//	func TestMain(m *testing.M) { pgtest.Run(m) }
func Run(m *testing.M, atEnd ...func()) {
	status := 1
	if _, err := temporary(); err == nil {
		status = m.Run()
	}
	if err := tidy(atEnd); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	os.Exit(status)
}

// tidy ends what the tests share and looks for what they have left.
func tidy(atEnd []func()) error {
	shared.Lock()
	defer shared.Unlock()
	var failed error
	if shared.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := shared.server.Stop(ctx); err != nil {
			failed = fmt.Errorf("stop the tests' Postgres: %w", err)
		}
	}
	for _, do := range atEnd {
		do()
	}
	// The proxy that plays a bad network leaves its own behind.
	err := goleak.Find(
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).read"),
		goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2.(*ToxicLink).write"),
	)
	if err != nil {
		failed = errors.Join(failed, err)
	}
	return errors.Join(failed, emptied())
}

// temporary is this process's directory for temporary files, so that what is
// left in it is known to be the tests'.
var temporary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "syncrelay-test-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // Postgres may be another user's
		return "", err
	}
	return dir, os.Setenv("TMPDIR", dir)
})

// emptied removes the directory for temporary files, and fails if something was
// left in it.
func emptied() error {
	dir, err := temporary()
	if err != nil {
		return err
	}
	left, err := os.ReadDir(dir)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("the tests have left %d temporary files, %s among them", len(left), left[0].Name())
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// Server is the shared server. Its data does not outlive it, so it does not wait
// for the disk; a test of crashes wants a server of its own.
func Server(t testing.TB) *localpg.Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		s, err := localpg.Start(context.Background(), localpg.Options{
			BinDir:   os.Getenv(BinVariable),
			Settings: map[string]string{"fsync": "off", "full_page_writes": "off"},
		})
		if err != nil {
			t.Fatalf("start a Postgres for the tests: %v", err)
		}
		shared.server = s
	}
	return shared.server
}

// Database makes an empty database on the shared server and returns its URL, as
// the superuser. At the end of the test it is dropped, and its slots with it. The
// test fails if a session is still there then.
func Database(t testing.TB) string {
	t.Helper()
	s := Server(t)
	shared.Lock()
	shared.databases++
	name := fmt.Sprintf("test_%d", shared.databases)
	shared.Unlock()
	administer(t, s, `CREATE DATABASE `+name)
	t.Cleanup(func() {
		nothingLeft(t, s, name)
		administer(t, s, `SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE database = $1 AND active`, name)
		administer(t, s, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1`, name)
		administer(t, s, `DROP DATABASE `+name+` WITH (FORCE)`)
	})
	return s.URL(name)
}

func administer(t testing.TB, s *localpg.Server, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		t.Errorf("connect to the tests' Postgres: %v", err)
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		t.Errorf("%s: %v", sql, err)
	}
}

// Own starts a server for this test alone, which it may crash.
func Own(t testing.TB, o localpg.Options) *localpg.Server {
	t.Helper()
	if o.BinDir == "" {
		o.BinDir = os.Getenv(BinVariable)
	}
	s, err := localpg.Start(t.Context(), o)
	if err != nil {
		t.Fatalf("start a Postgres for this test: %v", err)
	}
	t.Cleanup(func() {
		nothingLeft(t, s, "")
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop this test's Postgres: %v", err)
		}
	})
	return s
}
