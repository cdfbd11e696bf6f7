package stream_test

import (
	"bufio"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// blocks are the fenced blocks of a language.
func blocks(text, language string) []string {
	var all []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return all
}

// What differs from run to run, and what the page has there.
var (
	epoch  = regexp.MustCompile(`"epoch":"[^"]*"`)
	left   = regexp.MustCompile(`{"type":"token_expiring","expires_in":\d+}`)
	ticket = regexp.MustCompile(`"ticket":"[^"]*"`)
)

func onPage(text string) string {
	text = left.ReplaceAllString(text, `{"type":"token_expiring","expires_in":60}`)
	text = ticket.ReplaceAllString(text, `"ticket":"TICKET"`)
	return epoch.ReplaceAllString(text, `"epoch":"1732399200"`)
}

func TestReadmeShowsFramesAsTheyAre(t *testing.T) {
	t.Parallel()
	page := readme(t)
	shown := make(map[string]bool) // frames of the page, and whether they were seen
	var mine []string              // a client's
	for _, block := range blocks(page, "json") {
		for line := range strings.Lines(block) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, `{"type":"ping"`) || strings.HasPrefix(line, `{"type":"replay_request"`) || strings.HasPrefix(line, `{"type":"auth"`) {
				mine = append(mine, line)
			} else {
				shown[line] = false
			}
		}
	}
	for _, block := range blocks(page, "sse") {
		shown[strings.TrimSpace(block)] = false
	}
	if len(mine) != 3 {
		t.Fatalf("the page shows the client's messages %q, want 3", mine)
	}
	see := func(text string) {
		if text = onPage(strings.TrimSpace(text)); slices.Contains(keys(shown), text) {
			shown[text] = true
		}
	}

	w := newWorld(t, worldOptions{})
	for range 122 {
		w.Insert(grade(18))
	}
	relaytest.Wait(t, "122 events", func() bool { return w.Status().Head == 122 })
	ws := w.dial(t, "/ws/updates/?token="+sign(t, cadet17), nil)
	sse := w.events(t, "/api/events?token="+sign(t, cadet17, map[string]any{"exp": time.Now().Unix() + 3}), nil)
	see(ws.next(t).text)
	at := time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)
	w.Insert(
		relay.Row{Type: "grade_update", CadetID: 17, HasCadet: true, Payload: []byte(`{"merits": 3}`), CreatedAt: at},
		relay.Row{Type: "attendance_update", CadetID: 17, HasCadet: true, Payload: []byte(`{"status": "present"}`), CreatedAt: at},
		relay.Row{Type: "exam_score_update", CadetID: 17, HasCadet: true, Payload: []byte(`{"score": 95}`), CreatedAt: at},
		relay.Row{Type: "notification", UserIDs: []int64{5}, Payload: []byte(`{"title": "Results are out"}`), CreatedAt: at},
	)
	for range 4 {
		see(ws.next(t).text)
	}
	answers := map[string]string{"ping": "pong", "replay_request": "replay_complete", "auth": "connection_established"}
	for _, text := range mine {
		ws.send(t, strings.Replace(text, "TOKEN", sign(t, cadet17), 1))
		for kind, answer := range answers {
			if !strings.Contains(text, `"`+kind+`"`) {
				continue
			}
			m := ws.next(t)
			for ; m.EventID != 0; m = ws.next(t) { // a replay's
			}
			if m.Type != answer {
				t.Errorf("%s was answered with %s", text, m.text)
			}
			see(m.text)
		}
	}
	for _, bad := range []string{`{"type":"replay_request","last_event_id":1000}`, `{"type":"replay_request","last_event_id":"abc"}`, `{"type":"subscribe"}`, `ping`} {
		ws.send(t, bad)
		see(ws.next(t).text)
	}
	ws.send(t, `{"type":"auth","token":"`+sign(t, cadet17, endingIn(60))+`"}`)
	nextOf(t, ws, "connection_established")
	see(ws.next(t).text)
	given, err := io.ReadAll(w.askTicket(t, sign(t, cadet17)).Body)
	if err != nil {
		t.Fatal(err)
	}
	see(string(given))
	for _, path := range []string{"/api/events", "/readyz"} {
		body, err := io.ReadAll(w.get(t, path, nil).Body)
		if err != nil {
			t.Fatal(err)
		}
		see(string(body))
	}
	for _, block := range sseBlocks(t, sse) {
		see(block)
	}
	for text, seen := range shown {
		if !seen {
			t.Errorf("the page shows what the relay did not send:\n%s", text)
		}
	}
}

// sseBlocks reads a stream to its end.
func sseBlocks(t *testing.T, c *sseClient) []string {
	t.Helper()
	all, err := io.ReadAll(c.lines)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(all), "\n\n")
}

func keys(m map[string]bool) []string {
	all := make([]string, 0, len(m))
	for k := range m {
		all = append(all, k)
	}
	return all
}

func TestReadmeListsEveryReasonAsItIs(t *testing.T) {
	t.Parallel()
	var want []string
	number := func(n int) string {
		if n == 0 {
			return "–"
		}
		return strconv.Itoa(n)
	}
	for _, r := range stream.Reasons() {
		want = append(want, "| `"+r.Label+"` | "+strings.Join([]string{number(r.Code), number(r.Status), r.Text}, " | ")+" |")
	}
	var got []string
	lines := bufio.NewScanner(strings.NewReader(readme(t)))
	for in := false; lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "| reason |"):
			in = true
		case in && line == "":
			in = false
		case in && !strings.HasPrefix(line, "| ---"):
			cells := strings.SplitAfter(line, "|")
			got = append(got, strings.Join(cells[:5], ""))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the page lists\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestReadmeListsEveryMetric(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.connect(t, admin)
	w.follow(t, admin).Body.Close()
	w.Insert(relay.Row{Type: "pong"}) // an error, too
	w.wantMetric(t, `syncrelay_errors_total{component="row"}`, 1)
	w.wantMetric(t, `syncrelay_disconnects_total{reason="closed",transport="sse"}`, 1)
	listed := make(map[string]bool)
	for _, m := range regexp.MustCompile("`(syncrelay_[a-z_]+)(?:\\{([a-z_,]+)\\})?`").FindAllStringSubmatch(readme(t), -1) {
		listed[m[1]] = true
	}
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !listed[f.GetName()] {
			t.Errorf("%s is not on the page", f.GetName())
		}
		delete(listed, f.GetName())
	}
	for name := range listed {
		t.Errorf("%s is on the page and nowhere else", name)
	}
}
