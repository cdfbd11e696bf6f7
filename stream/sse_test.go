package stream_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// wantError checks an answer with an error as JSON.
func wantError(t testing.TB, response *http.Response, status int, code string) {
	t.Helper()
	defer response.Body.Close()
	var body message
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		t.Fatalf("the body of %s is no JSON: %v", response.Status, err)
	}
	if response.StatusCode != status || body.Type != "error" || body.Code != code || body.Message == "" {
		t.Errorf("got %s with %+v, want %d with %s", response.Status, body, status, code)
	}
	if got := response.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type of %s is %q", response.Status, got)
	}
}

func TestStreamHasTheHeadersThatKeepProxiesAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, path := range []string{"/api/events", "/api/events/"} {
		c := w.events(t, path, http.Header{"Authorization": {"Bearer " + sign(t, cadet17)}})
		for name, want := range map[string]string{
			"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Origin",
			"Set-Cookie": "", "Access-Control-Allow-Credentials": "",
		} {
			if got := c.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		m := nextOf(t, c, "connection_established")
		if m.event != "connection_established" || m.Message != "SSE connection established" || m.UserID != 5 {
			t.Errorf("got event %q %s", m.event, m.text)
		}
		if retry, err := strconv.Atoi(c.retry); err != nil || retry < 1000 || retry >= 5000 {
			t.Errorf("retry is %q", c.retry)
		}
	}
}

func TestRetryIsSentOnceWithJitter(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	seen := make(map[string]bool)
	for range 8 {
		c := w.follow(t, admin)
		seen[c.retry] = true
		c.retry = ""
		w.Insert(relay.Row{Type: "audit"})
		c.next(t)
		if c.retry != "" {
			t.Fatal("retry was sent twice")
		}
	}
	if len(seen) < 2 {
		t.Errorf("eight clients were told the same time: %v", seen)
	}
}

func TestStreamIsWrittenAsTheContractShows(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.follow(t, cadet17)
	w.Insert(relay.Row{Type: "grade_update", CadetID: 17, HasCadet: true, Payload: []byte(`{}`), CreatedAt: time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)})
	var block string
	for range 3 {
		line, err := c.lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		block += line
	}
	want := "id: 1\n" + `data: {"type":"grade_update","event_id":1,"cadet_id":17,"data":{"cadet_id": 17},"timestamp":"2024-01-15T10:30:00Z"}` + "\n\n"
	if block != want {
		t.Errorf("got %q, want %q", block, want)
	}
}

func TestCommentsKeepTheStreamAwake(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Heartbeat: 50 * time.Millisecond}})
	c := w.follow(t, cadet17)
	for range 3 {
		line, err := c.lines.ReadString('\n')
		if err != nil || line != ": heartbeat\n" {
			t.Fatalf("got %q, %v", line, err)
		}
		if line, err = c.lines.ReadString('\n'); err != nil || line != "\n" {
			t.Fatalf("got %q, %v", line, err)
		}
	}
}

func TestResumeComesFromTheHeaderOrTheQuery(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.Insert(grade(17), grade(17), grade(17), grade(17))
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 4 })
	token := "token=" + sign(t, cadet17)
	for _, c := range []struct {
		query  string
		header string
		first  int64
	}{
		{"", "3", 4},
		{"&last_event_id=2", "", 3},
		{"&lastEventId=2", "", 3},
		{"&lastEventID=2", "", 3},
		{"&last_event_id=1", "3", 4},
		{"&last_event_id=2&lastEventId=0", "", 3},
		{"&last_event_id=&lastEventId=2", "", 3},
		{"&lastEventID=1", "0", 1},
	} {
		header := http.Header{}
		if c.header != "" {
			header.Set("Last-Event-ID", c.header)
		}
		stream := w.events(t, "/api/events?"+token+c.query, header)
		nextOf(t, stream, "connection_established")
		if m := stream.next(t); m.EventID != c.first {
			t.Errorf("query %q, header %q: begins with %s, want event %d", c.query, c.header, m.text, c.first)
		}
		stream.Body.Close()
	}
}

func TestControlMessagesMoveTheBrowsersCursorOnlyWhereItStands(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.Insert(grade(17), grade(17), grade(18))
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 3 })
	fresh := w.events(t, "/api/events?token="+sign(t, cadet17), nil)
	if m := nextOf(t, fresh, "connection_established"); m.id != "3" {
		t.Errorf("a fresh stream begins with id %q, want 3", m.id)
	}
	resumed := w.events(t, "/api/events?last_event_id=1&token="+sign(t, cadet17), nil)
	if m := nextOf(t, resumed, "connection_established"); m.id != "" {
		t.Errorf("a stream that has yet to catch up begins with id %q: a cut now would lose events", m.id)
	}
	if m := resumed.next(t); m.id != "2" || m.event != "" {
		t.Errorf("an event has id %q and event %q", m.id, m.event)
	}
	if m := nextOf(t, resumed, "replay_complete"); m.id != "3" || m.event != "replay_complete" {
		t.Errorf("replay_complete has id %q and event %q", m.id, m.event)
	}
}

func TestRefusalsOfSSEAreJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	response := w.get(t, "/api/events", nil)
	if got := response.Header.Get("WWW-Authenticate"); got != "Bearer" {
		t.Errorf("WWW-Authenticate is %q", got)
	}
	wantError(t, response, http.StatusUnauthorized, "no_token")
	wantError(t, w.get(t, "/api/events?token=x", nil), http.StatusUnauthorized, "invalid_token")
	wantError(t, w.get(t, "/api/events?token="+claim(t, "exp", 1), nil), http.StatusUnauthorized, "token_expired")
	wantError(t, w.get(t, "/api/events?token="+claim(t, "is_approved", false), nil), http.StatusForbidden, "not_approved")
	response = w.do(t, http.MethodPost, "http://"+w.addr+"/api/events", nil)
	if got := response.Header.Get("Allow"); got != "GET, HEAD, OPTIONS" {
		t.Errorf("Allow is %q", got)
	}
	wantError(t, response, http.StatusMethodNotAllowed, "method_not_allowed")
}

func TestHeadAnswersWithTheStreamsHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	response := w.do(t, http.MethodHead, "http://"+w.addr+"/api/events?token="+sign(t, admin), nil)
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("got %s, %v", response.Status, response.Header)
	}
	if response := w.do(t, http.MethodHead, "http://"+w.addr+"/api/events", nil); response.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a token: got %s", response.Status)
	}
}

func TestPagesOfAllowedOriginsMayReadTheStream(t *testing.T) {
	t.Parallel()
	origins, err := stream.NewOrigins([]string{"https://*.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, worldOptions{Options: stream.Options{Origins: origins}})
	from := http.Header{"Origin": {"https://app.example.org"}, "Access-Control-Request-Method": {"GET"}}
	preflight := w.do(t, http.MethodOptions, "http://"+w.addr+"/api/events", from)
	if preflight.StatusCode != http.StatusNoContent {
		t.Fatalf("preflight: got %s", preflight.Status)
	}
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example.org", "Vary": "Origin",
		"Access-Control-Allow-Headers": "Authorization, Last-Event-ID, Cache-Control",
		"Access-Control-Allow-Methods": "GET, HEAD", "Access-Control-Allow-Credentials": "",
	} {
		if got := preflight.Header.Get(name); got != want {
			t.Errorf("preflight: %s is %q, want %q", name, got, want)
		}
	}
	refused := w.get(t, "/api/events", from)
	if refused.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Error("a page can't read why it was refused")
	}
	wantError(t, refused, http.StatusUnauthorized, "no_token")
	from.Set("Origin", "https://evil.example")
	forbidden := w.do(t, http.MethodOptions, "http://"+w.addr+"/api/events", from)
	if forbidden.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a forbidden origin is allowed to read the answer")
	}
	wantError(t, forbidden, http.StatusForbidden, "origin_forbidden")
}

func TestStreamsOfClientsThatLeaveAreCleanedUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.follow(t, cadet17)
	w.wantMetric(t, `syncrelay_connections{transport="sse"}`, 1)
	c.Body.Close()
	w.wantMetric(t, `syncrelay_connections{transport="sse"}`, 0)
	w.wantMetric(t, `syncrelay_disconnects_total{reason="closed",transport="sse"}`, 1)
}

// TestAConnectionEndsWithItsStream: in good order, which a body of chunks tells
// from one that was cut, and says so before.
func TestAConnectionEndsWithItsStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, version := range []string{"1.1", "1.0"} {
		conn := w.raw(t)
		_ = conn.SetDeadline(time.Now().Add(patience))
		token := sign(t, cadet17, map[string]any{"exp": time.Now().Unix() + 2})
		if _, err := io.WriteString(conn, "GET /api/events?token="+token+" HTTP/"+version+"\r\nHost: relay\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		if chunked := len(response.TransferEncoding) > 0; !response.Close || response.Proto != "HTTP/"+version || chunked != (version == "1.1") {
			t.Errorf("HTTP/%s was answered with %s %v, to be closed: %t", version, response.Proto, response.TransferEncoding, response.Close)
		}
		w.Insert(grade(17))
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Errorf("HTTP/%s: the stream was cut: %v", version, err)
		}
		text := string(body)
		if !strings.HasPrefix(text, "retry: ") || !strings.Contains(text, "event: connection_established") ||
			!strings.Contains(text, `"type":"grade_update"`) || !strings.Contains(text, "token_expired") || !strings.HasSuffix(text, "\n\n") {
			t.Errorf("HTTP/%s: the stream was %q", version, text)
		}
		if _, err := reader.ReadByte(); err != io.EOF {
			t.Errorf("HTTP/%s: after the stream came %v", version, err)
		}
	}
}

func TestOtherAddressesSayWhatThereIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	wantError(t, w.get(t, "/api/eventz", nil), http.StatusNotFound, "not_found")
	wantError(t, w.do(t, http.MethodPost, "http://"+w.addr+"/", nil), http.StatusMethodNotAllowed, "method_not_allowed")
	response := w.get(t, "/", nil)
	page, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.HasPrefix(response.Header.Get("Content-Type"), "text/html") ||
		!strings.Contains(string(page), "/ws/updates/") || !strings.Contains(string(page), "/api/events") {
		t.Errorf("/: got %s %v %s", response.Status, response.Header, page)
	}
}
