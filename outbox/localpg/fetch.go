package localpg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// fetchedVersion is the version that is fetched.
const fetchedVersion = embedded.V17

// fetch gets the programs of a server into the user's cache and returns their
// directory. repository may be empty for the library's default.
func fetch(ctx context.Context, cache, repository string) (dir string, err error) {
	home := filepath.Join(cache, "syncrelay", "postgres-"+string(fetchedVersion))
	dir = filepath.Join(home, "bin")
	if _, err := versionOf(ctx, dir); err == nil {
		return dir, nil
	}
	// The library extracts into a directory of this attempt, which is then moved
	// into its place at once: two processes may fetch at the same time.
	if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil { //nolint:gosec // an unprivileged server must be able to read it
		return "", fmt.Errorf("make the cache for Postgres: %w", err)
	}
	attempt, err := os.MkdirTemp(filepath.Dir(home), "fetching-")
	if err != nil {
		return "", fmt.Errorf("make the cache for Postgres: %w", err)
	}
	defer func() { _ = os.RemoveAll(attempt) }()
	port, err := freePort(ctx)
	if err != nil {
		return "", err
	}
	config := embedded.DefaultConfig().Version(fetchedVersion).Port(uint32(port)).Logger(io.Discard). //nolint:gosec // a port
														CachePath(filepath.Join(attempt, "cache")).RuntimePath(filepath.Join(attempt, "run")).
														BinariesPath(filepath.Join(attempt, "home")).StartTimeout(20 * time.Second)
	if repository != "" {
		config = config.BinaryRepositoryURL(repository)
	}
	// The library has no way to fetch without starting. Whether that works does
	// not matter (it never does for root): only what it has extracted does.
	server := embedded.NewDatabase(config)
	startErr := server.Start()
	if startErr == nil {
		_ = server.Stop()
	}
	if _, err := versionOf(ctx, filepath.Join(attempt, "home", "bin")); err != nil {
		return "", errors.Join(startErr, err)
	}
	if err := os.Chmod(attempt, 0o755); err != nil { //nolint:gosec // see above
		return "", fmt.Errorf("open the cache for Postgres: %w", err)
	}
	if err := os.Rename(filepath.Join(attempt, "home"), home); err != nil {
		if _, late := versionOf(ctx, dir); late != nil {
			return "", fmt.Errorf("keep the Postgres that was fetched: %w", err)
		}
	}
	return dir, nil
}

// findOrFetch finds the programs of a server, or fetches them.
func findOrFetch(ctx context.Context, binDir string) (dir string, version int, err error) {
	dir, version, err = Find(ctx, binDir)
	if !errors.Is(err, ErrNotFound) {
		return dir, version, err
	}
	cache, cacheErr := os.UserCacheDir()
	if cacheErr != nil {
		cache = os.TempDir()
	}
	dir, fetchErr := fetch(ctx, cache, "")
	if fetchErr != nil {
		return "", 0, fmt.Errorf("%w, and none could be fetched (%s); to mend it: %s, or name a directory with --postgres-bin", err, oneLine(fetchErr), installCommand())
	}
	version, err = versionOf(ctx, dir)
	return dir, version, err
}

// installCommand is what installs Postgres on this system.
func installCommand() string {
	if runtime.GOOS == "darwin" {
		return "brew install postgresql@17"
	}
	if runtime.GOOS == "windows" {
		return "winget install PostgreSQL.PostgreSQL.17"
	}
	for tool, command := range map[string]string{
		"apt-get": "sudo apt-get install postgresql",
		"dnf":     "sudo dnf install postgresql-server",
		"apk":     "sudo apk add postgresql",
		"pacman":  "sudo pacman -S postgresql",
	} {
		if _, err := exec.LookPath(tool); err == nil {
			return command
		}
	}
	return "install PostgreSQL 15 or later"
}
