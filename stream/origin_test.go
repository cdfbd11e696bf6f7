package stream_test

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/stream"
)

func TestOriginsAreAllowedAsConfigured(t *testing.T) {
	t.Parallel()
	const app = "https://app.example.org"
	for _, c := range []struct {
		allowed string // comma-separated; none is the same host only
		host    string
		origin  string
		tls     bool
		want    bool
	}{
		{"", "relay.example.org", "https://relay.example.org", false, true},
		{"", "relay.example.org", "http://relay.example.org", false, true},
		{"", "relay.example.org", "https://RELAY.example.ORG", false, true},
		{"", "Relay.Example.org", "https://relay.example.org", false, true},
		{"", "relay.example.org:443", "https://relay.example.org", false, true},
		{"", "relay.example.org", "https://relay.example.org:443", false, true},
		{"", "relay.example.org:80", "http://relay.example.org", false, true},
		{"", "relay.example.org", "http://relay.example.org", true, false},
		{"", "relay.example.org", "https://relay.example.org", true, true},
		{"", "localhost:8000", "http://localhost:8000", false, true},
		{"", "localhost:8000", "http://localhost:3000", false, false},
		{"", "localhost:8000", "http://localhost", false, false},
		{"", "[::1]:8000", "http://[::1]:8000", false, true},
		{"", "127.0.0.1:8000", "http://localhost:8000", false, false},
		{"", "relay.example.org", "https://evil.example", false, false},
		{"", "relay.example.org", "https://relay.example.org.evil.example", false, false},
		{"", "relay.example.org", "https://evilrelay.example.org", false, false},
		{"", "relay.example.org", "null", false, false},
		{"", "relay.example.org", "", false, false},
		{"", "relay.example.org", "relay.example.org", false, false},
		{"", "relay.example.org", "https://relay.example.org/", false, false},
		{"", "relay.example.org", "https://user@relay.example.org", false, false},
		{"", "relay.example.org", "https://relay.example.org?x", false, false},
		{"", "relay.example.org", "https://relay.example.org#x", false, false},
		{"", "relay.example.org", "https://relay.example.org:", false, false},
		{"", "relay.example.org", "file://relay.example.org", false, false},
		{"", "relay.example.org", "https://", false, false},
		{"", "relay.example.org", "https://%zz", false, false},
		{app, "relay.example.org", app, false, true},
		{app, "relay.example.org", app + ":443", false, true},
		{app, "relay.example.org", "http://app.example.org", false, false},
		{app, "relay.example.org", app + ":8443", false, false},
		{app, "relay.example.org", "https://x.app.example.org", false, false},
		{app, "relay.example.org", "https://relay.example.org", false, false},
		{app, "relay.example.org", "null", false, false},
		{app + "/", "", "", false, false}, // refused when it is read
		{"http://localhost:3000, " + app, "relay.example.org", "http://localhost:3000", false, true},
		{"https://*.example.org", "relay", app, false, true},
		{"https://*.example.org", "relay", "https://a.b.example.org", false, true},
		{"https://*.example.org", "relay", "https://example.org", false, false},
		{"https://*.example.org", "relay", "https://.example.org", false, false},
		{"https://*.example.org", "relay", "http://app.example.org", false, false},
		{"https://*.example.org", "relay", "https://app.example.org:8443", false, false},
		{"https://*.example.org:8443", "relay", "https://app.example.org:8443", false, true},
		{"https://*.example.org", "relay", "https://evilexample.org", false, false},
		{"https://*.example.org", "relay", "https://app.example.org.evil.example", false, false},
		{"*", "relay", "https://anything.example", false, true},
		{"*", "relay", "null", false, false},
		{"*", "relay", "https://not an origin", false, false},
	} {
		origins, err := stream.NewOrigins(strings.Split(c.allowed, ","))
		if err != nil {
			if c.host != "" {
				t.Errorf("%q: %v", c.allowed, err)
			}
			continue
		}
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.Host = c.host
		r.Header["Origin"] = []string{c.origin}
		if c.tls {
			r.TLS = &tls.ConnectionState{}
		}
		if got := origins.Allow(r); got != c.want {
			t.Errorf("allowed %q, host %q, TLS %v, origin %q: got %v", c.allowed, c.host, c.tls, c.origin, got)
		}
	}
}

