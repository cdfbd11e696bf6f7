package localpg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Options are a server's settings. The zero value is a throw-away server.
type Options struct {
	// BinDir holds the programs postgres and initdb; see [Find] for where they
	// are looked for if it is empty.
	BinDir string
	// DataDir is kept when the server stops, and used again. If it is empty, a
	// temporary one is made and removed.
	DataDir string
	// Port to listen on at 127.0.0.1; a free one if 0.
	Port int
	// Settings are added to the configuration, and win over it. An empty one leaves
	// to the configuration what this package would set.
	Settings map[string]string
	Logger   *slog.Logger
}

// startTimeout bounds the start of a server, recovery after a crash included.
const startTimeout = 60 * time.Second

// Server is a running Postgres.
type Server struct {
	o       Options
	binDir  string
	version int
	own     string // a directory of this server's: its socket, and its data if it is throw-away
	dataDir string
	port    int
	account *account

	mu      sync.Mutex
	process *process // nil while the server is down
}

// Start starts a server and returns when it answers. If the caller is root, the
// server runs as an unprivileged user.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, port: o.Port, dataDir: o.DataDir}
	if s.binDir, s.version, err = findOrFetch(ctx, o.BinDir); err != nil {
		return nil, err
	}
	if s.account, err = unprivileged(); err != nil {
		return nil, err
	}
	if s.own, err = os.MkdirTemp("", "syncrelay-postgres-"); err != nil {
		return nil, fmt.Errorf("make a directory for Postgres: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(s.own)
		}
	}()
	if err := s.account.own(s.own); err != nil {
		return nil, err
	}
	if err := s.prepareData(ctx); err != nil {
		return nil, err
	}
	if err := s.launch(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// prepareData makes the data directory's cluster if there is none.
func (s *Server) prepareData(ctx context.Context) error {
	if s.dataDir == "" {
		s.dataDir = filepath.Join(s.own, "data")
	}
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return fmt.Errorf("find the data directory %s: %w", s.dataDir, err)
	}
	s.dataDir = dir
	switch found, err := os.ReadFile(filepath.Join(dir, "PG_VERSION")); { //nolint:gosec // the caller's own directory
	case err == nil:
		if version := strings.TrimSpace(string(found)); version != strconv.Itoa(s.version) {
			return fmt.Errorf("data directory %s is of PostgreSQL %s, and the programs in %s are of %d: use those of %s, or another directory", dir, version, s.binDir, s.version, version)
		}
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("look into the data directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look into the data directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("data directory %s holds something else than a Postgres cluster (%s): name an empty or a new one", dir, entries[0].Name())
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	if err := s.account.own(dir); err != nil {
		return err
	}
	if err := s.account.reaches(dir); err != nil {
		return err
	}
	initdb := exec.CommandContext(ctx, filepath.Join(s.binDir, program("initdb")), "-D", dir, "-U", "postgres", //nolint:gosec // the programs that were found
		"-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	s.account.prepare(initdb)
	initdb.Dir, initdb.Env = s.own, environment()
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("make a Postgres cluster in %s: %w: %s", dir, err, lastLines(out))
	}
	return nil
}

// environment is this process's without the variables that would change what a
// server or a client of Postgres does.
func environment() []string {
	kept := []string{"LC_ALL=C", "TZ=UTC"}
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "PG") && !strings.HasPrefix(entry, "LC_") && !strings.HasPrefix(entry, "TZ=") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// launch starts the server's process and waits until it answers.
func (s *Server) launch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	const attempts = 5
	for attempt := 1; ; attempt++ {
		chosen := s.port == 0
		if chosen {
			port, err := freePort(ctx)
			if err != nil {
				return err
			}
			s.port = port
		}
		err := s.launchOnce(ctx)
		if err == nil || !chosen || attempt == attempts || !strings.Contains(err.Error(), "Address already in use") {
			return err
		}
		s.port = 0 // somebody was quicker at that port
	}
}

func (s *Server) launchOnce(ctx context.Context) error {
	args := []string{"-D", s.dataDir, "-p", strconv.Itoa(s.port)}
	for name, value := range s.settings() {
		args = append(args, "-c", name+"="+value)
	}
	p, err := s.startProcess(args)
	if err != nil {
		return fmt.Errorf("start Postgres: %w", err)
	}
	for {
		conn, err := pgconn.Connect(ctx, s.URL("postgres"))
		if err == nil {
			_ = conn.Close(ctx)
			s.mu.Lock()
			s.process = p
			s.mu.Unlock()
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("Postgres did not start in %s: %s", s.dataDir, lastLines(s.logTail()))
		case <-ctx.Done():
			p.kill()
			return fmt.Errorf("Postgres did not answer within %s: %w: %s", startTimeout, err, lastLines(s.logTail()))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// settings of the server: what logical replication and the tests of it need.
func (s *Server) settings() map[string]string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": s.own,
		"wal_level":               "logical",
		"max_replication_slots":   "64",
		"max_wal_senders":         "64",
		"max_connections":         "200",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"logging_collector":       "off",
	}
	for name, value := range s.o.Settings {
		settings[name] = value
	}
	maps.DeleteFunc(settings, func(_, value string) bool { return value == "" })
	return settings
}

// freePort asks the system for a port that nobody listens on.
func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // a TCP listener has a TCP address
	return port, l.Close()
}

// URL is the connection string of a database, as the superuser.
func (s *Server) URL(database string) string { return s.URLAs("postgres", "", database) }

// URLAs is the connection string of a database for a role. Passwords are not asked for.
func (s *Server) URLAs(role, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(role), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), Path: "/" + database, RawQuery: "sslmode=disable"}
	if password != "" {
		u.User = url.UserPassword(role, password)
	}
	return u.String()
}

