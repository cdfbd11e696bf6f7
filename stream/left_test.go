package stream

import (
	"context"
	"fmt"
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
	dto "github.com/prometheus/client_model/go"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// staffTest is a server and the token of one of the staff.
func staffTest(t *testing.T, o Options) (r *relaytest.Relay, s *Server, address, token string) {
	t.Helper()
	secret := []byte(strings.Repeat("secret", 8))
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"user_id": 1, "role": "admin", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	if o.Verifier, err = NewVerifier(VerifierOptions{HMACSecret: secret}); err != nil {
		t.Fatal(err)
	}
	r = relaytest.New(t, relay.Options{})
	o.Relay = r.Relay
	if s, err = New(o); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	t.Cleanup(s.Close)
	return r, s, strings.TrimPrefix(server.URL, "http://"), token
}

// deaf connects a client that reads nothing.
func deaf(t *testing.T, s *Server, address, path, token string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s?token=%s HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", path, token); err != nil {
		t.Fatal(err)
	}
	relaytest.Wait(t, "it is connected", func() bool { return s.count() == 1 })
	return conn
}

func large(n int) relay.Row {
	return relay.Row{Type: "notification", Roles: []string{"admin"}, Payload: []byte(`"` + strings.Repeat("x", n) + `"`)}
}

func TestOnlyWhatIsWrittenWholeCountsAsDelivered(t *testing.T) {
	t.Parallel()
	for _, path := range []string{pathWebSocket, pathEvents} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			r, s, address, token := staffTest(t, Options{WriteTimeout: 300 * time.Millisecond})
			deaf(t, s, address, path, token)
			r.Insert(large(20 << 20))
			relaytest.Wait(t, "it is let go", func() bool { return s.count() == 0 })
			counted := s.metrics.sse
			if path == pathWebSocket {
				counted = s.metrics.webSocket
			}
			var m dto.Metric
			if err := counted.deliveries.Write(&m); err != nil {
				t.Fatal(err)
			}
			if n := m.GetCounter().GetValue(); n != 0 {
				t.Errorf("%g events count as delivered that were not written whole", n)
			}
		})
	}
}

// TestAPanicWhileAPushIsLeftEndsTheSession: what is left of a push holds the wire,
// and must let go of it.
func TestAPanicWhileAPushIsLeftEndsTheSession(t *testing.T) {
	t.Parallel()
	var on atomic.Bool
	r, s, address, token := staffTest(t, Options{WriteTimeout: time.Minute})
	s.metrics.webSocket.deliveries = brittleCounter{s.metrics.webSocket.deliveries, &on}
	conn := deaf(t, s, address, pathWebSocket, token)
	var c *webSocket
	s.each(func(a *session) { c = a.link.(*webSocket) })
	relaytest.Wait(t, "the socket has no room", func() bool {
		c.wire.mu.Lock()
		defer c.wire.mu.Unlock()
		frame := make([]byte, 64<<10)
		n, err := tryWrite(c.wire.raw, frame)
		if err != nil {
			t.Fatal(err)
		}
		return n < len(frame)
	})
	on.Store(true)
	r.Insert(large(100))
	relaytest.Wait(t, "a push is left", func() bool {
		if c.wire.mu.TryLock() {
			c.wire.mu.Unlock()
			return false
		}
		return true
	})
	go func() { _, _ = io.Copy(io.Discard, conn) }() // it reads again
	relaytest.Wait(t, "the session has ended", func() bool { return s.gate.count() == 0 })
}

// atLine calls do when a line is logged.
type atLine struct {
	slog.Handler
	line string
	do   func()
}

func (l atLine) Enabled(context.Context, slog.Level) bool { return true }

func (l atLine) Handle(_ context.Context, r slog.Record) error {
	if r.Message == l.line {
		l.do()
	}
	return nil
}

// TestAStreamThatEndsBeforeItBeginsIsAnswered so that an EventSource, which gives
// up on an empty answer, comes again.
func TestAStreamThatEndsBeforeItBeginsIsAnswered(t *testing.T) {
	t.Parallel()
	var r *relaytest.Relay
	var s *Server
	failed := &failures{}
	promoted := func() {
		r.World.Promote()
		relaytest.Wait(t, "the session has ended", func() (ended bool) {
			s.each(func(c *session) { ended = ended || c.ended() != nil })
			return ended
		})
	}
	var address, token string
	r, s, address, token = staffTest(t, Options{Observer: failed, Logger: slog.New(atLine{slog.DiscardHandler, "connected", promoted})})
	response, err := http.Get("http://" + address + pathEvents + "?token=" + token)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("it is answered with %s, Retry-After %q", response.Status, response.Header.Get("Retry-After"))
	}
	if n := failed.Load(); n > 0 {
		t.Errorf("%d errors of ours were counted", n)
	}
}