func TestOriginHeaderMayBeAbsentAndNotTwice(t *testing.T) {
	t.Parallel()
	origins, err := stream.NewOrigins(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	if !origins.Allow(r) {
		t.Error("a request without an Origin was refused")
	}
	r.Host = "a.example"
	r.Header["Origin"] = []string{"https://a.example", "https://evil.example"}
	if origins.Allow(r) {
		t.Error("two Origin headers were allowed")
	}
}

func TestCookiesAreNoTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	header := http.Header{"Cookie": {"token=" + sign(t, admin) + "; access_token=" + sign(t, admin) + "; sessionid=x"}}
	w.dial(t, "/ws/updates/", header).wantClosed(t, 4001, "no token")
	response := w.get(t, "/api/events", header)
	if response.Header.Get("Set-Cookie") != "" || response.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("the answer is %v", response.Header)
	}
	wantError(t, response, http.StatusUnauthorized, "no_token")
	wantError(t, w.do(t, http.MethodPost, "http://"+w.addr+"/api/ticket", header), http.StatusUnauthorized, "no_token")
	// Nor do they change who somebody is.
	header.Set("Authorization", "Bearer "+sign(t, cadet17))
	if m := nextOf(t, w.dial(t, "/ws/updates/", header), "connection_established"); m.UserID != 5 || m.Role != "cadet" {
		t.Errorf("a cadet with an admin's cookie is taken for %s", m.text)
	}
	if m := nextOf(t, w.events(t, "/api/events", header), "connection_established"); m.UserID != 5 || m.Role != "cadet" {
		t.Errorf("a cadet with an admin's cookie is taken for %s", m.text)
	}
}

func TestSettingsThatAreNoOriginAreRefused(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{
		"example.org", "https://", "https://example.org/", "https://example.org/app", "https://user@example.org",
		"https://*", "https://*.*.org", "https://a*.example.org", "https://example.org:", "https://exa mple.org", "://x", "**", "null",
	} {
		if _, err := stream.NewOrigins([]string{entry}); err == nil || !strings.Contains(err.Error(), "allowed are") {
			t.Errorf("%q: got %v", entry, err)
		}
	}
}

func TestForbiddenOriginGets403BeforeTheUpgradeAndOnSSE(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, origin := range []string{"https://evil.example", "null", ""} {
		header := http.Header{"Origin": {origin}}
		_, response, err := websocket.DefaultDialer.Dial("ws://"+w.addr+"/ws/updates/?token="+sign(t, admin), header)
		if err == nil || response == nil || response.StatusCode != http.StatusForbidden {
			t.Fatalf("WebSocket from %q: got %v, %v", origin, response, err)
		}
		response.Body.Close()
		wantError(t, w.get(t, "/api/events?token="+sign(t, admin), header), http.StatusForbidden, "origin_forbidden")
	}
	own := http.Header{"Origin": {"http://" + w.addr}}
	nextOf(t, w.dial(t, "/ws/updates/?token="+sign(t, admin), own), "connection_established")
	c := w.events(t, "/api/events?token="+sign(t, admin), own)
	if got := c.Header.Get("Access-Control-Allow-Origin"); got != "http://"+w.addr {
		t.Errorf("Access-Control-Allow-Origin is %q", got)
	}
}

func TestAnOriginThatNoBrowserSendsIsRefusedWhenItIsRead(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{"https://bücher.example", "https://*.bücher.example"} {
		if _, err := stream.NewOrigins([]string{entry}); err == nil || !strings.Contains(err.Error(), "xn--") {
			t.Errorf("%s: got %v", entry, err)
		}
	}
}

func TestAQueryThatCanNotBeReadIsSaidToBeWrong(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	for _, query := range []string{"?token=" + sign(t, admin) + "&last_event_id=%zz", "?last_event_id=1;token=" + sign(t, admin), "?%"} {
		wantError(t, w.get(t, "/api/events"+query, nil), http.StatusBadRequest, "bad_request")
		wantError(t, w.get(t, "/ws/updates/"+query, upgrade), http.StatusBadRequest, "bad_request")
	}
	for _, transport := range []string{"sse", "websocket"} {
		w.wantMetric(t, `syncrelay_connects_total{outcome="bad_request",transport="`+transport+`"}`, 3)
	}
}
