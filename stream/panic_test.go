package stream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// brittleLog is a log that panics at one message.
type brittleLog struct {
	slog.Handler
	at string
	on *atomic.Bool
}

func (l brittleLog) Enabled(context.Context, slog.Level) bool { return true }

func (l brittleLog) Handle(_ context.Context, r slog.Record) error {
	if l.on.Load() && r.Message == l.at {
		panic("a fault of ours")
	}
	return nil
}

// brittleCounter is a counter that panics.
type brittleCounter struct {
	prometheus.Counter
	on *atomic.Bool
}

func (c brittleCounter) Add(n float64) {
	if c.on.Load() {
		panic("a fault of ours")
	}
	c.Counter.Add(n)
}

type failures struct{ atomic.Int64 }

func (f *failures) Failed(string) { f.Add(1) }

// faulty is a server with a fault that can be switched on.
func faulty(t *testing.T, at string, on *atomic.Bool) (r *relaytest.Relay, s *Server, url, token string, failed *failures) {
	t.Helper()
	secret := []byte(strings.Repeat("secret", 8))
	v, err := NewVerifier(VerifierOptions{HMACSecret: secret})
	if err != nil {
		t.Fatal(err)
	}
	token, err = jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"user_id": 1, "role": "admin", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	r, failed = relaytest.New(t, relay.Options{}), &failures{}
	s, err = New(Options{
		Relay: r.Relay, Verifier: v, Observer: failed,
		Logger: slog.New(brittleLog{slog.DiscardHandler, at, on}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if at == "write" {
		for _, transport := range []*transport{s.metrics.webSocket, s.metrics.sse} {
			transport.deliveries = brittleCounter{transport.deliveries, on}
		}
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	t.Cleanup(s.Close)
	return r, s, server.URL, token, failed
}

func readClose(t *testing.T, conn *websocket.Conn) (code int) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		var closed *websocket.CloseError
		if _, _, err := conn.ReadMessage(); errors.As(err, &closed) {
			return closed.Code
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPanicEndsItsOwnConnectionOnlyWithCode4000(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"connected", "write", "control", "disconnected"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			var on atomic.Bool
			r, s, url, token, failed := faulty(t, at, &on)
			dial := func() *websocket.Conn {
				t.Helper()
				conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(url, "http")+"/ws/updates/?token="+token, nil)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				return conn
			}
			survivor := dial() // connects while all is well
			relaytest.Wait(t, "it has been let in", func() bool { return s.letIn() == 1 })
			on.Store(true)

			conn := dial()
			switch at {
			case "write":
				relaytest.Wait(t, "both are connected", func() bool { return s.count() == 2 })
				r.Insert(relay.Row{Type: "notification", Roles: []string{"admin"}})
				readClose(t, survivor) // which the fault meets, too
			case "control":
				relaytest.Wait(t, "both are connected", func() bool { return s.count() == 2 })
				s.each(func(c *session) { _ = c.sub.Post(struct{}{}) }) // no message that anybody knows
				readClose(t, survivor)
			case "disconnected":
				_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""))
			}
			want := map[string]int{"disconnected": 1000}[at]
			if want == 0 {
				want = 4000
			}
			if code := readClose(t, conn); code != want {
				t.Errorf("the WebSocket was closed with %d, want %d", code, want)
			}
			relaytest.Wait(t, "the panic is counted", func() bool { return failed.Load() > 0 })

			response, err := http.Get(url + "/api/events?token=" + token)
			if err != nil {
				t.Fatal(err)
			}
			switch at {
			case "write":
				r.Insert(relay.Row{Type: "notification", Roles: []string{"admin"}})
			case "control":
				relaytest.Wait(t, "it is connected", func() bool { return s.count() > 0 })
				s.each(func(c *session) { _ = c.sub.Post(struct{}{}) })
			case "disconnected":
				_ = response.Body.Close()
			}
			all, _ := io.ReadAll(bufio.NewReader(response.Body))
			if at != "disconnected" && !strings.Contains(string(all), `"internal_error"`) {
				t.Errorf("the event stream ended with %s %q", response.Status, all)
			}
			_ = response.Body.Close()

			on.Store(false)
			if at == "write" || at == "control" {
				survivor = dial()
				relaytest.Wait(t, "it is connected", func() bool { return s.count() == 1 })
			}
			r.Insert(relay.Row{Type: "audit"})
			_ = survivor.SetReadDeadline(time.Now().Add(20 * time.Second))
			for {
				var m struct{ Type string }
				_, text, err := survivor.ReadMessage()
				if err != nil || json.Unmarshal(text, &m) != nil {
					t.Fatalf("the other client: %s, %v", text, err)
				}
				if m.Type == "audit" {
					break
				}
			}
			relaytest.Wait(t, "nothing is left of the others", func() bool { return s.count() == 1 && s.gate.count() == 1 })
		})
	}
}

