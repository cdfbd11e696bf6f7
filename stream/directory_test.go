package stream_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// directory is an application's users, in memory.
type directory struct {
	mu        sync.Mutex
	people    map[int64]relay.Person
	extra     []relay.Person // answered to every question
	questions int
	users     int // that were asked for, in all
	err       error
	gate      chan struct{} // if not nil, questions wait for it
}

func newDirectory(people ...relay.Person) *directory {
	d := &directory{people: make(map[int64]relay.Person)}
	for _, p := range people {
		d.set(p)
	}
	return d
}

func person(user int64, role string, cadet int64) relay.Person {
	return relay.Person{Identity: relay.Identity{UserID: user, Role: role, CadetID: cadet, HasCadet: cadet > 0}, Approved: true}
}

func (d *directory) People(ctx context.Context, users []int64) (found []relay.Person, err error) {
	d.mu.Lock()
	d.questions++
	d.users += len(users)
	gate := d.gate
	d.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, user := range users {
		if p, ok := d.people[user]; ok {
			found = append(found, p)
		}
	}
	return append(found, d.extra...), d.err
}

func (d *directory) set(p relay.Person) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.people[p.UserID] = p
}

func (d *directory) change(do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	do()
}

func (d *directory) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.questions
}

// newDirectoryWorld is a world in which a directory says who users are.
func newDirectoryWorld(t testing.TB, d *directory, o stream.Options) *world {
	t.Helper()
	o.Directory = d
	o.Verifier = verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), UserOnly: true})
	return newWorld(t, worldOptions{Options: o})
}

// user is a token that says nothing but who it is for.
func user(id int64) jwt.MapClaims { return jwt.MapClaims{"user_id": id} }

func TestADirectoryHasTheLastWordOnWhoAUserIs(t *testing.T) {
	t.Parallel()
	w := newDirectoryWorld(t, newDirectory(person(5, "cadet", 17)), stream.Options{})
	for name, claims := range map[string]jwt.MapClaims{
		"nothing but the user":    user(5),
		"a higher role":           {"user_id": 5, "role": "admin", "cadet_id": 18, "is_approved": true},
		"a role that is none":     {"user_id": 5, "role": 1, "cadet_id": "all", "is_approved": "maybe"},
		"the token is unapproved": {"user_id": 5, "is_approved": false},
	} {
		for _, c := range []client{
			w.dial(t, "/ws/updates/?token="+sign(t, claims), nil),
			w.events(t, "/api/events?token="+sign(t, claims), nil),
		} {
			if m := nextOf(t, c, "connection_established"); m.Role != "cadet" || m.CadetID == nil || *m.CadetID != 17 {
				t.Errorf("%s: got %s", name, m.text)
			}
		}
	}
	c := w.connect(t, user(5))
	w.Insert(grade(18), relay.Row{Type: "x", Roles: []string{"admin"}}, grade(17))
	wantEvents(t, c, 3)
}

func TestWhoIsNotInTheDirectoryIsNotLetIn(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(1, "admin", 0), person(2, "training staff", 0), person(3, "", 0), person(4, "cadet", 0), person(6, "cadet", 0))
	d.people[4] = relay.Person{Identity: relay.Identity{UserID: 4, Role: "cadet", CadetID: -1, HasCadet: true}, Approved: true}
	withdrawn := person(5, "admin", 0)
	withdrawn.Approved = false
	d.set(withdrawn)
	d.extra = []relay.Person{person(6, "admin", 0), person(99, "admin", 0)}
	w := newDirectoryWorld(t, d, stream.Options{})
	w.connect(t, user(1))
	for id, want := range map[int64]struct{ code, text string }{
		2: {"unknown_user", "user not known here"}, // its role is none
		3: {"unknown_user", "user not known here"},
		4: {"unknown_user", "user not known here"},
		5: {"not_approved", "user not approved"},
		6: {"unknown_user", "user not known here"}, // there are two
		7: {"unknown_user", "user not known here"},
	} {
		w.dial(t, "/ws/updates/?token="+sign(t, user(id)), nil).wantClosed(t, 4001, want.text)
		c := newSSEClient(w.get(t, "/api/events?token="+sign(t, user(id)), nil))
		text, _ := c.lines.ReadString('\n')
		if c.StatusCode != http.StatusForbidden || !strings.Contains(text, `"code":"`+want.code+`"`) {
			t.Errorf("user %d: got %s %s, want 403 %s", id, c.Status, text, want.code)
		}
	}
}

func TestBadTokensAreRefusedWithADirectoryToo(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(5, "cadet", 17))
	w := newDirectoryWorld(t, d, stream.Options{})
	var bad []badToken
	for _, token := range badTokens(t) {
		// What the token says of its user is not looked at.
		if !strings.HasPrefix(token.name, "role") && !strings.HasPrefix(token.name, "cadet_id") && !strings.HasPrefix(token.name, "is_approved") {
			bad = append(bad, token)
		}
	}
	refusedOnAWebSocket(t, w, bad)
	refusedOnSSE(t, w, bad)
	if n := d.asked(); n > 0 {
		t.Errorf("the directory was asked %d times for who has no good token", n)
	}
	refusedInAnAuthFrame(t, w, sign(t, user(5)), bad)
}

