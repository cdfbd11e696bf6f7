package client_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/stream/clienttest"
)

// npm runs npm in a directory.
func npm(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	return command(t, dir, clienttest.Program(t, "npm"), args...)
}

func command(t *testing.T, dir, program string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "npm_config_update_notifier=false", "npm_config_cache="+t.TempDir())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out, errs.Bytes())
	}
	return out
}

func TestThePackageIsReadyToBePublished(t *testing.T) {
	t.Parallel()
	var packed []struct {
		Name, Version string
		Files         []struct{ Path string }
	}
	if err := json.Unmarshal(npm(t, ".", "pack", "--dry-run", "--json"), &packed); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, f := range packed[0].Files {
		files = append(files, f.Path)
	}
	slices.Sort(files)
	if want := []string{"LICENSE", "README.md", "client.d.ts", "client.js", "package.json"}; !slices.Equal(files, want) {
		t.Errorf("the package holds %q, want %q", files, want)
	}
	if packed[0].Name != "syncrelay-client" || !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(packed[0].Version) {
		t.Errorf("it is %s %s", packed[0].Name, packed[0].Version)
	}
	// A package can't hold a file of the folders above it.
	ours, err := os.ReadFile("LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	if whole, err := os.ReadFile("../../LICENSE"); err != nil || !bytes.Equal(ours, whole) {
		t.Errorf("the package has another licence than the whole: %v", err)
	}
}

// installPackage makes a folder in which the package is installed, as npm packs it.
func installPackage(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	archive := strings.TrimSpace(string(npm(t, ".", "pack", "--silent", "--pack-destination", dir)))
	for name, text := range map[string]string{"package.json": `{"type": "module", "private": true}`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	npm(t, dir, "install", "--offline", "--no-audit", "--no-fund", "./"+archive)
	return dir
}

func TestThePackageIsImportedByItsName(t *testing.T) {
	t.Parallel()
	dir := installPackage(t)
	out := command(t, dir, clienttest.Program(t, "node"), "--input-type=module", "--eval", `import * as all from "syncrelay-client"; console.log(Object.keys(all).join(" "))`)
	if got := strings.TrimSpace(string(out)); got != "REASONS connect" {
		t.Errorf("it exports %q", got)
	}
}

// An application in TypeScript, as strict as can be, compiles with all that the
// package exports, whichever way it finds modules; what is a mistake does not.
func TestTypesOfThePackageAreGoodForAnApplication(t *testing.T) {
	t.Parallel()
	tsc := clienttest.Program(t, "tsc")
	dir := installPackage(t)
	consumer, err := os.ReadFile("testdata/consumer.ts")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "consumer.ts"), consumer, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, modules := range [][]string{{"--module", "nodenext"}, {"--module", "esnext", "--moduleResolution", "bundler"}} {
		command(t, dir, tsc, append([]string{"--noEmit", "--strict", "--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "--target", "es2022", "--lib", "es2023,dom", "consumer.ts"}, modules...)...)
	}
	declared, err := os.ReadFile("client.d.ts")
	if err != nil {
		t.Fatal(err)
	}
	exports := regexp.MustCompile(`(?m)^export (?:interface|type|function|const) (\w+)`).FindAllSubmatch(declared, -1)
	for _, m := range exports {
		if !regexp.MustCompile(`\b` + string(m[1]) + `\b`).Match(consumer) {
			t.Errorf("the application of the test does not use %s", m[1])
		}
	}
	if len(exports) < 10 {
		t.Errorf("only %d exports were found", len(exports))
	}
}

// What the code returns and takes is what client.d.ts says of it.
func TestTheCodeKeepsToItsTypes(t *testing.T) {
	t.Parallel()
	command(t, ".", clienttest.Program(t, "tsc"), "--noEmit", "--allowJs", "--checkJs", "--target", "es2022", "--module", "nodenext", "--lib", "es2023,dom", "client.js")
}
