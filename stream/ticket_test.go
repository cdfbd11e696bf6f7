package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/stream"
)

// askTicket sends POST /api/ticket with a token.
func (w *world) askTicket(t testing.TB, token string) *http.Response {
	t.Helper()
	return w.do(t, http.MethodPost, "http://"+w.addr+"/api/ticket", http.Header{"Authorization": {"Bearer " + token}})
}

// ticket gets a ticket.
func (w *world) ticket(t testing.TB, token string) string {
	t.Helper()
	response := w.askTicket(t, token)
	var answer struct {
		Ticket    string `json:"ticket"`
		ExpiresIn int    `json:"expires_in"`
		Message   string
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK || answer.ExpiresIn != 30 || len(answer.Ticket) < 26 || response.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %s %+v", response.Status, answer)
	}
	return answer.Ticket
}

func TestATicketOpensOneConnectionOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	onSocket, onStream := w.ticket(t, sign(t, cadet17)), w.ticket(t, sign(t, cadet17))
	if onSocket == onStream {
		t.Fatal("two tickets are one")
	}
	for _, c := range []client{w.dial(t, "/ws/updates/?ticket="+onSocket, nil), w.events(t, "/api/events?ticket="+onStream, nil)} {
		if m := nextOf(t, c, "connection_established"); m.UserID != 5 || m.Role != "cadet" || *m.CadetID != 17 {
			t.Errorf("got %s", m.text)
		}
	}
	// Used, on the other transport too; made up; and like a good one.
	for _, bad := range []string{onSocket, onStream, "x", strings.ToLower(w.ticket(t, sign(t, admin))), strings.Repeat("A", 26), sign(t, admin), "%00", "' OR 1=1 --"} {
		w.dial(t, "/ws/updates/?ticket="+strings.ReplaceAll(bad, " ", "+"), nil).wantClosed(t, 4001, "invalid token: the ticket is not known")
		response := w.get(t, "/api/events?ticket="+strings.ReplaceAll(bad, " ", "+"), nil)
		if response.StatusCode != http.StatusUnauthorized || response.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("ticket %q: got %s", bad, response.Status)
		}
	}
	w.dial(t, "/ws/updates/?ticket=", nil).wantClosed(t, 4001, "no token")
}

func TestOneTicketUsedByManyAtOnceLetsOneIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	code := w.ticket(t, sign(t, cadet17))
	var in atomic.Int64
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() {
			if w.get(t, "/api/events?ticket="+code, nil).StatusCode == http.StatusOK {
				in.Add(1)
			}
		})
	}
	all.Wait()
	if n := in.Load(); n != 1 {
		t.Errorf("%d were let in", n)
	}
}

func TestATokenGoesBeforeATicketAndLeavesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	code := w.ticket(t, sign(t, admin))
	if m := nextOf(t, w.dial(t, "/ws/updates/?ticket="+code+"&token="+sign(t, cadet17), nil), "connection_established"); m.UserID != 5 {
		t.Errorf("got %s", m.text)
	}
	if m := nextOf(t, w.dial(t, "/ws/updates/?ticket="+code, nil), "connection_established"); m.UserID != 1 {
		t.Errorf("got %s", m.text)
	}
}

func TestAConnectionByTicketEndsWithTheTicketsToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	end := time.Now().Unix() + 3
	inTime := startWatch(t)
	code := w.ticket(t, sign(t, cadet17, jwt.MapClaims{"exp": end}))
	unused := w.ticket(t, sign(t, cadet17, jwt.MapClaims{"exp": end}))
	w.dial(t, "/ws/updates/?ticket="+code, nil).wantClosed(t, 4001, "token expired")
	inTime(time.Unix(end, 0))
	w.dial(t, "/ws/updates/?ticket="+unused, nil).wantClosed(t, 4001, "invalid token")
}

func TestNobodyGetsATicketWithoutAGoodTokenInTheHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, bad := range badTokens(t) {
		if strings.ContainsAny(bad.token, "\n") {
			continue
		}
		response := w.askTicket(t, bad.token)
		want := http.StatusUnauthorized
		if bad.code == "not_approved" {
			want = http.StatusForbidden
		}
		var body message
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil || response.StatusCode != want || body.Code != bad.code {
			t.Errorf("%s: got %s %+v, %v, want %d %s", bad.name, response.Status, body, err, want, bad.code)
		}
	}
	for name, c := range map[string]struct {
		method, path string
		header       http.Header
		want         int
	}{
		"a token in the URL":  {http.MethodPost, "/api/ticket?token=" + sign(t, admin), nil, http.StatusUnauthorized},
		"a ticket for one":    {http.MethodPost, "/api/ticket?ticket=" + w.ticket(t, sign(t, admin)), nil, http.StatusUnauthorized},
		"a cookie":            {http.MethodPost, "/api/ticket", http.Header{"Cookie": {"token=" + sign(t, admin)}}, http.StatusUnauthorized},
		"another method":      {http.MethodGet, "/api/ticket", http.Header{"Authorization": {"Bearer " + sign(t, admin)}}, http.StatusMethodNotAllowed},
		"with the last slash": {http.MethodPost, "/api/ticket/", http.Header{"Authorization": {"bearer " + sign(t, admin)}}, http.StatusOK},
	} {
		if r := w.do(t, c.method, "http://"+w.addr+c.path, c.header); r.StatusCode != c.want {
			t.Errorf("%s: got %s, want %d", name, r.Status, c.want)
		}
	}
	w.wantMetric(t, `syncrelay_tickets_total{outcome="issued"}`, 2)
}

