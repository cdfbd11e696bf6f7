package stream_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// A client that is told to try again later has no other ticket to try with.
func TestAConnectionThatIsNotLetInLeavesItsTicket(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(5, "cadet", 17), person(6, "cadet", 18))
	w := newDirectoryWorld(t, d, stream.Options{Limits: stream.Limits{ConnectionsPerUser: 1}})
	path := "?ticket=" + w.ticket(t, sign(t, user(5)))
	again := func(why string) {
		t.Helper()
		for range 2 {
			if r := w.do(t, http.MethodHead, "http://"+w.addr+"/api/events"+path, nil); r.StatusCode != http.StatusOK {
				t.Errorf("%s, HEAD: got %s", why, r.Status)
			}
		}
	}
	again("fresh")
	present := w.connect(t, user(5))
	w.dial(t, "/ws/updates/"+path, nil).wantClosed(t, 1013, "too many connections of this user")
	wantError(t, w.get(t, "/api/events"+path, nil), http.StatusServiceUnavailable, "too_many_connections_of_user")
	again("too many connections")
	d.change(func() { d.err = context.DeadlineExceeded })
	w.dial(t, "/ws/updates/"+path, nil).wantClosed(t, 1013, "try again later")
	wantError(t, w.get(t, "/api/events"+path, nil), http.StatusServiceUnavailable, "unavailable")
	d.change(func() { d.err = nil })
	again("the directory was away")
	broken := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"12"}}
	if r := w.get(t, "/ws/updates/"+path, broken); r.StatusCode != http.StatusBadRequest {
		t.Errorf("a handshake of another version: got %s", r.Status)
	}
	again("a handshake of another version")
	_ = present.Close()
	w.wantConnections(t, 0)
	nextOf(t, w.dial(t, "/ws/updates/"+path, nil), "connection_established")
	w.dial(t, "/ws/updates/"+path, nil).wantClosed(t, 4001, "invalid token")
}

func TestATicketThatOneMayNotUseYetIsLeftOnHTTP2Too(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: a.certificate(t, nil), Limits: stream.Limits{ConnectionsPerUser: 1}}})
	transport := http2Client(t, a, new(atomic.Int64))
	ask := func(method, path, token string) *http.Response {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		r, err := http.NewRequestWithContext(ctx, method, "https://"+w.addr+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	var answer struct{ Ticket string }
	if err := json.NewDecoder(ask(http.MethodPost, "/api/ticket", sign(t, cadet17)).Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	path := "/api/events?ticket=" + answer.Ticket
	present := ask(http.MethodGet, "/api/events", sign(t, cadet17))
	nextOf(t, newSSEClient(present), "connection_established")
	for range 2 {
		if r := ask(http.MethodGet, path, ""); r.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("got %s, want 503", r.Status)
		}
	}
	_ = present.Body.Close()
	w.wantConnections(t, 0)
	nextOf(t, newSSEClient(ask(http.MethodGet, path, "")), "connection_established")
}

// Who comes while the relay ends is told that, and nothing about the ticket.
func TestATicketBroughtToARelayThatEndsIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	path := "?ticket=" + w.ticket(t, sign(t, cadet17))
	if err := w.server.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.dial(t, "/ws/updates/"+path, nil).wantClosed(t, 1012, "restarting")
		wantError(t, w.get(t, "/api/events"+path, nil), http.StatusServiceUnavailable, "restarting")
	}
	w.wantMetric(t, `syncrelay_connects_total{outcome="restarting",transport="websocket"}`, 2)
	w.wantMetric(t, `syncrelay_connects_total{outcome="restarting",transport="sse"}`, 2)
}

// Another relay, which serves, may know the ticket.
func TestATicketIsNotCalledBadByARelayThatDoesNotServe(t *testing.T) {
	t.Parallel()
	world := relaytest.NewWorld()
	w := newWorld(t, worldOptions{Options: stream.Options{Relay: relay.New(relay.Options{Source: world.Source(), Journal: world.Journal()})}}) // not running
	w.dial(t, "/ws/updates/?ticket=x", nil).wantClosed(t, 1013, "try again later")
	wantError(t, w.get(t, "/api/events?ticket=x", nil), http.StatusServiceUnavailable, "unavailable")
}

// A client that has slept, or a page that was set up wrong, guesses nothing.
func TestOnlyTokensAndTicketsThatWereMadeUpCountAgainstAnAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{
		Verifier: verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), Audience: "syncrelay"}),
		Limits:   stream.Limits{FailedAuthRatePerIP: 0.001, FailedAuthBurstPerIP: 2}, TicketsPerUser: 1,
	}})
	here := jwt.MapClaims{"aud": "syncrelay"}
	evicted := w.ticket(t, sign(t, cadet17, here))
	used := w.ticket(t, sign(t, cadet17, here))
	nextOf(t, w.dial(t, "/ws/updates/?ticket="+used, nil), "connection_established")
	honest := map[string]struct{ query, code string }{
		"no token":            {"", "no_token"},
		"a token that ended":  {"token=" + sign(t, cadet17, here, jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()}), "token_expired"},
		"another audience":    {"token=" + sign(t, cadet17), "invalid_token"},
		"a refresh token":     {"token=" + sign(t, cadet17, here, jwt.MapClaims{"token_type": "refresh"}), "invalid_token"},
		"a role that is none": {"token=" + sign(t, cadet17, here, jwt.MapClaims{"role": "all of them"}), "invalid_token"},
		"a ticket once more":  {"ticket=" + used, "invalid_token"},
		"a ticket pushed out": {"ticket=" + evicted, "invalid_token"},
	}
	for range 3 {
		for _, c := range honest {
			wantError(t, w.get(t, "/api/events?"+c.query, nil), http.StatusUnauthorized, c.code)
			w.dial(t, "/ws/updates/?"+c.query, nil).wantClosed(t, 4001, "")
		}
	}
	c := w.connect(t, jwt.MapClaims{"user_id": 1, "role": "admin", "aud": "syncrelay"})
	c.send(t, `{"type":"auth","token":"`+sign(t, admin)+`"}`)
	c.wantClosed(t, 4001, "aud")
	forged := sign(t, cadet17, here)
	wantError(t, w.get(t, "/api/events?token="+forged[:len(forged)-4]+"AAAA", nil), http.StatusUnauthorized, "invalid_token")
	// One letter of a ticket is another.
	wantError(t, w.get(t, "/api/events?ticket="+strings.Map(rotate, used), nil), http.StatusUnauthorized, "invalid_token")
	wantError(t, w.get(t, "/api/events?token=x", nil), http.StatusTooManyRequests, "too_many_failed_tokens")
	wantError(t, w.get(t, "/api/events?ticket=x", nil), http.StatusTooManyRequests, "too_many_failed_tokens")
	for _, c := range honest { // are still told what is wrong
		wantError(t, w.get(t, "/api/events?"+c.query, nil), http.StatusUnauthorized, c.code)
	}
}

// rotate makes another letter of one.
func rotate(r rune) rune {
	if r == 'A' {
		return 'B'
	}
	return 'A'
}