func TestAReconnectStormIsAHandfulOfQuestions(t *testing.T) {
	t.Parallel()
	const clients = 10_000
	d := newDirectory()
	var tokens []string
	for id := int64(1); id <= clients; id++ {
		d.set(person(id, "cadet", id))
		tokens = append(tokens, sign(t, user(id)))
	}
	w := newDirectoryWorld(t, d, stream.Options{})
	handler := w.server.Handler()
	var storm sync.WaitGroup
	for _, token := range tokens {
		storm.Go(func() {
			r := httptest.NewRequest(http.MethodHead, "/api/events", http.NoBody)
			r.Header.Set("Authorization", "Bearer "+token)
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, r)
			if answer.Code != http.StatusOK {
				t.Errorf("got %d %s", answer.Code, answer.Body)
			}
		})
	}
	storm.Wait()
	if n := d.asked(); n > 40 {
		t.Errorf("%d clients were %d questions", clients, n)
	} else {
		t.Logf("%d clients were %d questions", clients, n)
	}
}

func TestConnectionsOfOneUserShareAQuestion(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(1, "admin", 0), person(5, "cadet", 17))
	d.gate = make(chan struct{})
	w := newDirectoryWorld(t, d, stream.Options{})
	handler := w.server.Handler()
	var all sync.WaitGroup
	ask := func(id int64) {
		all.Go(func() {
			r := httptest.NewRequest(http.MethodHead, "/api/events?token="+sign(t, user(id)), http.NoBody)
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, r)
			if answer.Code != http.StatusOK {
				t.Errorf("got %d", answer.Code)
			}
		})
	}
	ask(1)
	relaytest.Wait(t, "the first question", func() bool { return d.asked() == 1 })
	for range 200 {
		ask(5)
	}
	relaytest.Wait(t, "all wait", func() bool { return stream.Waiting(w.server) == 200 })
	close(d.gate)
	all.Wait()
	if n := d.asked(); n != 2 || d.users != 2 {
		t.Errorf("%d questions about %d users, want 2 about 2", n, d.users)
	}
}

func TestWhoIsNoLongerWhoTheyWereIsLetGo(t *testing.T) {
	t.Parallel()
	everybody := []relay.Person{person(1, "admin", 0), person(2, "admin", 0), person(3, "cadet", 3), person(4, "cadet", 4), person(5, "cadet", 5)}
	d := newDirectory(everybody...)
	w := newDirectoryWorld(t, d, stream.Options{IdentityRefresh: 50 * time.Millisecond})
	sockets, streams := make(map[int64]*wsClient), make(map[int64]*sseClient)
	for _, p := range everybody {
		sockets[p.UserID], streams[p.UserID] = w.connect(t, user(p.UserID)), w.follow(t, user(p.UserID))
	}
	before := d.asked()
	relaytest.Wait(t, "several rounds", func() bool { return d.asked() > before+3 })
	d.change(func() {
		d.people[2] = relay.Person{Identity: everybody[1].Identity} // approval withdrawn
		d.people[3] = person(3, "training_staff", 3)
		d.people[4] = person(4, "cadet", 5)
		delete(d.people, 5)
	})
	for id, want := range map[int64]struct{ label, text string }{
		2: {"not_approved", "user not approved"}, 3: {"identity_changed", "role or cadet has changed"},
		4: {"identity_changed", "role or cadet has changed"}, 5: {"unknown_user", "user not known here"},
	} {
		sockets[id].wantClosed(t, 4001, want.text)
		if m := nextOf(t, streams[id], "error"); m.Code != want.label {
			t.Errorf("user %d: got %s, want %s", id, m.text, want.label)
		}
	}
	w.Insert(relay.Row{Type: "still here"})
	for _, c := range []client{sockets[1], streams[1]} {
		if m := c.next(t); m.Type != "still here" {
			t.Errorf("the one who has not changed got %s", m.text)
		}
	}
	if m := nextOf(t, w.dial(t, "/ws/updates/?token="+sign(t, user(3)), nil), "connection_established"); m.Role != "training_staff" {
		t.Errorf("came back as %s", m.text)
	}
}

