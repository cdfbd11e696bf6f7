package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/schema"
)

// built is the program, built once for all tests.
var built struct {
	sync.Mutex
	dir string
}

// binary builds the program if it was not yet.
func binary(t testing.TB) (path string) {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "syncrelay-binary-")
		if err != nil {
			t.Fatal(err)
		}
		built.dir = dir
		if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "syncrelay"), ".").CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
	}
	return filepath.Join(built.dir, "syncrelay")
}

func removeBinary() {
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
}

// output is what a program has written, readable while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// program is the built program while it runs.
type program struct {
	testing.TB
	cmd      *exec.Cmd
	out, err *output
	ended    chan struct{}
	code     int
}

// launch starts the program with nothing of this process's environment that is
// a setting.
func launch(t testing.TB, environ []string, args ...string) *program {
	t.Helper()
	cmd := exec.Command(binary(t), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, environ...)
	return launchCommand(t, cmd)
}

// launchCommand starts a program, which is ended with the test.
func launchCommand(t testing.TB, cmd *exec.Cmd) *program {
	t.Helper()
	p := &program{TB: t, cmd: cmd, out: &output{}, err: &output{}, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		var exit *exec.ExitError
		if err := p.cmd.Wait(); errors.As(err, &exit) {
			p.code = exit.ExitCode()
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// wait waits until the program has ended, and returns its exit code.
func (p *program) wait() int {
	p.Helper()
	select {
	case <-p.ended:
		return p.code
	case <-time.After(time.Minute):
		p.Fatalf("the program did not end within a minute:\n%s\n%s", p.out, p.err)
		return -1
	}
}

var listening = regexp.MustCompile(`"address":"([^"]+)","ops_address":"([^"]+)"`)

// addresses waits until the program listens.
func (p *program) addresses() (public, ops string) {
	p.Helper()
	var m []string
	eventually(p, "the program listens", func() bool {
		m = listening.FindStringSubmatch(p.err.String())
		select {
		case <-p.ended:
			p.Fatalf("the program has ended: %s", p.err)
		default:
		}
		return m != nil
	})
	return m[1], m[2]
}

// copyFile copies a file.
func copyFile(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// freeAddress is one that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// get reads a page.
func get(t testing.TB, address string) (status int, body string) {
	t.Helper()
	response, err := http.Get(address)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

func (p *program) ready(public string) {
	p.Helper()
	eventually(p, "the program is ready", func() bool { status, _ := get(p, "http://"+public+"/readyz"); return status == http.StatusOK })
}

func TestTransactionOf300000RowsIsDeliveredWholeInLittleMemory(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	serve := launch(t, p.settings(), "serve")
	public, _ := serve.addresses()
	serve.ready(public)
	const rows = 300_000
	counts := make([]chan error, 2)
	for i, transport := range []string{overWebSocket, overSSE} {
		f := follow(t, transport, public, staffToken(t), -1)
		counts[i] = make(chan error, 1)
		go func() {
			deadline := time.Now().Add(2 * time.Minute)
			for f.count() < rows && time.Now().Before(deadline) && f.failed() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			events := f.got()
			if len(events) != rows {
				counts[i] <- fmt.Errorf("over %s came %d events: %w", transport, len(events), f.failed())
				return
			}
			for k, e := range events {
				if want := fmt.Sprintf(`{"n": %d}`, k+1); string(e.Data) != want || e.EventID != events[0].EventID+int64(k) {
					counts[i] <- fmt.Errorf("over %s event %d is %d with %s, want %s and consecutive IDs", transport, k, e.EventID, e.Data, want)
					return
				}
			}
			counts[i] <- nil
		}()
	}
	p.exec(`INSERT INTO sync_events (event_type, payload) SELECT 'bulk', jsonb_build_object('n', n) FROM generate_series(1, $1::int) n`, rows)
	for _, result := range counts {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
	serve.staysBelow(200)
}

// staysBelow checks the most memory that the program has had so far.
func (p *program) staysBelow(megabytes int) {
	p.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.Skipf("the memory of a process can't be read here: %v", err)
	}
	m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	peak, err := strconv.Atoi(string(m[1]))
	if err != nil {
		p.Fatal(err)
	}
	p.Logf("the relay's memory was %d MB at most", peak/1000)
	if peak > megabytes*1000 {
		p.Errorf("the relay's memory was %d MB at most, want below %d MB", peak/1000, megabytes)
	}
}

// What was written before the first start is read from the table row by row, and
// not gathered.
func TestBacklogOf300000RowsIsReadInLittleMemory(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	const rows = 300_000
	p.exec(`INSERT INTO sync_events (event_type, payload) SELECT 'bulk', jsonb_build_object('n', n, 'text', repeat('x', 1000)) FROM generate_series(1, $1::int) n`, rows)
	serve := launch(t, p.settings(), "serve")
	public, ops := serve.addresses()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if status, _ := get(t, "http://"+public+"/readyz"); status == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program is not ready after two minutes:\n%s", serve.err)
		}
	}
	var journaled, ascending int
	err := p.pool.QueryRow(t.Context(), `
SELECT count(*), count(*) FILTER (WHERE row_id > before OR before IS NULL)
  FROM (SELECT row_id, lag(row_id) OVER (ORDER BY event_id) AS before FROM syncrelay.journal) j`).Scan(&journaled, &ascending)
	if err != nil || journaled != rows || ascending != rows {
		t.Errorf("%d events were journaled, %d of them in the rows' order (%v); want %d", journaled, ascending, err, rows)
	}
	if _, body := get(t, "http://"+ops+"/metrics"); !strings.Contains(body, fmt.Sprintf("\nsyncrelay_recovered_rows_total %g\n", float64(rows))) {
		t.Error("the metrics do not count the rows as recovered")
	}
	if want := fmt.Sprintf(`"msg":"read rows that the slot does not bring","rows":%d,`, rows); !strings.Contains(serve.err.String(), want) {
		t.Errorf("the log does not say %s", want)
	}
	// The rows are 300 MB, and 700 for a process that keeps them.
	serve.staysBelow(300)
}

func TestTermDrainsTellsClientsAndEndsWithZero(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	serve := launch(t, p.settings(), "serve")
	public, ops := serve.addresses()
	serve.ready(public)
	if status, body := get(t, "http://"+ops+"/metrics"); status != http.StatusOK || !strings.Contains(body, "syncrelay_slot_retained_bytes") {
		t.Errorf("/metrics answers %d: %.200s", status, body)
	}
	if status, _ := get(t, "http://"+public+"/metrics"); status != http.StatusNotFound {
		t.Errorf("/metrics on the public address answers %d", status)
	}
	ws := follow(t, overWebSocket, public, staffToken(t), -1)
	sse := follow(t, overSSE, public, staffToken(t), -1)
	p.exec(`INSERT INTO sync_events (event_type) VALUES ('x')`)
	ws.await(t, 1)
	sse.await(t, 1)
	if err := serve.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if code := serve.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, serve.err)
	}
	if took := time.Since(begun); took > 8*time.Second {
		t.Errorf("it took %s, want drain.timeout of 5 s at most, and a little for a busy machine", took)
	}
	<-ws.ended
	<-sse.ended
	var closed *websocket.CloseError
	if !errors.As(ws.failed(), &closed) || closed.Code != websocket.CloseServiceRestart {
		t.Errorf("the WebSocket ended with %v, want close code 1012", ws.failed())
	}
	if strings.Contains(serve.err.String(), ws.token) || strings.Contains(serve.err.String(), testSecret) {
		t.Error("a token or the secret is in the log")
	}
	if left := p.text(`SELECT (confirmed_flush_lsn >= (SELECT high_commit FROM syncrelay.state))::text FROM pg_replication_slots WHERE slot_name = current_database()`); left != "true" {
		t.Error("the slot is not confirmed up to what was journaled")
	}
}

func (p *product) text(sql string) (answer string) {
	p.Helper()
	if err := p.pool.QueryRow(p.Context(), sql).Scan(&answer); err != nil {
		p.Fatalf("%s: %v", sql, err)
	}
	return answer
}

// broken makes a database that serve can't work with.
type broken struct {
	name     string
	settings map[string]string // of the server
	spoil    func(t *testing.T, s *localpg.Server, admin *pgx.Conn) (databaseURL string)
	want     []string
}

func TestDatabaseThatCannotServeIsNamedWithWhatMendsIt(t *testing.T) {
	t.Parallel()
	asRelay := func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
		mustExec(t, admin, `ALTER ROLE syncrelay_relay LOGIN`)
		return s.URLAs("syncrelay_relay", "", "postgres")
	}
	for _, b := range []broken{
		{name: "wal_level", settings: map[string]string{"wal_level": "replica"}, spoil: asRelay,
			want: []string{"wal_level is replica", "ALTER SYSTEM SET wal_level = logical"}},
		{name: "no free slot", settings: map[string]string{"max_replication_slots": "1"},
			spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
				mustExec(t, admin, `SELECT pg_create_physical_replication_slot('other')`)
				return asRelay(t, s, admin)
			}, want: []string{"all replication slots are in use", "max_replication_slots", "pg_drop_replication_slot"}},
		{name: "no REPLICATION", spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
			mustExec(t, admin, `ALTER ROLE syncrelay_relay NOREPLICATION`)
			return asRelay(t, s, admin)
		}, want: []string{`ALTER ROLE "syncrelay_relay" REPLICATION`}},
		{name: "no rights", spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
			mustExec(t, admin, `CREATE ROLE stranger LOGIN REPLICATION`)
			return s.URLAs("stranger", "", "postgres")
		}, want: []string{"permission denied", `GRANT syncrelay_relay TO "stranger"`}},
		{name: "a right taken away", spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
			mustExec(t, admin, `REVOKE UPDATE ON syncrelay.state FROM syncrelay_relay`)
			return asRelay(t, s, admin)
		}, want: []string{"permission denied for table state", "syncrelay doctor"}},
		{name: "no schema", spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
			mustExec(t, admin, `CREATE DATABASE empty`)
			return s.URL("empty")
		}, want: []string{"database empty has none; run syncrelay migrate"}},
		{name: "no database", spoil: func(_ *testing.T, s *localpg.Server, _ *pgx.Conn) string { return s.URL("nowhere") },
			want: []string{`database "nowhere" does not exist`, "CREATE DATABASE"}},
		{name: "wrong password", spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
			mustExec(t, admin, `CREATE ROLE locked LOGIN PASSWORD 'right'`)
			hba := filepath.Join(s.DataDir(), "pg_hba.conf")
			rules, err := os.ReadFile(hba)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(hba, append([]byte("host all locked 127.0.0.1/32 scram-sha-256\n"), rules...), 0o600); err != nil {
				t.Fatal(err)
			}
			mustExec(t, admin, `SELECT pg_reload_conf()`)
			url := s.URLAs("locked", "hunter2", "postgres")
			eventually(t, "the password is asked for", func() bool {
				conn, err := pgx.Connect(t.Context(), url)
				if err == nil {
					_ = conn.Close(t.Context())
				}
				return err != nil
			})
			return url
		}, want: []string{`password authentication failed for user "locked"`, "ALTER ROLE \"locked\" PASSWORD"}},
		{name: "slot of another plugin", spoil: func(t *testing.T, s *localpg.Server, admin *pgx.Conn) string {
			mustExec(t, admin, `SELECT pg_create_logical_replication_slot('syncrelay', 'test_decoding')`)
			return asRelay(t, s, admin)
		}, want: []string{`slot "syncrelay" is there already`, "test_decoding", "database.slot"}},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			s := pgtest.Own(t, localpg.Options{Settings: b.settings})
			if _, err := schema.Migrate(t.Context(), s.URL("postgres"), schema.Options{}); err != nil {
				t.Fatal(err)
			}
			admin, err := pgx.Connect(t.Context(), s.URL("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = admin.Close(context.Background()) }()
			serve := launch(t, []string{
				"SYNCRELAY_DATABASE_URL=" + b.spoil(t, s, admin), "SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret,
				"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0", "SYNCRELAY_LOG_LEVEL=error",
			}, "serve")
			if code := serve.wait(); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			said := serve.err.String()
			for _, want := range b.want {
				if !strings.Contains(said, want) {
					t.Errorf("it said %q, want %q in it", said, want)
				}
			}
			if strings.Count(said, "\n") != 1 || strings.Contains(said, "hunter2") {
				t.Errorf("not one line, or a secret in it: %q", said)
			}
		})
	}
}

