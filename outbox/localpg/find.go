package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// OldestVersion is the oldest major version of Postgres that is used.
const OldestVersion = 15

// ErrNotFound: there are no programs of a Postgres server on this machine.
var ErrNotFound = errors.New("no Postgres server found")

// usualPlaces are where packages put the programs of a server.
var usualPlaces = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian
	"/usr/pgsql-*/bin",                                   // RPM
	"/opt/homebrew/opt/postgresql*/bin",                  // Homebrew
	"/usr/local/opt/postgresql*/bin",                     // Homebrew on Intel
	"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",     // Homebrew on Linux
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
	"/usr/local/pgsql/bin",                               // built from source
	`C:\Program Files\PostgreSQL\*\bin`,
}

// Find returns the directory with the programs postgres and initdb: binDir if it
// is given, else the newest version of what is on the PATH and in the places
// where packages put them. It fails with [ErrNotFound] if there are none, and
// otherwise if what is there can't be used.
func Find(ctx context.Context, binDir string) (dir string, version int, err error) {
	if binDir != "" {
		version, err = versionOf(ctx, binDir)
		if err == nil && version < OldestVersion {
			err = fmt.Errorf("%s holds PostgreSQL %d; allowed is %d or later", binDir, version, OldestVersion)
		}
		return binDir, version, err
	}
	return newest(ctx, candidates(filepath.SplitList(os.Getenv("PATH")), usualPlaces))
}

// candidates lists directories that hold a server, each once.
func candidates(path, places []string) (dirs []string) {
	dirs = append(dirs, path...)
	for _, pattern := range places {
		matches, _ := filepath.Glob(pattern) // the patterns are well-formed
		dirs = append(dirs, matches...)
	}
	var found []string
	for _, dir := range dirs {
		// On the PATH there may be links into another directory.
		program, err := filepath.EvalSymlinks(filepath.Join(dir, program("postgres")))
		if err != nil {
			continue
		}
		if dir = filepath.Dir(program); !slices.Contains(found, dir) {
			found = append(found, dir)
		}
	}
	return found
}

func newest(ctx context.Context, dirs []string) (dir string, version int, err error) {
	var old []string
	for _, candidate := range dirs {
		v, err := versionOf(ctx, candidate)
		switch {
		case err != nil:
			continue // a client's package, or something else of that name
		case v < OldestVersion:
			old = append(old, fmt.Sprintf("PostgreSQL %d in %s", v, candidate))
		case v > version:
			dir, version = candidate, v
		}
	}
	if dir == "" && len(old) > 0 {
		return "", 0, fmt.Errorf("%w: found %s; allowed is %d or later", ErrNotFound, strings.Join(old, ", "), OldestVersion)
	}
	if dir == "" {
		return "", 0, ErrNotFound
	}
	return dir, version, nil
}

func program(name string) string {
	if runtime.GOOS == "windows" {
		return name + ".exe"
	}
	return name
}

var versionText = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// versionOf asks the programs in a directory for their major version.
func versionOf(ctx context.Context, dir string) (int, error) {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := os.Stat(filepath.Join(dir, program(name))); err != nil {
			return 0, fmt.Errorf("%s holds no %s: name the directory with the programs postgres and initdb", dir, name)
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, program("postgres")), "--version").CombinedOutput() //nolint:gosec // the directory is the caller's choice
	if err != nil {
		return 0, fmt.Errorf("ask the Postgres in %s for its version: %w: %s", dir, err, strings.TrimSpace(string(out)))
	}
	m := versionText.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("the Postgres in %s says of its version: %q", dir, out)
	}
	return strconv.Atoi(string(m[1]))
}
