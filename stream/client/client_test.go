package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
	"github.com/syncrelay/syncrelay/stream/client"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		http.DefaultClient.CloseIdleConnections()
		os.Exit(status)
	}))
}

const secret = "a secret that only the tests know about"

// newRelay starts a relay with a server in front of it, on real sockets.
func newRelay(t *testing.T) (w *relaytest.Relay, address string) {
	t.Helper()
	w = relaytest.New(t, relay.Options{})
	verifier, err := stream.NewVerifier(stream.VerifierOptions{HMACSecret: []byte(secret)})
	if err != nil {
		t.Fatal(err)
	}
	server, err := stream.New(stream.Options{Relay: w.Relay, Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, listeners[0], listeners[1]) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w, "http://" + listeners[0].Addr().String()
}

// token makes tokens of an admin, each another.
func token(life time.Duration) func(context.Context) (string, error) {
	n := 0
	return func(context.Context) (string, error) {
		n++
		return jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
			"user_id": 1, "role": "admin", "exp": time.Now().Add(life).Unix(), "jti": fmt.Sprint(n),
		}).SignedString([]byte(secret))
	}
}

// following is a run of Follow.
type following struct {
	mu      sync.Mutex
	ids     []int64
	notices []client.Notice
	err     error
	done    chan struct{}
}

func follow(t *testing.T, o client.Options) *following {
	t.Helper()
	f := &following{done: make(chan struct{})}
	o.MinWait = 10 * time.Millisecond
	o.Notice = func(n client.Notice) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.notices = append(f.notices, n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(f.done)
		f.err = client.Follow(ctx, o, func(e client.Event) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.ids = append(f.ids, e.ID)
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-f.done
		if !errors.Is(f.err, context.Canceled) {
			t.Errorf("Follow ended with %v", f.err)
		}
	})
	return f
}

func (f *following) got() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ids)
}

// of returns the notices of a kind.
func (f *following) of(kind client.Kind) (found []client.Notice) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.notices {
		if n.Kind == kind {
			found = append(found, n)
		}
	}
	return found
}

func both(t *testing.T, test func(t *testing.T, sse bool)) {
	t.Parallel()
	for _, sse := range []bool{false, true} {
		t.Run(map[bool]string{false: "websocket", true: "sse"}[sse], func(t *testing.T) { t.Parallel(); test(t, sse) })
	}
}

func TestATokenThatEndsSoonIsRenewedInPlace(t *testing.T) {
	t.Parallel()
	w, address := newRelay(t)
	f := follow(t, client.Options{URL: address, Token: token(30 * time.Second), After: -1})
	relaytest.Wait(t, "the token is renewed", func() bool { return len(f.of(client.Renewed)) > 0 })
	w.Insert(relay.Row{Type: "x"})
	relaytest.Wait(t, "an event", func() bool { return len(f.got()) == 1 })
	if n := len(f.of(client.Disconnected)); n != 0 {
		t.Errorf("it has disconnected %d times", n)
	}
}

func TestATokenThatEndsCostsNoEvent(t *testing.T) {
	both(t, func(t *testing.T, sse bool) {
		w, address := newRelay(t)
		if !sse {
			t.Skip("a WebSocket renews it in place")
		}
		f := follow(t, client.Options{URL: address, Token: token(2 * time.Second), After: 0, SSE: sse})
		n := 0
		relaytest.Wait(t, "two ends of tokens", func() bool {
			w.Insert(relay.Row{Type: "x"})
			n++
			return len(f.of(client.Disconnected)) >= 2
		})
		relaytest.Wait(t, "all events", func() bool { return len(f.got()) >= n })
		for i, id := range f.got() {
			if id != int64(i)+1 {
				t.Fatalf("event %d is %d", i+1, id)
			}
		}
		var refusal *client.RefusalError
		if err := f.of(client.Disconnected)[0].Err; !errors.As(err, &refusal) || refusal.Code != "token_expired" {
			t.Errorf("it was told %v", err)
		}
	})
}

func TestAnEventThatTheRelayDoesNotKnowIsToldAndGoneOnWithout(t *testing.T) {
	both(t, func(t *testing.T, sse bool) {
		w, address := newRelay(t)
		w.Insert(relay.Row{Type: "x"})
		relaytest.Wait(t, "the event", func() bool { return w.Status().Head == 1 })
		f := follow(t, client.Options{URL: address, Token: token(time.Hour), After: 1000, SSE: sse})
		relaytest.Wait(t, "it is told", func() bool { return len(f.of(client.Reset)) == 1 })
		if n := f.of(client.Reset)[0]; n.LastEventID != 1 || !strings.Contains(n.Err.Error(), "1000 is above the newest event") {
			t.Errorf("told %+v", n)
		}
		w.Insert(relay.Row{Type: "y"})
		relaytest.Wait(t, "the next event", func() bool { return slices.Equal(f.got(), []int64{2}) })
	})
}

func TestFollowEndsWithTheCallersError(t *testing.T) {
	both(t, func(t *testing.T, sse bool) {
		w, address := newRelay(t)
		w.Insert(relay.Row{Type: "x"})
		mine := errors.New("mine")
		for _, c := range []struct{ returned, want error }{{mine, mine}, {client.ErrEnough, nil}, {fmt.Errorf("now: %w", client.ErrEnough), nil}} {
			err := client.Follow(t.Context(), client.Options{URL: address, Token: token(time.Hour), SSE: sse}, func(client.Event) error { return c.returned })
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		}
	})
}

// A connection on which nothing comes, not even a heartbeat, is dead although
// nobody has closed it.
func TestASilentConnectionIsGivenUp(t *testing.T) {
	both(t, func(t *testing.T, sse bool) {
		_, address := newRelay(t)
		f := follow(t, client.Options{URL: address, Token: token(time.Hour), After: -1, SSE: sse, Silence: 300 * time.Millisecond})
		relaytest.Wait(t, "it connects again", func() bool { return len(f.of(client.Connected)) > 1 })
	})
}

func TestReasonsThatNoRetryMendsEndIt(t *testing.T) {
	t.Parallel()
	permanent := map[string]bool{
		"no_token": true, "invalid_token": true, "not_approved": true, "unknown_user": true, "origin_forbidden": true,
		"bad_request": true, "token_expired": true, "session_revoked": true, "other_user": true,
	}
	for _, r := range stream.Reasons() {
		if got := (&client.RefusalError{Code: r.Label}).Permanent(); got != permanent[r.Label] {
			t.Errorf("%s: permanent is %t", r.Label, got)
		}
	}
	for status, want := range map[int]bool{200: true, 301: true, 404: true, 408: false, 429: false, 502: false, 503: false} {
		if got := (&client.RefusalError{Status: status}).Permanent(); got != want {
			t.Errorf("status %d: permanent is %t", status, got)
		}
	}
}