func mustExec(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestUnreachableDatabaseIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := pgtest.Own(t, localpg.Options{})
	if _, err := schema.Migrate(t.Context(), s.URL("postgres"), schema.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Shutdown(t.Context(), localpg.Fast); err != nil {
		t.Fatal(err)
	}
	serve := launch(t, []string{
		"SYNCRELAY_DATABASE_URL=" + s.URL("postgres"), "SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret,
		"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0",
	}, "serve")
	public, _ := serve.addresses()
	eventually(t, "the reason is told", func() bool {
		status, body := get(t, "http://"+public+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "can't be reached")
	})
	if status, _ := get(t, "http://"+public+"/healthz"); status != http.StatusOK {
		t.Errorf("/healthz answers %d while the database is away", status)
	}
	f, err := tryFollow(t.Context(), overSSE, public, staffToken(t), -1)
	if err == nil {
		f.stop()
	}
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a client is answered %v, want 503", err)
	}
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	serve.ready(public)
}

func TestTakenAddressIsNamed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	serve := launch(t, []string{
		"SYNCRELAY_DATABASE_URL=postgres://127.0.0.1:1/x", "SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret,
		"SYNCRELAY_LISTEN_ADDRESS=" + l.Addr().String(),
	}, "serve")
	if code := serve.wait(); code != 1 || !strings.Contains(serve.err.String(), "listen.address "+l.Addr().String()) {
		t.Errorf("exit code %d: %s", code, serve.err)
	}
}

func TestDevShowsEventsAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	home, err := os.MkdirTemp("", "dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	args := []string{"dev", "--address", "127.0.0.1:0", "--ops-address", "127.0.0.1:0"}
	if bin := os.Getenv(pgtest.BinVariable); bin != "" {
		args = append(args, "--postgres-bin", bin)
	}
	dev := launch(t, []string{"TMPDIR=" + home}, args...)
	eventually(t, "events are shown", func() bool { return strings.Count(dev.out.String(), `"event_id":`) >= 3 })
	said := dev.out.String()
	stream := regexp.MustCompile(`curl -N '(http://[^']+)'`).FindStringSubmatch(said)
	if stream == nil {
		t.Fatalf("there is no line to paste in\n%s", said)
	}
	u, err := url.Parse(stream[1])
	if err != nil {
		t.Fatal(err)
	}
	f := follow(t, overSSE, u.Host, u.Query().Get("token"), 0)
	eventually(t, "the pasted line brings events", func() bool { return f.count() > 0 })
	for _, want := range []string{"# admin", "# training staff", "# cadet 1", "# cadet 2", "npx wscat -c", "ws://", "console     http://" + u.Host + "/", "/metrics", "psql '"} {
		if !strings.Contains(said, want) {
			t.Errorf("dev does not print %q", want)
		}
	}
	if status, body := get(t, "http://"+u.Host+"/"); status != http.StatusOK || !strings.Contains(body, "/console/main.js") {
		t.Errorf("the console answers %d", status)
	}
	if err := dev.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := dev.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, dev.err)
	}
	left, err := os.ReadDir(home)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if out, _ := exec.Command("pgrep", "-f", home).Output(); len(out) > 0 {
		t.Errorf("processes are left: %s", out)
	}
}

