package stream

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// TestNothingIsWrittenWhereThereIsNoConnection: what the client was to be told first
// waits while its connection is taken over, which may fail.
func TestNothingIsWrittenWhereThereIsNoConnection(t *testing.T) {
	t.Parallel()
	_, s, _, token, failed := faulty(t, "", new(atomic.Bool))
	id, err := s.authenticate(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	o := &ownConnection{wire: wire{framing: s.chunks}}
	c := &eventStream{out: o}
	c.session = session{server: s, transport: s.metrics.sse, link: c, visit: visit{begun: time.Now()}}
	answer := httptest.NewRecorder() // which can't be taken over
	if reason := c.begin(o, answer, httptest.NewRequest(http.MethodGet, pathEvents, http.NoBody), id, relay.Start{}); reason != reasonInternal {
		t.Fatalf("it ended with %v", reason)
	}
	if err := o.writeBlock([]byte("data: x\n\n")); !errors.Is(err, errClosing) {
		t.Errorf("a write ended with %v", err)
	}
	c.session.close()
	if n := failed.Load(); n != 1 {
		t.Errorf("%d faults were counted, want one", n)
	}
}

// heldWriter is an answer on HTTP/2 whose deadline is set only when it is let.
type heldWriter struct {
	*httptest.ResponseRecorder
	armed   atomic.Bool
	entered chan struct{}
	release chan struct{}
	left    atomic.Bool
}

func (w *heldWriter) SetReadDeadline(time.Time) error { return nil }

func (w *heldWriter) SetWriteDeadline(time.Time) error {
	if w.armed.CompareAndSwap(true, false) {
		close(w.entered)
		<-w.release
		w.left.Store(true)
	}
	return nil
}

// secondThoughts is a directory that does something when it is asked again.
type secondThoughts struct {
	asked atomic.Int64
	again func()
}

func (d *secondThoughts) People(_ context.Context, users []int64) ([]relay.Person, error) {
	who := relay.Person{Identity: relay.Identity{UserID: users[0], Role: "cadet"}, Approved: true}
	if d.asked.Add(1) > 1 {
		d.again()
		who.Approved = false
	}
	return []relay.Person{who}, nil
}

// TestAStreamThatIsEndedWhileItIsOpenedKeepsItsHandler until the goodbye is said: on
// HTTP/2 the answer is the server's again, and perhaps another's, once its handler has
// returned.
func TestAStreamThatIsEndedWhileItIsOpenedKeepsItsHandler(t *testing.T) {
	t.Parallel()
	secret := []byte(strings.Repeat("secret", 8))
	v, err := NewVerifier(VerifierOptions{HMACSecret: secret, UserOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	r := relaytest.New(t, relay.Options{})
	w := &heldWriter{ResponseRecorder: httptest.NewRecorder(), entered: make(chan struct{}), release: make(chan struct{})}
	d := &secondThoughts{}
	s, err := New(Options{Relay: r.Relay, Verifier: v, Directory: d})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	d.again = func() { // somebody else ends the session, and is held at its goodbye
		w.armed.Store(true)
		s.each(func(c *session) { go c.dismiss(reasonRestarting) })
		<-w.entered
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"user_id": 5, "exp": time.Now().Add(time.Hour).Unix()}).SignedString(secret)
	if err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequest(http.MethodGet, pathEvents+"?token="+token, http.NoBody)
	request.ProtoMajor, request.ProtoMinor = 2, 0
	from := relay.Start{Asked: r.Moment()}
	r.Insert(relay.Row{Type: relay.TypeSessionRevoked, UserIDs: []int64{5}})
	relaytest.Wait(t, "the user is revoked", func() bool { return r.Moment() != from.Asked })
	id, err := s.authenticate(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	c := &eventStream{}
	c.session = session{server: s, transport: s.metrics.sse, link: c, visit: visit{asked: from.Asked, begun: time.Now()}}
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		c.serveMultiplexed(w, request, id, from)
	}()
	<-w.entered
	select {
	case <-returned:
		t.Error("the handler returned while the goodbye was being said")
	case <-time.After(100 * time.Millisecond): // it would have by now
	}
	close(w.release)
	<-returned
	if !w.left.Load() {
		t.Error("nobody said goodbye")
	}
}
