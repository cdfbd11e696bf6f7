package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
)

// sent is what the relay sends for the events after one, byte for byte: n of them.
func (p *product) sent(token string, after int64, n int) (lines []string) {
	p.Helper()
	response, err := http.Get(fmt.Sprintf("http://%s/api/events?token=%s&last_event_id=%d", p.address(), token, after))
	if err != nil {
		p.Fatal(err)
	}
	defer response.Body.Close()
	named := false
	for text := bufio.NewReader(response.Body); len(lines) < n; {
		line, err := text.ReadString('\n')
		if err != nil {
			p.Fatalf("after %d events: %v", len(lines), err)
		}
		switch data, isData := strings.CutPrefix(line, "data: "); {
		case strings.HasPrefix(line, "event: "):
			named = true
		case isData && !named:
			lines = append(lines, strings.TrimSuffix(data, "\n"))
		case line == "\n":
			named = false
		}
	}
	return lines
}

// printed is the whole lines that a program has printed.
func (p *program) printed() []string {
	text := p.out.String()
	text = text[:strings.LastIndexByte(text, '\n')+1]
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")[:strings.Count(text, "\n")]
}

func (p *program) interrupt() {
	p.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.Fatal(err)
	}
}

func TestTailPrintsEachEventOnceWhateverBreaks(t *testing.T) {
	t.Parallel()
	for _, transport := range [][]string{nil, {"--sse"}} {
		t.Run(fmt.Sprint(transport), func(t *testing.T) {
			t.Parallel()
			p := newProduct(t)
			between := newProxy(t, "tail", p.address())
			tail := launch(t, []string{"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret}, append([]string{"tail", "--url", "http://" + between.Listen}, transport...)...)
			eventually(t, "tail is connected", func() bool {
				return strings.Contains(tail.err.String(), "connected to http://"+between.Listen+" as user 1, admin")
			})
			written := 0
			write := func() {
				t.Helper()
				for range 20 {
					written++
					p.exec(`SELECT broadcast_grade_update($1, jsonb_build_object('n', $2::int, 'text', E'ä "q" \n \u2028'))`, written%3+1, written)
				}
			}
			write()
			eventually(t, "the first events", func() bool { return len(tail.printed()) == written })
			for round, breaks := range []func(){
				between.cut,
				func() { between.poison(`"type": "reset_peer", "attributes": {"timeout": 1}`, downstream) },
				func() { between.poison(`"type": "limit_data", "attributes": {"bytes": 1500}`, downstream) },
				func() { // the relay itself begins anew
					address := p.address()
					p.stop()
					write()
					p.start("SYNCRELAY_LISTEN_ADDRESS=" + address)
				},
			} {
				breaks()
				write()
				between.cut()
				between.heal()
				between.restore()
				write()
				eventually(t, fmt.Sprintf("all events after break %d", round), func() bool { return len(tail.printed()) >= written })
			}
			if got, want := tail.printed(), p.sent(staffToken(t), 0, written); !slices.Equal(got, want) {
				t.Errorf("printed %d lines, want the %d as they were sent:\n%s", len(got), len(want), strings.Join(got, "\n"))
			}
			if said := tail.err.String(); !strings.Contains(said, "connecting again in") || strings.Contains(said, "ey") {
				t.Errorf("said %q, want that it connects again, and no token", said)
			}
			tail.interrupt()
			if code := tail.wait(); code != 0 {
				t.Errorf("Ctrl-C ends it with %d: %s", code, tail.err)
			}
		})
	}
}

func TestTailReadsTheFileOfItsTokenAgainWhenTheTokenHasEnded(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	for _, transport := range [][]string{nil, {"--sse"}} {
		t.Run(fmt.Sprint(transport), func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "token")
			write := func(token string) {
				t.Helper()
				if err := os.WriteFile(file+".new", []byte(token), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(file+".new", file); err != nil {
					t.Fatal(err)
				}
			}
			write(mustRun(t, p.settings(), "token", "--user", "1", "--role", "admin", "--ttl", "3s"))
			tail := launch(t, []string{"SYNCRELAY_TOKEN_FILE=" + file}, append([]string{"tail", "--after", "0", "--url", "ws://" + p.address() + "/ws/updates/"}, transport...)...)
			eventually(t, "tail is connected", func() bool { return strings.Contains(tail.err.String(), "connected") })
			write(staffToken(t))
			eventually(t, "the other token is in use", func() bool {
				said := tail.err.String()
				return strings.Contains(said, "the token was renewed") || strings.Count(said, "connected to") > 1
			})
			before := len(tail.printed())
			p.exec(`INSERT INTO sync_events (event_type) VALUES ('late')`)
			eventually(t, "an event", func() bool { return len(tail.printed()) > before })
		})
	}
}

func TestTailSaysWhyItCannotFollow(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	url := "http://" + p.address()
	other := httptestServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html>hello") }))
	expired := strings.TrimSpace(mustRun(t, p.settings(), "token", "--user", "1", "--role", "admin", "--ttl", "1s"))
	unapproved := strings.TrimSpace(mustRun(t, p.settings(), "token", "--user", "1", "--role", "admin", "--approved=false"))
	eventually(t, "the token has expired", func() bool {
		_, err := tryFollow(t.Context(), overSSE, p.address(), expired, -1)
		return err != nil
	})
	for _, c := range []struct {
		environ []string
		args    []string
		code    int
		want    string
	}{
		{[]string{"SYNCRELAY_TOKEN=a.b"}, []string{"--url", url}, 1, "refuses the token: invalid token: not a JSON Web Token (invalid_token)"},
		{[]string{"SYNCRELAY_TOKEN=a.b"}, []string{"--url", url, "--sse"}, 1, "refuses the token: invalid token: not a JSON Web Token (invalid_token)"},
		{nil, []string{"--url", url, "--token", expired}, 1, "refuses the token: token expired (token_expired)"},
		{nil, []string{"--url", url, "--token", unapproved}, 1, "user not approved (not_approved)"},
		{[]string{"SYNCRELAY_AUTH_HMAC_SECRET=another secret that is long enough, too"}, []string{"--url", url}, 1, "refuses the token: invalid token: signature or algorithm is wrong"},
		{nil, []string{"--url", url}, 1, `no token; give one with SYNCRELAY_TOKEN or --token-file, such as SYNCRELAY_TOKEN="$(syncrelay token`},
		{[]string{"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret, "SYNCRELAY_AUTH_IDENTITY=database"}, []string{"--url", url}, 1, "no token"},
		{nil, []string{"--token", "x", "--url", "ftp://x"}, 1, `"ftp://x" is no address of a relay; allowed is one such as https://`},
		{nil, []string{"--token", "x", "--token-file", "y"}, 2, "--token and --token-file"},
		{nil, []string{"--token-file", "/nowhere", "--url", url}, 1, "--token-file: open /nowhere"},
		{nil, []string{"--after", "-3"}, 2, "--after is -3"},
		{nil, []string{"--color", "blue"}, 2, `--color is "blue"; allowed are auto, always and never`},
		{nil, []string{"--token", "x", "--url", other, "--sse"}, 1, `of type "text/html", which is no stream of events`},
		{nil, []string{"--token", "x", "--url", other}, 1, `answered with HTTP status 200`},
	} {
		tail := launch(t, c.environ, append([]string{"tail"}, c.args...)...)
		if code := tail.wait(); code != c.code || !strings.Contains(tail.err.String(), c.want) || tail.out.String() != "" {
			t.Errorf("%v: exit code %d, said %q; want %d and %q", c.args, code, tail.err, c.code, c.want)
		}
	}
}

func TestTailFiltersAndCounts(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	p.exec(`SELECT broadcast_grade_update(17, '{}'), broadcast_grade_update(18, '{}'), broadcast_attendance_update(17, '{}'), broadcast_grade_update(17, '{}')`)
	p.exec(`INSERT INTO sync_events (event_type) VALUES ('x')`)
	all := p.sent(staffToken(t), 0, 5)
	environ := append(p.settings(), "SYNCRELAY_URL=http://"+p.address())
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--count", "2"}, all[:2]},
		{[]string{"--after", fmt.Sprint(field[int64](t, all[1], "event_id")), "--count", "2"}, all[2:4]},
		{[]string{"--type", "grade_update,x", "--count", "4"}, []string{all[0], all[1], all[3], all[4]}},
		{[]string{"--type", "grade_update", "--type", "x", "--cadet", "17", "--count", "2", "--sse"}, []string{all[0], all[3]}},
	} {
		args := c.args
		if !slices.Contains(args, "--after") {
			args = append(args, "--after", "0")
		}
		out := mustRun(t, environ, append([]string{"tail", "-q"}, args...)...)
		if want := strings.Join(c.want, "\n") + "\n"; out != want {
			t.Errorf("%v printed\n%swant\n%s", args, out, want)
		}
	}
}

func TestTailEndsQuietlyWhenNobodyReads(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs output
	cmd := exec.Command(binary(t), "tail", "-q", "--after", "0", "--url", "http://"+p.address())
	cmd.Env = []string{"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret}
	cmd.Stdout, cmd.Stderr = writer, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = writer.Close()
	p.exec(`INSERT INTO sync_events (event_type) VALUES ('x')`)
	if line, err := bufio.NewReader(reader).ReadString('\n'); err != nil || !json.Valid([]byte(line)) {
		t.Fatalf("%q: %v", line, err)
	}
	_ = reader.Close() // as head -1 does
	p.exec(`INSERT INTO sync_events (event_type) VALUES ('y')`)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ended := false
	eventually(t, "tail has ended", func() bool {
		select {
		case <-done:
			ended = true
		default:
		}
		return ended
	})
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || cmd.ProcessState.ExitCode() != 0 && status.Signal() != syscall.SIGPIPE || errs.String() != "" {
		t.Errorf("it ended with %v and said %q", cmd.ProcessState, errs.String())
	}
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestTailHasColoursOnATerminalOnly(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	p.exec(`SELECT broadcast_sync_event('parade', jsonb_build_object('title', U&'to the \009b31m moon \202e', 'n', -1.5e3, 'yes', true, 'no', null))`)
	want := p.sent(staffToken(t), 0, 1)[0]
	environ := []string{"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret, "SYNCRELAY_URL=http://" + p.address(), "TERM=xterm"}
	args := []string{"tail", "-q", "--after", "0", "--count", "1"}
	onTerminal := func(environ []string) string {
		t.Helper()
		terminal, theirs, err := pty.Open()
		if err != nil {
			t.Skipf("there is no terminal to be had here: %v", err)
		}
		defer terminal.Close()
		cmd := exec.Command(binary(t), args...)
		cmd.Env, cmd.Stdout, cmd.Stderr = environ, theirs, theirs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = theirs.Close()
		text, _ := io.ReadAll(terminal) // ends with an error when nobody has it open any more
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return strings.TrimSuffix(string(text), "\r\n")
	}
	coloured := onTerminal(environ)
	if !colours.MatchString(coloured) || strings.Contains(coloured, "\u009b") || strings.Contains(coloured, "\u202e") {
		t.Errorf("on a terminal it prints %q, want colours and nothing that a terminal obeys besides", coloured)
	}
	if bare := colours.ReplaceAllString(coloured, ""); !sameJSON(t, bare, want) {
		t.Errorf("without its colours it is %s, want %s", bare, want)
	}
	if bare := onTerminal(append(environ, "NO_COLOR=1")); colours.MatchString(bare) || !sameJSON(t, bare, want) {
		t.Errorf("with NO_COLOR it prints %q", bare)
	}
	if piped := mustRun(t, environ, args...); piped != want+"\n" {
		t.Errorf("piped it prints %q, want %q", piped, want)
	}
	if always := mustRun(t, environ, append(args, "--color", "always")...); !colours.MatchString(always) {
		t.Errorf("with --color always it prints %q", always)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Errorf("%s: %v", a, err)
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Errorf("%s: %v", b, err)
	}
	return reflect.DeepEqual(x, y)
}

// field is a member of a JSON object.
func field[T any](t *testing.T, object, name string) (value T) {
	t.Helper()
	var members map[string]json.RawMessage
	if err := json.Unmarshal([]byte(object), &members); err != nil {
		t.Fatalf("%s: %v", object, err)
	}
	if err := json.Unmarshal(members[name], &value); err != nil {
		t.Fatalf("%s: %s: %v", object, name, err)
	}
	return value
}

// mustRun runs a command in this process, and returns what it prints.
func mustRun(t testing.TB, environ []string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), args, streams{&out, &errs, environ}); code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, code, errs.String())
	}
	return out.String()
}

// httptestServer starts a server that is no relay, and returns its address.
func httptestServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}
