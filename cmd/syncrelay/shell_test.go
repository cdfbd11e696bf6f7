package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/syncrelay/syncrelay/stream/clienttest"
)

// shell runs a script of a page as somebody would who has this program in their
// path, with these variables, and returns what it prints.
func shell(t *testing.T, script string, environ ...string) string {
	t.Helper()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "token"), []byte(staffToken(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", script)
	cmd.Dir = home
	cmd.Env = append([]string{"HOME=" + home, "PATH=" + filepath.Dir(binary(t)) + ":" + os.Getenv("PATH")}, environ...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v: %s", script, err, out)
	}
	return string(out)
}

// curls are the lines with curl of a page, which stand there indented.
func curls(t *testing.T, page string) (lines []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^ {4}(curl .*)$`).FindAllStringSubmatch(section(t, page, ""), -1) {
		lines = append(lines, m[1])
	}
	return lines
}

func TestShellLinesOfThePagesDoWhatTheySay(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	p.exec(`SELECT broadcast_grade_update(17, '{"merits": 3}')`)
	eventually(t, "the event is numbered", func() bool { return p.daemon.relay.Status().Head == 1 })
	// What the pages have examples of, and what would never end.
	here := strings.NewReplacer(
		"https://grades.example.org", "http://"+p.address(), "https://events.example.org", "http://"+p.address(), "http://localhost:8000", "http://"+p.address(),
		"syncrelay tail", "syncrelay tail --after 0 --count 1", "--after 0\n", "\n", "syncrelay demo", "timeout 3 syncrelay demo", "curl -N", "timeout 3 curl -sN", "--watch 2m", "--watch 1s",
	)
	owner := "SYNCRELAY_DATABASE_URL=" + p.url
	for _, c := range []struct {
		name, script string
		environ      []string
		needs        string
		want         []string
	}{
		{"tail", examples(t, commandsPage, "tail", "sh")[0], nil, "jq", []string{`"cadet_id": 17, "merits": 3`, `"merits": 3` + "\n"}},
		{"doctor", examples(t, commandsPage, "doctor", "sh")[0], nil, "jq", []string{"openssl rand -base64 48"}},
		{"demo", examples(t, commandsPage, "demo", "sh")[0], []string{owner}, "timeout", []string{"the schema is up to date"}},
		{"proxies, doctor", examples(t, "../../configs/proxies.md", "Is it right?", "sh")[0], nil, "timeout", []string{"public_websocket", "public_sse", " 0 fail"}},
		{"proxies, curl", examples(t, "../../configs/proxies.md", "Is it right?", "sh")[1], nil, "curl", []string{"retry: ", "connection_established"}},
		{"a ticket", curls(t, "../../stream/README.md")[0], nil, "curl", []string{`"expires_in":30`}},
		{"a stream", curls(t, "../../stream/README.md")[1], nil, "curl", []string{"connection_established"}},
		{"django", examples(t, "../../schema/django.md", "Is it right?", "sh")[0], nil, "timeout", []string{`"event_id":1,`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(c.needs); err != nil {
				t.Skip(err)
			}
			script := here.Replace(c.script)
			if strings.Contains(script, "timeout 3 ") { // which ends it with an error
				script = strings.TrimSuffix(script, "\n") + " || [ $? = 124 ]"
			}
			environ := slices.Concat(p.settings(), []string{"SYNCRELAY_URL=http://" + p.address(), "TOKEN=" + staffToken(t)}, c.environ)
			if strings.Contains(script, "select(.state") { // so that there is something to be mended
				script = strings.Replace(script, `"fails"`, `"warning"`, 1)
				environ = append(environ, "SYNCRELAY_AUTH_HMAC_SECRET=short")
			}
			out := shell(t, script, environ...)
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("%s\nprints %s\nwant %q in it", script, out, want)
				}
			}
		})
	}
}

// The README's way from a database to the first event.
func TestTheReadmeLeadsToTheFirstEvent(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	public := freeAddress(t)
	script := examples(t, "../../README.md", "Run it", "sh")[0]
	for what, with := range map[string]string{"SYNCRELAY_DATABASE_URL=postgres://…": "SYNCRELAY_DATABASE_URL='" + p.url + "'", "SYNCRELAY_AUTH_HMAC_SECRET=…": "SYNCRELAY_AUTH_HMAC_SECRET='" + testSecret + "'", "syncrelay serve": "exec syncrelay serve"} {
		if !strings.Contains(script, what) {
			t.Fatalf("the README has no %q", what)
		}
		script = strings.Replace(script, what, with, 1)
	}
	cmd := exec.Command("sh", "-e", "-c", script)
	cmd.Env = []string{"PATH=" + filepath.Dir(binary(t)) + ":" + os.Getenv("PATH"), "SYNCRELAY_LISTEN_ADDRESS=" + public, "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0",
		"SYNCRELAY_DATABASE_SLOT=" + strings.TrimPrefix(mustParse(t, p.url).Path, "/")}
	serve := launchCommand(t, cmd)
	serve.ready(public)
	if said := serve.out.String(); !strings.Contains(said, "the schema is up to date") || !strings.Contains(said, "0 fail: serve would work") {
		t.Errorf("on the way it says\n%s", said)
	}
	f := follow(t, overSSE, public, staffToken(t), -1)
	p.exec(examples(t, "../../README.md", "Write events", "sql")[0])
	if got := shortly(f.await(t, 1)); got[0] != `grade_update {"merits": 3, "cadet_id": 17}` && got[0] != `grade_update {"cadet_id": 17, "merits": 3}` {
		t.Errorf("the first event is %q", got)
	}
}

// The page that the browser client's guide begins with, in a browser, at a site of
// its own.
func TestThePageOfTheClientsGuideWorks(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start(anyOrigin)
	page := examples(t, "../../stream/client/README.md", "", "html")[0]
	if strings.Count(page, "https://relay.example.org") != 2 {
		t.Fatal("the guide's page has another relay")
	}
	const application = `<!doctype html><meta charset="utf-8"><script>
		const seen = { shown: [], loads: 0, banner: "none yet" };
		const show = (cadet, data) => seen.shown.push(cadet + " " + data.merits), loadEverything = () => seen.loads++, banner = (text) => { seen.banner = text; };
	</script>`
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, staffToken(t)) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, application+strings.ReplaceAll(page, "https://relay.example.org", "http://"+p.address()))
	})
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	tab := clienttest.NewTab(t)
	if err := chromedp.Do(tab, chromedp.Navigate(site.URL)); err != nil {
		t.Fatal(err)
	}
	is := func(expression string) bool {
		t.Helper()
		text, err := chromedp.Run(tab, chromedp.Evaluate[string](`String(`+expression+`)`))
		if err != nil {
			t.Fatal(err)
		}
		return text == "true"
	}
	eventually(t, "the page is connected", func() bool { return is(`seen.banner === ""`) })
	p.exec(`SELECT broadcast_grade_update(17, '{"merits": 3}')`)
	eventually(t, "it shows the event", func() bool { return is(`seen.shown.join() === "17 3"`) })
	if !is(`seen.loads === 0`) {
		t.Error("it was told to load everything, without need")
	}
	address := p.address()
	p.stop()
	eventually(t, "it says that the relay is away", func() bool { return is(`seen.banner !== ""`) })
	p.exec(`UPDATE syncrelay.state SET epoch = 'another', epoch_after = last_event_id`)
	p.start(anyOrigin, "SYNCRELAY_LISTEN_ADDRESS="+address)
	eventually(t, "it is told to load everything", func() bool { return is(`seen.loads === 1 && seen.banner === ""`) })
}