func TestWhileTheDirectoryIsAwayConnectedUsersStay(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	d := newDirectory(person(5, "cadet", 17), person(6, "cadet", 18))
	w := newDirectoryWorld(t, d, stream.Options{IdentityRefresh: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c, s := w.connect(t, user(5)), w.follow(t, user(6))
	d.change(func() { d.err = errors.New("the database is away") })
	d.set(relay.Person{Identity: relay.Identity{UserID: 6, Role: "cadet"}})
	before := d.asked()
	relaytest.Wait(t, "a round without an answer", func() bool { return d.asked() > before+1 })
	w.dial(t, "/ws/updates/?token="+sign(t, user(5)), nil).wantClosed(t, 1013, "try again later")
	if r := w.get(t, "/api/events?token="+sign(t, user(5)), nil); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("SSE: got %s, Retry-After %q", r.Status, r.Header.Get("Retry-After"))
	}
	// A new token is good as long as nobody can say otherwise.
	c.send(t, `{"type":"auth","token":"`+sign(t, user(5))+`"}`)
	if m := nextOf(t, c, "connection_established"); !m.Renewed || m.Role != "cadet" || *m.CadetID != 17 {
		t.Errorf("renewed: %s", m.text)
	}
	w.Insert(grade(17), grade(18))
	wantEvents(t, c, 1)
	wantEvents(t, s, 2)
	if n := strings.Count(log.String(), "the database is away"); n != 1 {
		t.Errorf("the log says it %d times, want once:\n%s", n, log.String())
	}
	d.change(func() { d.err = nil })
	if m := nextOf(t, s, "error"); m.Code != "not_approved" {
		t.Errorf("back again: %s", m.text)
	}
	w.connect(t, user(5))
}

func TestARevokedUserComesBackOnlyAsWhoTheyAreNow(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(5, "cadet", 17), person(6, "cadet", 18))
	w := newDirectoryWorld(t, d, stream.Options{})
	c, s, other := w.connect(t, user(5)), w.follow(t, user(5)), w.connect(t, user(6))
	withdrawn := person(5, "cadet", 17)
	withdrawn.Approved = false
	d.set(withdrawn)
	w.Insert(relay.Row{Type: relay.TypeSessionRevoked, UserIDs: []int64{5}}, grade(18))
	c.wantClosed(t, 4001, "session revoked")
	if m := nextOf(t, s, "error"); m.Code != "session_revoked" {
		t.Errorf("SSE: got %s", m.text)
	}
	w.dial(t, "/ws/updates/?token="+sign(t, user(5)), nil).wantClosed(t, 4001, "user not approved")
	if r := w.get(t, "/api/events?token="+sign(t, user(5)), nil); r.StatusCode != http.StatusForbidden {
		t.Errorf("SSE: came back with %s", r.Status)
	}
	wantEvents(t, other, 2)
}

func TestARenewalAsksTheDirectoryAgain(t *testing.T) {
	t.Parallel()
	d := newDirectory(person(5, "cadet", 17), person(6, "cadet", 18))
	w := newDirectoryWorld(t, d, stream.Options{})
	c := w.connect(t, user(5))
	renew := func(id int64) {
		t.Helper()
		c.send(t, `{"type":"auth","token":"`+sign(t, user(id))+`"}`)
	}
	d.set(person(5, "training_staff", 0))
	renew(5)
	if m := nextOf(t, c, "connection_established"); !m.Renewed || m.Role != "training_staff" || m.CadetID != nil {
		t.Errorf("renewed: %s", m.text)
	}
	renew(6)
	c.wantClosed(t, 4001, "another user's")
	c = w.connect(t, user(5))
	gone := maps.Clone(d.people)
	delete(gone, 5)
	d.change(func() { d.people = gone })
	renew(5)
	c.wantClosed(t, 4001, "user not known here")
}

func TestAServerMustKnowWhereIdentitiesComeFrom(t *testing.T) {
	t.Parallel()
	r := relaytest.New(t, relay.Options{}).Relay
	for _, o := range []stream.Options{
		{Relay: r, Verifier: newVerifier(t), Directory: newDirectory()},
		{Relay: r, Verifier: verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), UserOnly: true})},
	} {
		if _, err := stream.New(o); err == nil || !strings.Contains(err.Error(), "directory") {
			t.Errorf("got %v", err)
		}
	}
}

func TestWhoADirectoryTakesLongForIsAnsweredAllTheSame(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	for name, certificate := range map[string]*stream.Certificate{"HTTP/1.1": nil, "HTTP/2": a.certificate(t, nil)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDirectory(person(5, "cadet", 17))
			w := newDirectoryWorld(t, d, stream.Options{TLS: certificate, WriteTimeout: 300 * time.Millisecond})
			scheme, transport := "http", &http.Transport{DisableKeepAlives: true}
			if certificate != nil {
				scheme, transport = "https", http2Client(t, a, new(atomic.Int64))
			}
			for path, method := range map[string]string{"/api/events": http.MethodGet, "/api/ticket": http.MethodPost} {
				r, err := http.NewRequestWithContext(t.Context(), method, scheme+"://"+w.addr+path, http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Authorization", "Bearer "+sign(t, user(5)))
				gate := make(chan struct{})
				d.change(func() { d.gate = gate })
				time.AfterFunc(time.Second, func() { close(gate) }) // well over the deadline for writing
				response, err := transport.RoundTrip(r)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				if response.StatusCode != http.StatusOK {
					t.Errorf("%s: got %s", path, response.Status)
				}
				_ = response.Body.Close()
			}
		})
	}
}