// count is how many clients are connected.
func (s *Server) count() (n int) {
	for _, t := range []*transport{s.metrics.webSocket, s.metrics.sse} {
		var m dto.Metric
		if t.connections.Write(&m) == nil {
			n += int(m.GetGauge().GetValue())
		}
	}
	return n
}

// letIn is how many clients have been let in, and all that belongs to it is done.
func (s *Server) letIn() (n int) {
	s.each(func(c *session) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.beatAt.IsZero() {
			n++
		}
	})
	return n
}

// each calls do for each session.
func (s *Server) each(do func(*session)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.sessions {
		do(c)
	}
}

// count is how many places are taken.
func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all
}

// brittleDirectory panics when it is asked.
type brittleDirectory struct{ on atomic.Bool }

func (d *brittleDirectory) People(_ context.Context, users []int64) (all []relay.Person, _ error) {
	if d.on.Load() {
		panic("a fault of the directory's")
	}
	for _, user := range users {
		all = append(all, relay.Person{Identity: relay.Identity{UserID: user, Role: "admin"}, Approved: true})
	}
	return all, nil
}

// brittleWriter is an answer that panics when the connection is taken over.
type brittleWriter struct{ *httptest.ResponseRecorder }

func (brittleWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) { panic("a fault of ours") }

func TestAPanicBeforeAConnectionIsLetInTakesNoPlace(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"token", "upgrade"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			_, s, _, token, failed := faulty(t, "", new(atomic.Bool))
			if at == "token" {
				v, err := NewVerifier(VerifierOptions{HMACSecret: []byte(strings.Repeat("secret", 8)), Now: func() time.Time { panic("a fault of ours") }})
				if err != nil {
					t.Fatal(err)
				}
				s.verifier = v
			}
			for _, path := range []string{pathWebSocket, pathEvents, pathTicket} {
				if at == "upgrade" && path == pathTicket {
					continue
				}
				r := httptest.NewRequest(http.MethodGet, path, http.NoBody)
				if path == pathTicket {
					r.Method = http.MethodPost
				}
				r.Header = http.Header{
					"Authorization": {"Bearer " + token}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"},
					"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"MDEyMzQ1Njc4OWFiY2RlZg=="},
				}
				func() {
					defer func() {
						fault := recover()
						if at == "upgrade" && path == pathEvents && fault == nil {
							return // it is answered: the connection is still the server's
						}
						if fault != http.ErrAbortHandler { //nolint:errorlint // it is this very value
							t.Errorf("%s: the server was handed %v", path, fault)
						}
					}()
					s.Handler().ServeHTTP(brittleWriter{httptest.NewRecorder()}, r)
				}()
			}
			if n := s.gate.count(); n != 0 {
				t.Errorf("%d places are taken by nobody", n)
			}
			if n := s.count(); n != 0 {
				t.Errorf("%d sessions are nobody's", n)
			}
			if failed.Load() == 0 {
				t.Error("no panic is counted")
			}
			closed := make(chan struct{})
			go func() { defer close(closed); s.Close() }()
			select {
			case <-closed:
			case <-time.After(20 * time.Second):
				t.Error("Close waits for a connection that is none")
			}
		})
	}
}

func TestAPanicOfADirectoryIsNoAnswerAndNobodysEnd(t *testing.T) {
	t.Parallel()
	d := &brittleDirectory{}
	secret := []byte(strings.Repeat("secret", 8))
	v, err := NewVerifier(VerifierOptions{HMACSecret: secret, UserOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	failed := &failures{}
	s, err := New(Options{Relay: relaytest.New(t, relay.Options{}).Relay, Verifier: v, Directory: d, Observer: failed})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"user_id": 1, "exp": time.Now().Add(time.Hour).Unix()}).SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() int {
		r := httptest.NewRequest(http.MethodHead, pathEvents+"?token="+token, http.NoBody)
		answer := httptest.NewRecorder()
		s.Handler().ServeHTTP(answer, r)
		return answer.Code
	}
	d.on.Store(true)
	if code := ask(); code != http.StatusServiceUnavailable {
		t.Errorf("got %d, want 503", code)
	}
	if failed.Load() == 0 {
		t.Error("the panic is not counted")
	}
	s.sessions[&session{server: s, identity: Identity{Identity: relay.Identity{UserID: 1}}}] = struct{}{}
	if err := s.recheckDue(t.Context(), time.Now()); err == nil || !strings.Contains(err.Error(), "a fault of the directory's") {
		t.Errorf("a round of checks: %v", err)
	}
	clear(s.sessions)
	d.on.Store(false)
	if code := ask(); code != http.StatusOK {
		t.Errorf("then got %d, want 200", code)
	}
}
