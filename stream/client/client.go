// Package client follows a relay's events from a program in Go, over a WebSocket
// or SSE, with nothing but the public protocol (../README.md): it reconnects with
// backoff, resumes from the last event, renews its token, and hands out each event
// once, in order.
//
// [Follow] is where to start reading. websocket.go and sse.go are the transports,
// refusal.go is what a relay or a proxy answers instead of a stream, and probe.go
// looks at what stands between this machine and a relay.
package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"
)

// Options say whom to follow, and how. URL and Token are required.
type Options struct {
	// URL is the relay's address, such as https://relay.example.org; it may have a
	// path, if a proxy serves the relay below one.
	URL string
	// Token is asked for a token before each connection, and when the one in use is
	// about to end. One that gives another than before has it renewed in place.
	Token func(context.Context) (string, error)
	// After is the event after which to begin; below 0 is the newest.
	After int64
	// SSE follows an event stream rather than a WebSocket.
	SSE bool
	// Silence is how long a connection may bring nothing, not even a heartbeat,
	// before it is given up; default 90 s, six heartbeats of a relay's default.
	Silence time.Duration
	// MinWait and MaxWait bound the waiting before the client connects again: a
	// random time of at most MinWait, then twice that and so on. Default 1 s, 30 s.
	MinWait, MaxWait time.Duration
	// Notice is told what happens besides events; default nobody. It is called from
	// the goroutine of Follow.
	Notice func(Notice)
}

// Event is one event.
type Event struct {
	ID   int64
	Type string
	// CadetID is nil for an event that is about no cadet.
	CadetID *int64
	// JSON is the event as the relay has sent it, on one line.
	JSON []byte
}

// Kind is what a notice tells of.
type Kind string

// Kinds of notices.
const (
	// Connected: LastEventID is the relay's newest event.
	Connected Kind = "connected"
	// CaughtUp: Count events were sent up to LastEventID for having resumed. If
	// Truncated, some that should have been are past retention, or of an epoch
	// whose IDs can't be compared any more.
	CaughtUp Kind = "caught up"
	// Reset: the relay does not know the event that was to be resumed after, which
	// happens when its database was put back from a copy. It goes on from
	// LastEventID.
	Reset Kind = "reset"
	// Renewed: the relay has taken a new token.
	Renewed Kind = "renewed"
	// Disconnected: because of Err, and for Wait.
	Disconnected Kind = "disconnected"
	// Failed: the relay says in Err that it can't do something.
	Failed Kind = "failed"
)

// Notice tells what happened. Which fields are set depends on the Kind.
type Notice struct {
	Kind        Kind
	LastEventID int64
	Count       int64
	Truncated   bool
	// UserID, Role and CadetID are who the relay takes the client for.
	UserID  int64
	Role    string
	CadetID *int64
	Err     error
	Wait    time.Duration
}

// ErrEnough makes Follow end without an error, when the function that is handed
// the events returns it.
var ErrEnough = errors.New("that was enough")

// Follow hands each event to the function each, once and in order, until ctx ends,
// each returns an error, or the relay refuses in a way that no retry will mend, a
// [*RefusalError]. A relay that can't be reached is waited for.
func Follow(ctx context.Context, o Options, each func(Event) error) error {
	f, err := newFollower(o, each)
	if err != nil {
		return err
	}
	defer f.transport.CloseIdleConnections()
	for failures := 0; ; {
		f.established = false
		err := f.connect(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var stopped *stoppedError
		if errors.As(err, &stopped) {
			if errors.Is(stopped.err, ErrEnough) {
				return nil
			}
			return stopped.err
		}
		if f.established {
			failures, f.excused = 0, false
		}
		wait := rand.N(min(f.o.MaxWait, f.o.MinWait<<min(failures, 10))) //nolint:gosec // needs no secrecy
		failures++
		var refusal *RefusalError
		if errors.As(err, &refusal) {
			if !f.forgives(ctx, refusal) {
				return err
			}
			wait = max(wait, min(refusal.RetryAfter, f.o.MaxWait))
		}
		f.o.Notice(Notice{Kind: Disconnected, Err: err, Wait: wait, LastEventID: f.cursor})
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// stoppedError is what the caller's function has returned.
type stoppedError struct{ err error }

func (e *stoppedError) Error() string { return e.err.Error() }

// forgives reports whether connecting again may help: where the token was at fault,
// if there is another by now, once.
func (f *follower) forgives(ctx context.Context, r *RefusalError) bool {
	if !r.Permanent() {
		return true
	}
	if !r.OfToken() || f.excused {
		return false
	}
	f.excused = true
	fresh, err := f.o.Token(ctx)
	return err == nil && fresh != f.token
}

const (
	defaultSilence = 90 * time.Second
	defaultMinWait = time.Second
	defaultMaxWait = 30 * time.Second
)

func newFollower(o Options, each func(Event) error) (*follower, error) {
	base, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Silence <= 0 {
		o.Silence = defaultSilence
	}
	if o.MinWait <= 0 {
		o.MinWait = defaultMinWait
	}
	if o.MaxWait <= 0 {
		o.MaxWait = defaultMaxWait
	}
	if o.Notice == nil {
		o.Notice = func(Notice) {}
	}
	return &follower{o: o, each: each, cursor: o.After, base: base, transport: newTransport(o.Silence)}, nil
}

// The addresses of the protocol, below the relay's own.
const (
	webSocketPath = "/ws/updates/"
	ssePath       = "/api/events"
)

// parseURL reads the address of a relay. That of one of its streams does, too.
func parseURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	scheme := map[string]string{"http": "http", "https": "https", "ws": "http", "wss": "https"}
	if err != nil || scheme[u.Scheme] == "" || u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("%q is no address of a relay; allowed is one such as https://relay.example.org", text)
	}
	path := strings.TrimSuffix(u.Path, "/")
	for _, known := range []string{strings.TrimSuffix(webSocketPath, "/"), ssePath} {
		path = strings.TrimSuffix(path, known)
	}
	return &url.URL{Scheme: scheme[u.Scheme], Host: u.Host, Path: strings.TrimSuffix(path, "/")}, nil
}
