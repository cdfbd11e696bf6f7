package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/configs"
)

func TestACertificateThatIsMissingStopsTheStartAndIsNamed(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for key, variable := range map[string]string{"listen.tls_cert_file": "LISTEN_TLS_", "listen.ops_tls_cert_file": "LISTEN_OPS_TLS_"} {
		settings, err := configs.Load("", []string{
			"SYNCRELAY_DATABASE_URL=postgres://relay@127.0.0.1:1/grades", "SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret,
			"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0",
			"SYNCRELAY_" + variable + "CERT_FILE=" + missing, "SYNCRELAY_" + variable + "KEY_FILE=" + missing,
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = newDaemon(t.Context(), settings, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), missing) {
			t.Errorf("%s: got %v", key, err)
		}
	}
}