// Version is the server's major version.
func (s *Server) Version() int { return s.version }

// Port is the port that the server listens on at 127.0.0.1.
func (s *Server) Port() int { return s.port }

// DataDir is the server's data directory.
func (s *Server) DataDir() string { return s.dataDir }

// LogFile is where the server's messages go.
func (s *Server) LogFile() string { return filepath.Join(s.own, "postgres.log") }

func (s *Server) logTail() []byte {
	log, _ := os.ReadFile(s.LogFile()) // no log is no lines
	return log
}

// Mode is a way to shut a server down.
type Mode int

// The modes of a shutdown, as pg_ctl names them.
const (
	// Fast ends the sessions and shuts down in order.
	Fast Mode = iota
	// Immediate ends without order: the next start recovers.
	Immediate
)

// Shutdown ends the server's processes and keeps its data. It is no error if the
// server is down already.
func (s *Server) Shutdown(ctx context.Context, mode Mode) error {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := p.interrupt(mode); err != nil {
		return fmt.Errorf("shut Postgres down: %w", err)
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		return fmt.Errorf("Postgres did not shut down: %w: %s", ctx.Err(), lastLines(s.logTail()))
	}
	s.down()
	return nil
}

// Kill kills every process of the server, as a power cut does. The data stays.
func (s *Server) Kill() error {
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p == nil {
		return errors.New("Postgres is down already")
	}
	p.kill()
	s.down()
	return nil
}

func (s *Server) down() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.process = nil
}

// StartAgain starts a server that was shut down or killed, on the same data and
// the same port.
func (s *Server) StartAgain(ctx context.Context) error { return s.launch(ctx) }

// Stop shuts the server down and removes what is not kept. Stopping twice is safe.
func (s *Server) Stop(ctx context.Context) error {
	err := s.Shutdown(ctx, Fast)
	if err != nil {
		_ = s.Kill()
	}
	if removeErr := os.RemoveAll(s.own); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("remove the directory of Postgres: %w", removeErr))
	}
	return err
}

// lastLines is the end of a program's output, on one line.
func lastLines(out []byte) string {
	const most = 4
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], " | ")
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", ": ") }