func TestTicketsFollowTheOriginsList(t *testing.T) {
	t.Parallel()
	origins, err := stream.NewOrigins([]string{"https://app.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, worldOptions{Options: stream.Options{Origins: origins}})
	from := func(origin string) http.Header {
		return http.Header{"Origin": {origin}, "Authorization": {"Bearer " + sign(t, admin)}, "Access-Control-Request-Method": {"POST"}}
	}
	preflight := w.do(t, http.MethodOptions, "http://"+w.addr+"/api/ticket", from("https://app.example.org"))
	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": "https://app.example.org", "Access-Control-Allow-Methods": "POST",
		"Access-Control-Allow-Headers": "Authorization, Content-Type", "Access-Control-Allow-Credentials": "", "Vary": "Origin",
	} {
		if got := preflight.Header.Get(name); preflight.StatusCode != http.StatusNoContent || got != want {
			t.Errorf("preflight: %s, %s is %q, want %q", preflight.Status, name, got, want)
		}
	}
	r := w.do(t, http.MethodPost, "http://"+w.addr+"/api/ticket", from("https://app.example.org"))
	if r.StatusCode != http.StatusOK || r.Header.Get("Access-Control-Allow-Origin") != "https://app.example.org" {
		t.Errorf("got %s %v", r.Status, r.Header)
	}
	for _, bad := range []string{"https://evil.example", "null", "http://" + w.addr} {
		for _, method := range []string{http.MethodOptions, http.MethodPost} {
			r := w.do(t, method, "http://"+w.addr+"/api/ticket", from(bad))
			if r.StatusCode != http.StatusForbidden || r.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s from %s: got %s %v", method, bad, r.Status, r.Header)
			}
		}
	}
}

func TestOneUserCantTakeTicketsFromOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{MaxTickets: 6, TicketsPerUser: 3}})
	other := w.ticket(t, sign(t, cadet18))
	greedy := sign(t, cadet17)
	var own []string
	for range 20 {
		own = append(own, w.ticket(t, greedy))
	}
	w.dial(t, "/ws/updates/?ticket="+own[16], nil).wantClosed(t, 4001, "the ticket is not known") // it gave way to a later one
	nextOf(t, w.dial(t, "/ws/updates/?ticket="+own[17], nil), "connection_established")
	w.ticket(t, sign(t, admin))
	w.ticket(t, sign(t, admin))
	w.ticket(t, sign(t, staff))
	response := w.askTicket(t, sign(t, staff))
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("the seventh: got %s", response.Status)
	}
	if m := nextOf(t, w.dial(t, "/ws/updates/?ticket="+other, nil), "connection_established"); m.UserID != 6 {
		t.Errorf("got %s", m.text)
	}
	w.ticket(t, sign(t, staff))
	w.wantMetric(t, `syncrelay_tickets_total{outcome="unavailable"}`, 1)
}

func TestATicketAsksTheDirectoryWhenItIsUsed(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(5, "cadet", 17))
	w := newDirectoryWorld(t, d, stream.Options{})
	first, second := w.ticket(t, sign(t, user(5))), w.ticket(t, sign(t, user(5)))
	d.set(person(5, "cadet", 18))
	if m := nextOf(t, w.dial(t, "/ws/updates/?ticket="+first, nil), "connection_established"); *m.CadetID != 18 {
		t.Errorf("got %s", m.text)
	}
	d.set(relay.Person{Identity: relay.Identity{UserID: 5, Role: "cadet"}})
	w.dial(t, "/ws/updates/?ticket="+second, nil).wantClosed(t, 4001, "user not approved")
	if r := w.askTicket(t, sign(t, user(5))); r.StatusCode != http.StatusForbidden {
		t.Errorf("a ticket for who is not approved: %s", r.Status)
	}
}

func TestNoTicketsAreGivenWhileTheServerEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	if err := w.server.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r := w.askTicket(t, sign(t, admin)); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("got %s", r.Status)
	}
}

func TestNoTicketIsEverLogged(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	w := newWorld(t, worldOptions{Options: stream.Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}})
	code := w.ticket(t, sign(t, cadet17))
	nextOf(t, w.dial(t, "/ws/updates/?ticket="+code, nil), "connection_established")
	w.dial(t, "/ws/updates/?ticket="+code, nil).wantClosed(t, 4001, "")
	w.get(t, "/api/events?ticket="+code, nil).Body.Close()
	w.stop()
	if bytes.Contains([]byte(log.String()), []byte(code)) {
		t.Errorf("the log holds the ticket: %s", log.String())
	}
}
