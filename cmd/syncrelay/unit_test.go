package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/configs"
)

const unitFile = "../../configs/syncrelay.service"

// directives are the lines of the unit, by their names.
func directives(t testing.TB) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			found[name] = append(found[name], value)
		}
	}
	return found
}

func TestUnitRunsTheDaemonWithSettingsThatExist(t *testing.T) {
	t.Parallel()
	unit := directives(t)
	command := strings.Fields(unit["ExecStart"][0])
	if command[0] != "/usr/local/bin/syncrelay" {
		t.Errorf("the unit runs %s", command[0])
	}
	wantCommand(t, command[1:])
	credentials := t.TempDir()
	for _, credential := range unit["LoadCredential"] {
		name, _, _ := strings.Cut(credential, ":")
		if err := os.WriteFile(filepath.Join(credentials, name), []byte("postgres://relay:a-text-that-is-good-for-both@db:5432/grades\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	environ := make([]string, len(unit["Environment"]))
	for i, entry := range unit["Environment"] {
		environ[i] = strings.ReplaceAll(entry, "%d", credentials)
	}
	settings, err := configs.Load("../../configs/syncrelay.yaml", environ)
	if err != nil {
		t.Fatal(err)
	}
	if err := settings.Require("database.url", configs.AnyKey); err != nil {
		t.Error(err)
	}
	if stop := unit["TimeoutStopSec"][0]; stop != "30" || settings.Drain.Timeout.Seconds() >= 30 {
		t.Errorf("it is killed after %s s, and drains for %s", stop, settings.Drain.Timeout)
	}
}

func TestUnitIsUnderstoodBySystemdAndGivesLittleAway(t *testing.T) {
	t.Parallel()
	analyze := installed(t, "systemd-analyze", "systemd")
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	// It looks whether the program is there.
	here := filepath.Join(t.TempDir(), "syncrelay.service")
	if err := os.WriteFile(here, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/syncrelay ", binary(t)+" ")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", here).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v: %s", err, out)
	}
	// 100 is everything, 20 what systemd calls OK.
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", here).CombinedOutput(); err != nil {
		t.Errorf("security: %v: %s", err, out)
	}
}
