package stream_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// replaceFile puts another file in a file's place, as a rename does.
func replaceFile(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// From one secret to the next nobody has to sign in again, and the relay goes on.
func TestSecretsOfFilesAreChangedWithoutARestart(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	var failures atomic.Int64
	dir := t.TempDir()
	now, previous := filepath.Join(dir, "now"), filepath.Join(dir, "previous")
	const first, second = "the first secret, which is long enough", "the second secret, which is as long"
	replaceFile(t, now, first+"\n")
	replaceFile(t, previous, first+"\r\n")
	v := verifier(t, stream.VerifierOptions{
		HMACSecretFile: now, PreviousHMACSecretFile: previous, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Failed: func(component string) {
			if component == "auth" {
				failures.Add(1)
			}
		},
	})
	defer stream.WatchKeys(v, time.Millisecond)()
	signedBy := func(secret string) string { return signedWith(t, "HS256", []byte(secret), nil) }
	good := func(secret string) bool { _, err := v.Verify(t.Context(), signedBy(secret)); return err == nil }
	wantGood(t, v, "the first", signedBy(first))
	wantBad(t, v, "the second, which is not there yet", signedBy(second), "invalid_token", "")
	replaceFile(t, now, second)
	relaytest.Wait(t, "the second is good", func() bool { return good(second) })
	wantGood(t, v, "the first beside it", signedBy(first))
	if failures.Load() != 0 {
		t.Errorf("%d failures are counted: %s", failures.Load(), log.String())
	}
	for i, bad := range []string{"", "\n", string(publicPEM(t, trusted().p256))} {
		replaceFile(t, now, bad)
		relaytest.Wait(t, "the failure is counted", func() bool { return failures.Load() == int64(i+1)-min(int64(i), 1) })
		wantGood(t, v, "the last good one", signedBy(second))
		if bad != "" && good(bad) {
			t.Error("a token that everybody can sign is good")
		}
	}
	if err := os.Remove(now); err != nil {
		t.Fatal(err)
	}
	relaytest.Wait(t, "the missing file is counted", func() bool { return failures.Load() == 3 })
	replaceFile(t, previous, second) // which the other file's trouble does not hold up
	relaytest.Wait(t, "the first has gone", func() bool { return !good(first) })
	wantGood(t, v, "the second", signedBy(second))
	for _, want := range []string{"level=ERROR", "it is empty", "is a public key", "no such file", "read the secrets for tokens again"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q", want)
		}
	}
	if strings.Contains(log.String(), "long") || strings.Contains(log.String(), "BEGIN") {
		t.Errorf("the log holds what is in the files: %s", log.String())
	}
}
