package localpg

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const binVariable = "SYNCRELAY_TEST_POSTGRES_BIN"

func start(t *testing.T, o Options) *Server {
	t.Helper()
	o.BinDir = os.Getenv(binVariable)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func query(t *testing.T, s *Server, sql string) (answer string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if err := conn.QueryRow(t.Context(), sql).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func TestThrowAwayServerAnswersAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s := start(t, Options{Settings: map[string]string{"work_mem": "5MB"}})
	if level := query(t, s, `SHOW wal_level`); level != "logical" {
		t.Errorf("wal_level is %s", level)
	}
	if mem := query(t, s, `SHOW work_mem`); mem != "5MB" {
		t.Errorf("work_mem is %s", mem)
	}
	children := childrenOf(s.process.cmd.Process.Pid)
	if len(children) == 0 {
		t.Fatal("the server has no children: the test can't see them")
	}
	stop(t, s)
	stop(t, s) // twice is safe
	if _, err := os.Stat(s.own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", s.own, err)
	}
	for _, pid := range children {
		if f := statFields("/proc/" + strconv.Itoa(pid) + "/stat"); len(f) > 0 && f[0] != "Z" {
			t.Errorf("process %d is left", pid)
		}
	}
}

func TestKeptDataIsThereAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openTempDir(t), "data")
	first := start(t, Options{DataDir: dir})
	query(t, first, `SELECT set_config('x.y', '1', false)`)
	if _, err := Start(t.Context(), Options{DataDir: dir, BinDir: os.Getenv(binVariable)}); err == nil || !strings.Contains(err.Error(), "lock file") {
		t.Errorf("a second server on the same data: %v", err)
	}
	query(t, first, `SELECT pg_create_restore_point('here')::text`)
	system := query(t, first, `SELECT system_identifier::text FROM pg_control_system()`)
	stop(t, first)
	second := start(t, Options{DataDir: dir})
	if again := query(t, second, `SELECT system_identifier::text FROM pg_control_system()`); again != system {
		t.Errorf("another cluster: %s, before %s", again, system)
	}
}

// openTempDir is a directory that the server's account can reach.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestKilledServerStartsAgainOnTheSamePort(t *testing.T) {
	t.Parallel()
	s := start(t, Options{})
	url := s.URL("postgres")
	for _, end := range []func() error{
		s.Kill,
		func() error { return s.Shutdown(t.Context(), Immediate) },
		func() error { return s.Shutdown(t.Context(), Fast) },
	} {
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if conn, err := pgx.Connect(t.Context(), url); err == nil {
			_ = conn.Close(t.Context())
			t.Fatal("the server still answers")
		}
		if err := s.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.URL("postgres") != url {
			t.Fatal("the server is somewhere else")
		}
		query(t, s, `SELECT 'alive'`)
	}
}

func TestUnusableDirectoriesAreRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	full := openTempDir(t)
	if err := os.WriteFile(filepath.Join(full, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := openTempDir(t)
	if err := os.WriteFile(filepath.Join(other, "PG_VERSION"), []byte("9.6\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"no programs":            {Options{BinDir: full}, "holds no initdb"},
		"a directory of others":  {Options{DataDir: full}, "thesis.txt"},
		"another version's data": {Options{DataDir: other}, "PostgreSQL 9.6"},
	} {
		if c.o.BinDir == "" {
			c.o.BinDir = os.Getenv(binVariable)
		}
		if _, err := Start(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", name, err, c.want)
		}
	}
}

// fake makes a directory with programs that say they are of a version.
func fake(t *testing.T, version string) string {
	t.Helper()
	dir := openTempDir(t)
	for _, name := range []string{"postgres", "initdb"} {
		script := "#!/bin/sh\necho '" + name + " (PostgreSQL) " + version + "'\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindTakesTheNewestOfAllPlaces(t *testing.T) {
	t.Parallel()
	v14, v15, v17 := fake(t, "14.9"), fake(t, "15.18 (Debian)"), fake(t, "17.2")
	links := openTempDir(t)
	if err := os.Symlink(filepath.Join(v17, "postgres"), filepath.Join(links, "postgres")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, places []string
		dir          string
		version      int
		err          string
	}{
		"the newest wins":      {path: []string{v15}, places: []string{v14, v17}, dir: v17, version: 17},
		"links are followed":   {path: []string{links, v15}, dir: v17, version: 17},
		"too old is no server": {path: []string{v14}, err: "PostgreSQL 14"},
		"nothing at all":       {path: []string{links + "/none"}, err: "no Postgres server found"},
	} {
		dir, version, err := newest(t.Context(), candidates(c.path, c.places))
		if c.err != "" {
			if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: got %v, want %q", name, err, c.err)
			}
			continue
		}
		if err != nil || dir != c.dir || version != c.version {
			t.Errorf("%s: got %s (%d), %v; want %s (%d)", name, dir, version, err, c.dir, c.version)
		}
	}
	if _, _, err := Find(t.Context(), v14); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("an explicit directory that is too old: got %v, want an error that is not ErrNotFound", err)
	}
}