func TestTokenVersionAndUsage(t *testing.T) {
	t.Parallel()
	secret := []string{"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret}
	for _, c := range []struct {
		args    []string
		environ []string
		code    int
		want    string
	}{
		{[]string{"version"}, nil, 0, "syncrelay "},
		{[]string{"token", "--user", "5", "--role", "cadet", "--cadet", "17", "--ttl", "2h"}, secret, 0, "ey"},
		{[]string{"token", "--user", "5", "--role", "cadet"}, nil, 1, "auth.hmac_secret (environment SYNCRELAY_AUTH_HMAC_SECRET): found nothing"},
		{[]string{"token", "--role", "cadet"}, secret, 2, "--user is 0"},
		{[]string{"token", "--user", "5", "--role", "a b"}, secret, 2, `--role is "a b"`},
		{[]string{"token", "--user", "5", "--role", "a", "--cadet", "-1"}, secret, 2, "--cadet is -1"},
		{[]string{"token", "--user", "5", "--role", "a", "--ttl", "0s"}, secret, 2, "--ttl is 0s"},
		{[]string{"serv"}, nil, 2, `"serv"`},
		{[]string{"serve", "--conifg", "x"}, nil, 2, "unknown flag: --conifg"},
		{[]string{"serve", "--config", "/nowhere"}, nil, 1, "/nowhere"},
		{[]string{"serve"}, nil, 1, "database.url (environment SYNCRELAY_DATABASE_URL): found nothing"},
		{[]string{"migrate"}, []string{"SYNCRELAY_DATABASE_URL=postgres://127.0.0.1:1/x"}, 1, "syncrelay: migrate: the database can't be reached"},
		{[]string{}, nil, 0, "Usage:"},
	} {
		var out, errs bytes.Buffer
		code := run(t.Context(), c.args, streams{&out, &errs, c.environ})
		if both := out.String() + errs.String(); code != c.code || !strings.Contains(both, c.want) || strings.Count(errs.String(), "\n") > max(1, strings.Count(errs.String(), "found nothing")) {
			t.Errorf("%v: exit code %d, said %q; want %d and %q", c.args, code, both, c.code, c.want)
		}
	}
	var out bytes.Buffer
	if code := run(t.Context(), []string{"version", "--json"}, streams{&out, &out, nil}); code != 0 || !json.Valid(out.Bytes()) {
		t.Errorf("version --json: exit code %d, %s", code, out.String())
	}
}
