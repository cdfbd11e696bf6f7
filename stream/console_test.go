package stream_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/stream"
)

// withConsole is a world with the console, which makes tokens for people if it is
// given some.
func withConsole(t *testing.T, people ...stream.Person) *world {
	t.Helper()
	console := &stream.Console{Staff: []string{"admin", "training_staff"}}
	if len(people) > 0 {
		console.People = func() ([]stream.Person, error) { return people, nil }
	}
	return newWorld(t, worldOptions{Options: stream.Options{Console: console}})
}

func TestConsoleIsThereOnlyIfItIsAskedFor(t *testing.T) {
	t.Parallel()
	without := newWorld(t, worldOptions{})
	for _, path := range []string{"/console/main.js", "/api/console/health", "/api/console/people"} {
		if got := without.get(t, path, bearer(t, admin)); got.StatusCode != http.StatusNotFound {
			t.Errorf("without a console %s answers %s, want 404", path, got.Status)
		}
	}
	with := withConsole(t)
	if got := with.get(t, "/api/console/people", nil); got.StatusCode != http.StatusNotFound {
		t.Errorf("with a console that knows nobody people are answered with %s, want 404", got.Status)
	}
}

func bearer(t *testing.T, claims jwt.MapClaims) http.Header {
	t.Helper()
	return http.Header{"Authorization": {"Bearer " + sign(t, claims)}}
}

func TestHealthOfTheRelayIsForTheStaffOnly(t *testing.T) {
	t.Parallel()
	w := withConsole(t)
	w.connect(t, admin)
	for _, c := range []struct {
		who    string
		header http.Header
		status int
		code   string
	}{
		{"nobody", nil, http.StatusUnauthorized, "no_token"},
		{"a made-up token", http.Header{"Authorization": {"Bearer x.y.z"}}, http.StatusUnauthorized, "invalid_token"},
		{"a cadet", bearer(t, cadet17), http.StatusForbidden, "staff_only"},
		{"another role", bearer(t, jwt.MapClaims{"user_id": 9, "role": "Admin"}), http.StatusForbidden, "staff_only"},
		{"a page of another site", http.Header{"Authorization": bearer(t, admin)["Authorization"], "Origin": {"https://elsewhere.example.org"}}, http.StatusForbidden, "origin_forbidden"},
		{"an admin", bearer(t, admin), http.StatusOK, ""},
		{"the training staff", bearer(t, staff), http.StatusOK, ""},
	} {
		response := w.get(t, "/api/console/health", c.header)
		var body struct {
			Code    string
			Phase   string
			At      int64
			Metrics map[string][]struct {
				Labels map[string]string
				Value  float64
			}
		}
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
			t.Fatalf("%s: %v", c.who, err)
		}
		if response.StatusCode != c.status || body.Code != c.code {
			t.Errorf("%s is answered %s %q, want %d %q", c.who, response.Status, body.Code, c.status, c.code)
		}
		if c.status != http.StatusOK {
			if body.Metrics != nil || body.Phase != "" {
				t.Errorf("%s is told %+v", c.who, body)
			}
			continue
		}
		connections := 0.0
		for _, series := range body.Metrics["syncrelay_connections"] {
			connections += series.Value
		}
		if connections != 1 || body.Phase != "streaming" || len(body.Metrics["syncrelay_delivery_latency_seconds"]) != 2 {
			t.Errorf("%s is told %+v, want one connection", c.who, body)
		}
	}
	// A token in the address would be in the logs of proxies.
	if got := w.get(t, "/api/console/health?token="+sign(t, admin), nil); got.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token in the address is answered %s, want 401", got.Status)
	}
}

func TestTokensForPeopleAreForTheConsoleItselfOnly(t *testing.T) {
	t.Parallel()
	w := withConsole(t, stream.Person{Name: "admin", Role: "admin", Token: "a token"})
	ask := func(host string, header http.Header) *http.Response {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url()+"/api/console/people", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for name, values := range header {
			request.Header[name] = values
		}
		if host != "" {
			request.Host = host
		}
		response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		return response
	}
	own := ask("", http.Header{"Sec-Fetch-Site": {"same-origin"}, "Origin": {w.url()}})
	body, err := io.ReadAll(own.Body)
	if err != nil || own.StatusCode != http.StatusOK || !strings.Contains(string(body), `"token":"a token"`) || own.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the console is answered %s %s (%v)", own.Status, body, err)
	}
	if own.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("pages of other sites may read the answer")
	}
	for what, response := range map[string]*http.Response{
		"a name that was made to stand for this machine": ask("rebound.example.org", http.Header{"Sec-Fetch-Site": {"same-origin"}}),
		"a page of another site":                         ask("", http.Header{"Origin": {"https://elsewhere.example.org"}}),
		"another site":                                   ask("", http.Header{"Sec-Fetch-Site": {"cross-site"}}),
		"another port":                                   ask("", http.Header{"Sec-Fetch-Site": {"same-site"}}),
		"a page without an origin":                       ask("", http.Header{"Origin": {"null"}}),
	} {
		if response.StatusCode != http.StatusForbidden {
			t.Errorf("%s is answered %s, want 403", what, response.Status)
		}
	}
}

func TestConsoleHasAPolicyThatLeavesNoRoomForForeignCode(t *testing.T) {
	t.Parallel()
	w := withConsole(t)
	page := w.get(t, "/", nil)
	policy := page.Header.Get("Content-Security-Policy")
	for _, want := range []string{
		"default-src 'none'", "script-src 'self';", "style-src 'self';", "connect-src 'self' ws://" + w.addr + " wss://" + w.addr + ";",
		"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'",
	} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy is %q, want %q in it", policy, want)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
		t.Errorf("the policy is %q", policy)
	}
	html, err := io.ReadAll(page.Body)
	if err != nil {
		t.Fatal(err)
	}
	loaded := 0
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"#]+)"`).FindAllStringSubmatch(string(html), -1) {
		loaded++
		if got := w.get(t, m[1], nil); !strings.HasPrefix(m[1], "/console/") || got.StatusCode != http.StatusOK || got.Header.Get("ETag") == "" {
			t.Errorf("the page loads %s, which answers %s", m[1], got.Status)
		}
	}
	if loaded < 5 {
		t.Errorf("the page loads %d files", loaded)
	}
	files, err := filepath.Glob("console/*.js")
	if err != nil || len(files) == 0 {
		t.Fatal("there is no code", err)
	}
	for _, file := range append(files, "client/client.js", "console/index.html") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|\son\w+="|\sstyle="|<style|https?://[^w]`).FindString(string(text)); found != "" {
			t.Errorf("%s has %q in it", file, found)
		}
	}
}
