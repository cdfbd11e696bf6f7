package main

import (
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/syncrelay/syncrelay/configs"
)

const commandsPage = "README.md"

// commandOf finds a command of this program, those that cobra adds included.
func commandOf(t *testing.T, name string) *cobra.Command {
	t.Helper()
	root := newRoot(streams{&output{}, &output{}, nil})
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find([]string{name})
	if err != nil || cmd == root {
		t.Fatalf("there is no command %s", name)
	}
	cmd.InitDefaultHelpFlag()
	return cmd
}

// flagName is a flag that a text for people mentions.
var flagName = regexp.MustCompile("(?:^|[\\s`\\[(])--([a-z][a-z-]*[a-z])")

// The page of the commands has a section for each, which mentions all its flags and
// none that there is not.
func TestThePageOfTheCommandsHasAllOfThem(t *testing.T) {
	t.Parallel()
	root := newRoot(streams{&output{}, &output{}, nil})
	root.InitDefaultCompletionCmd()
	common := section(t, commandsPage, "What they have in common")
	var all []string
	for _, cmd := range root.Commands() {
		if !cmd.IsAvailableCommand() || cmd.Name() == "help" {
			continue
		}
		all = append(all, cmd.Name())
		text := section(t, commandsPage, cmd.Name())
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.Contains(text+common, "`--"+f.Name) && !strings.Contains(text, "--"+f.Name+" ") {
				t.Errorf("the section of %s says nothing of --%s", cmd.Name(), f.Name)
			}
		})
	}
	page := section(t, commandsPage, "")
	known := map[string]bool{"help": true}
	for _, name := range all {
		commandOf(t, name).Flags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
		if !strings.Contains(page, "](#"+name+")") {
			t.Errorf("the table at the top does not lead to %s", name)
		}
	}
	for _, m := range flagName.FindAllStringSubmatch(page, -1) {
		if !known[m[1]] {
			t.Errorf("the page mentions --%s, which no command has", m[1])
		}
	}
	for _, variable := range []string{configs.VariableURL, configs.VariableToken, configs.VariableTokenFile, "NO_COLOR"} {
		if !strings.Contains(common, "`"+variable+"`") {
			t.Errorf("the page says nothing of %s", variable)
		}
	}
	for _, h := range regexp.MustCompile(`(?m)^## (\S+)$`).FindAllStringSubmatch(page, -1) {
		if !slices.Contains(all, h[1]) {
			t.Errorf("the page has a section %s, and there is no such command", h[1])
		}
	}
	if checkUses(t, commandsPage, page) < 25 {
		t.Error("the page uses hardly any command")
	}
}

