package main

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

func TestStatementsOfTheRunbooksRun(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	blocks := slices.Concat(
		examples(t, "../../configs/README.md", "Alerts", "sql"),
		examples(t, "../../outbox/recovery.md", "", "sql"),
		examples(t, "../../configs/running.md", "", "sql"),
	)
	for _, block := range blocks {
		for statement := range strings.SplitSeq(block, ";\n") {
			if strings.TrimSpace(statement) != "" {
				p.exec(statement)
			}
		}
	}
}

func TestADumpPutBackAsTheRunbookSaysIsServed(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	programs, _, err := localpg.Find(t.Context(), os.Getenv(pgtest.BinVariable))
	if err != nil {
		t.Fatal(err)
	}
	dump, err := exec.LookPath(filepath.Join(programs, "pg_dump"))
	if err != nil {
		t.Skipf("this Postgres comes without pg_dump: %v", err)
	}
	f := follow(t, overSSE, p.address(), staffToken(t), -1)
	p.exec(`SELECT broadcast_grade_update(1, '{}'), broadcast_grade_update(2, '{}')`)
	f.await(t, 2)
	before := f.got()
	p.stop()
	restored := pgtest.Database(t)
	script := examples(t, "../../outbox/recovery.md", "Restore", "sh")[0]
	run := exec.Command("sh", "-e", "-c", script)
	run.Dir = t.TempDir()
	run.Env = []string{"PATH=" + filepath.Dir(dump) + ":" + filepath.Dir(binary(t)) + ":" + os.Getenv("PATH"), "OLD_DATABASE_URL=" + p.url, "NEW_DATABASE_URL=" + restored}
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "the schema is up to date") {
		t.Fatalf("%v: %s", err, out)
	}
	again := newDatabaseAt(t, restored)
	again.start()
	resumed := follow(t, overSSE, again.address(), staffToken(t), before[0].EventID)
	again.exec(`SELECT broadcast_grade_update(3, '{}')`)
	resumed.await(t, 2)
	if got := resumed.got(); got[0].EventID != before[1].EventID || got[1].EventID <= before[1].EventID {
		t.Errorf("after event %d come %d and %d, want %d and a new one", before[0].EventID, got[0].EventID, got[1].EventID, before[1].EventID)
	}
}

// pages are all that is written for people.
func pages(t testing.TB) []string {
	t.Helper()
	out, err := exec.Command("git", "-C", "../..", "ls-files", "--cached", "--others", "--exclude-standard", "*.md").Output()
	if err != nil {
		t.Skipf("the pages can't be listed without git: %v", err)
	}
	files := strings.Fields(string(out))
	for i := range files {
		files[i] = "../../" + files[i]
	}
	return files
}

func TestCommandsOfThePagesExist(t *testing.T) {
	t.Parallel()
	command := regexp.MustCompile(`(?:^|[\s;(/])syncrelay ((?:[a-z]+)(?: +--?[a-z][^ ;)|&"]*(?: +[^- #;)|&"][^ ;)|&"]*)?)*)`)
	found := 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			for line := range strings.Lines(block[1]) {
				line, _, _ = strings.Cut(line, " #")
				for _, m := range command.FindAllStringSubmatch(line, -1) {
					found++
					wantCommand(t, strings.Fields(m[1]))
				}
			}
		}
	}
	if found < 5 {
		t.Errorf("the pages show only %d commands", found)
	}
}

// anchors are where links can lead to, as GitHub makes them of headings.
func anchors(text string) (all []string) {
	for _, m := range regexp.MustCompile("(?m)^#+ (.*)$").FindAllStringSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(plain, " ", "-"))
	}
	return all
}

func TestLinksOfThePagesLeadSomewhere(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(text), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			there, err := os.ReadFile(target)
			if info, statErr := os.Stat(target); err != nil && (statErr != nil || !info.IsDir()) {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			} else if anchor != "" && !slices.Contains(anchors(string(there)), anchor) {
				t.Errorf("%s links to %s, and there is no such heading", page, m[1])
			}
		}
	}
}

func TestTestsThatThePagesNameExist(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("git", "-C", "../..", "grep", "--untracked", "-hoE", `^func (Test|Fuzz)[A-Za-z0-9]+`, "--", "*_test.go").Output()
	if err != nil {
		t.Skipf("the tests can't be listed without git: %v", err)
	}
	exist := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		exist[strings.TrimPrefix(strings.TrimSpace(line), "func ")] = true
	}
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1) {
			if !exist[m[1]] && m[1] != "TestCase" { // Django has that one
				t.Errorf("%s names %s, and there is no such test", page, m[1])
			}
		}
	}
}

// The server's settings that the guide asks for are good for a server, and the
// relay's are good for a relay.
func TestSettingsOfTheGuidesAreSettings(t *testing.T) {
	t.Parallel()
	settings := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(examples(t, "../../configs/running.md", "Before", "ini")[0]))
	for lines.Scan() {
		if name, value, found := strings.Cut(lines.Text(), " = "); found && !strings.HasPrefix(lines.Text(), "#") {
			settings[name] = value
		}
	}
	p := newDatabaseAt(t, pgtest.Own(t, localpg.Options{Settings: settings}).URL("postgres"))
	p.start()
	for _, block := range examples(t, "../../configs/proxies.md", "", "yaml") {
		file := filepath.Join(t.TempDir(), "settings.yaml")
		if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := configs.Load(file, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestTheGoProgramOfTheGuideSendsItsEvent(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	p.exec(`CREATE TABLE cadets (id bigint PRIMARY KEY, merits integer NOT NULL)`)
	p.exec(`INSERT INTO cadets VALUES (17, 39)`)
	f := follow(t, overSSE, p.address(), staffToken(t), -1)
	// The program is built as if it stood in this repository.
	dir := t.TempDir()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	program, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(top, "cmd", "guide", "main.go"): program}})
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{program: examples(t, "../../schema/README.md", "Go", "go")[0], overlay: string(replace)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := exec.Command("go", "run", "-overlay", overlay, "./cmd/guide")
	run.Dir, run.Env = top, append(os.Environ(), "DATABASE_URL="+p.url)
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f.await(t, 1)
	if got, want := shortly(f.got()), []string{`grade_update {"cadet_id": 17, "merits": 42}`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
