package localpg

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// repository serves an archive of the layout that the library expects: a jar
// with a .txz in it.
func repository(t *testing.T, version string) *httptest.Server {
	t.Helper()
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	for _, name := range []string{"postgres", "initdb", "pg_ctl"} {
		// As for root: the programs are there, and don't start.
		script := "#!/bin/sh\n[ \"$1\" = --version ] || exit 1\necho '" + name + " (PostgreSQL) " + version + "'\n"
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + name, Mode: 0o755, Size: int64(len(script)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(script)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	xz := exec.Command("xz", "-c")
	xz.Stdin = &files
	packed, err := xz.Output()
	if err != nil {
		t.Fatalf("pack with xz: %v", err)
	}
	var jar bytes.Buffer
	z := zip.NewWriter(&jar)
	f, err := z.Create("postgres.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(packed); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, ".jar") {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(jar.Bytes())
	}))
	t.Cleanup(s.Close)
	return s
}

func TestServerIsFetchedOnceIntoTheCache(t *testing.T) {
	t.Parallel()
	served, cache := repository(t, "17.9"), openTempDir(t)
	dir, err := fetch(t.Context(), cache, served.URL)
	if err != nil {
		t.Fatal(err)
	}
	if version, err := versionOf(t.Context(), dir); err != nil || version != 17 {
		t.Fatalf("fetched version %d, %v", version, err)
	}
	served.Close() // the second time it is in the cache
	again, err := fetch(t.Context(), cache, served.URL)
	if err != nil || again != dir {
		t.Fatalf("got %s, %v; want %s from the cache", again, err, dir)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "syncrelay", "fetching-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestServerThatCannotBeFetchedLeavesTheReason(t *testing.T) {
	t.Parallel()
	nothing := httptest.NewServer(http.NotFoundHandler())
	defer nothing.Close()
	if _, err := fetch(t.Context(), openTempDir(t), nothing.URL); err == nil {
		t.Fatal("fetched from an empty repository")
	}
}