// Every page, not only its blocks: what a sentence tells to run exists too.
func TestCommandsInTheSentencesOfThePagesExist(t *testing.T) {
	t.Parallel()
	uses := 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`(syncrelay [^`]*)`").FindAllStringSubmatch(string(text), -1) {
			uses += checkUses(t, page, m[1])
		}
	}
	if uses < 30 {
		t.Errorf("the pages tell to run only %d commands", uses)
	}
}

// firstColumn is the names in the first column of the table that follows a heading
// line.
func firstColumn(t *testing.T, text, head string) (names []string) {
	t.Helper()
	_, table, found := strings.Cut(text, "\n| "+head+" |")
	if !found {
		t.Fatalf("there is no table of %s", head)
	}
	for line := range strings.Lines(table) {
		if len(names) > 0 && !strings.HasPrefix(line, "|") {
			break
		}
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cell, -1) {
			names = append(names, m[1])
		}
	}
	return names
}

func TestThePageOfTheCommandsKnowsAllChecksAndAnswers(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	r := examine(t, p.settings(), "--url", "http://"+p.address())
	want := []string{"public_token"}
	for _, c := range r.Checks {
		if !slices.Contains(want, c.Name) {
			want = append(want, c.Name)
		}
	}
	got := firstColumn(t, section(t, commandsPage, "doctor"), "check")
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the page has the checks\n%q, want\n%q", got, want)
	}
	answers := firstColumn(t, section(t, commandsPage, "explain"), "`why`")
	reasons := []string{
		whyCadet, whyStaff, whyUser, whyRole, whyEveryone, whyRefused, whyOthers, whyReserved, whyRevocation, whyUnreadable, whyRowGone,
		whyDeleted, whyNotYet, whyNever, whyWaiting, whyNoRow, whyOtherReason,
	}
	slices.Sort(answers)
	slices.Sort(reasons)
	if !slices.Equal(answers, reasons) {
		t.Errorf("the page has the answers\n%q, want\n%q", answers, reasons)
	}
}

// volatile is what is another each time: times, numbers and tokens.
var volatile = regexp.MustCompile(`eyJ[A-Za-z0-9_.…-]+|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z|[0-9][0-9.]*(?:[nµm]?s\b| [KMG]iB\b)?`)

// The examples of the page are run as they stand there, on a relay with three
// events.
func TestExamplesOfTheCommandsPrintWhatThePageShows(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	ops := p.daemon.ops.Addr().String()
	p.exec(`SELECT broadcast_grade_update(17, '{"merits": 3}')`)
	p.exec(`SELECT broadcast_attendance_update(18, '{"date": "2026-01-15", "status": "late"}')`)
	p.exec(`SELECT broadcast_notification(5, '{"title": "Inspection at 0700"}')`)
	eventually(t, "the events are numbered", func() bool { return p.daemon.relay.Status().Head == 3 })
	target, err := url.Parse("http://" + p.address())
	if err != nil {
		t.Fatal(err)
	}
	holding := slices.IndexFunc(obstacles, func(o obstacle) bool { return o.name == "holds the body back" })
	proxy := httptest.NewServer(obstacles[holding].handler(httputil.NewSingleHostReverseProxy(target)))
	t.Cleanup(proxy.Close)
	config := filepath.Join(t.TempDir(), "syncrelay.yaml")
	if err := os.WriteFile(config, []byte("limits: {connections: 1000}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := "SYNCRELAY_DATABASE_URL=" + p.url
	settings := append(p.settings(), "SYNCRELAY_LISTEN_OPS_ADDRESS="+ops, "SYNCRELAY_URL=http://"+p.address())
	here := strings.NewReplacer("/etc/syncrelay.yaml", config, "https://grades.example.org", proxy.URL)
	asOnPage := strings.NewReplacer(config, "/etc/syncrelay.yaml", proxy.URL, "https://grades.example.org", "http://"+p.address(), "http://127.0.0.1:8000")
	examined := 0
	for _, block := range examples(t, commandsPage, "", "console") {
		for example := range strings.SplitSeq("\n"+block, "\n$ syncrelay ") {
			if strings.TrimSpace(example) == "" {
				continue
			}
			examined++
			line, want, _ := strings.Cut(example, "\n")
			environ := settings
			done := func() {}
			switch {
			case strings.HasPrefix(line, "migrate"):
				environ = append(slices.Clone(settings), owner)
			case strings.HasPrefix(line, "doctor --url"): // from a machine that has no settings
				environ = []string{"SYNCRELAY_TOKEN=" + staffToken(t)}
			case strings.HasPrefix(line, "doctor"):
				p.exec(`REVOKE SELECT ON sync_events FROM syncrelay_relay`) // for it to find
				done = func() { p.exec(`GRANT SELECT ON sync_events TO syncrelay_relay`) }
				environ = slices.DeleteFunc(slices.Clone(settings), func(entry string) bool { return strings.HasPrefix(entry, "SYNCRELAY_URL=") })
			}
			var both output
			run(t.Context(), strings.Fields(here.Replace(line)), streams{&both, &both, environ})
			done()
			wantShown(t, line, asOnPage.Replace(both.String()), want)
		}
	}
	if examined < 9 {
		t.Errorf("the page has only %d examples", examined)
	}
}

// wantShown fails unless a command printed what a page shows, whatever its numbers.
// Where the page leaves lines out with …, there may be any.
func wantShown(t *testing.T, command, printed, shown string) {
	t.Helper()
	bare := func(text string) []string {
		return strings.Split(strings.TrimSpace(volatile.ReplaceAllString(text, "#")), "\n")
	}
	got, skip := bare(printed), false
	for _, want := range bare(shown) {
		if want == "…" {
			skip = true
			continue
		}
		at := slices.Index(got, want)
		if at < 0 || at > 0 && !skip {
			t.Errorf("syncrelay %s printed\n%s\nwhere the page shows\n%s", command, strings.Join(got, "\n"), want)
			return
		}
		got, skip = got[at+1:], false
	}
	if len(got) > 0 && !skip {
		t.Errorf("syncrelay %s printed besides\n%s", command, strings.Join(got, "\n"))
	}
}
