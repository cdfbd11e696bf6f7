package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// session is what the two transports share: who the client is, the subscriber,
// the heartbeat, the end of the token, and the one reason for which it all ends.
type session struct {
	server    *Server
	transport *transport
	link      link
	visit     visit
	// sub and user are set before the session's first beat and never changed.
	sub  *relay.Subscriber
	user *user
	// alarm goes off with the next of a beat, the notice and the end of the token.
	alarm alarm

	mu       sync.Mutex
	identity Identity
	asked    time.Time // when it was asked last who the client is; see recheck.go
	beatAt   time.Time // the next beat
	noticed  bool      // the client was told that its token ends soon
	reason   *Reason   // why the session ended; nil while it lives
}

// link is a transport's part of a session.
type link interface {
	relay.Sink
	// beat is called once in a heartbeat.
	beat()
	// interval is the time between beats.
	interval() time.Duration
	// sayGoodbye tells the client the reason as far as the transport can, and
	// makes the connection end soon. It takes a second or two at most, is called
	// once, and from any goroutine.
	sayGoodbye(reason *Reason, text string)
}

// open subscribes the client and starts its clock. It returns the reason if
// that can't be done.
func (s *session) open(id Identity, start relay.Start) *Reason {
	s.identity, s.asked = id, s.visit.begun
	if !s.server.admit(s) {
		s.server.tickets.giveBack(s.visit.ticket)
		return reasonRestarting
	}
	if reason := s.subscribe(start); reason != nil {
		s.server.forget(s)
		s.server.tickets.giveBack(s.visit.ticket)
		return reason
	}
	s.server.tickets.useUp(s.visit.ticket)
	s.visit.ticket = nil // which need not live as long as the session
	s.transport.connect(accepted)
	s.transport.connections.Inc()
	if s.server.noise.debugging() {
		s.server.noise.debug("connected", s.fields()...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == nil {
		// The first beat comes early by a random time, so that clients who came
		// together don't beat together for ever.
		first := s.link.interval()/2 + rand.N(s.link.interval()/2) //nolint:gosec // needs no secrecy
		now := time.Now()
		s.beatAt = now.Add(first)
		s.server.clock.set(s, s.untilTick(now))
	}
	return nil
}

// subscribe makes a subscriber of the client, if the user's limits let it.
func (s *session) subscribe(start relay.Start) *Reason {
	user, reason := s.server.gate.join(s.identity.UserID)
	if reason != nil {
		return reason
	}
	defer func() {
		if s.user == nil { // it was not let in
			user.part()
		}
	}()
	start.Replays, start.Pace = &user.replays, user.pace
	ask := func() error { return s.ask(start) }
	var refused bool
	var err error
	if start.Resume {
		refused, err = user.replay(s.server.relay.Remembers(start.After), ask)
	} else {
		err = ask()
	}
	var auth *AuthError
	switch {
	case refused:
		reason = reasonTooManyReplays
	case errors.As(err, &auth):
		reason = auth.reason
	case errors.Is(err, relay.ErrRevoked):
		reason = reasonRevoked
	case errors.Is(err, relay.ErrNotServing):
		reason = reasonUnavailable
	case err != nil:
		s.server.failed("subscribe a client", err)
		reason = reasonInternal
	default:
		s.user = user
	}
	return reason
}

// ask asks the relay for a subscriber. If the user was revoked since the directory
// was asked who that is, its answer may be of before, and it is asked again.
func (s *session) ask(start relay.Start) (err error) {
	start.Asked = s.visit.asked
	for range maxAskedAgain {
		id := s.who()
		if s.sub, err = s.server.relay.Subscribe(id.Identity, s.link, start); !errors.Is(err, relay.ErrRevoked) || s.server.people == nil {
			return err
		}
		start.Asked = s.server.relay.Moment()
		id, err = s.server.identify(context.Background(), id)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.identity = id
		s.mu.Unlock()
	}
	return &AuthError{reason: reasonUnavailable} // revoked time and again
}

// maxAskedAgain bounds how often it is asked who one client is.
const maxAskedAgain = 3

// close takes the session off the relay, when nothing is written for it any
// more. It is called once, by the transport, whatever has become of open.
func (s *session) close() {
	s.end(reasonLost, "") // if for no other reason; writes fail from now on
	if s.sub == nil {
		s.server.forget(s)
		return // it was not let in
	}
	s.sub.Close()
	s.user.part()
	s.server.forget(s)
	s.transport.connections.Dec()
	s.transport.disconnect(s.ended())
	if s.server.noise.debugging() {
		s.server.noise.debug("disconnected", append(s.fields(), slog.String("reason", s.ended().Label))...)
	}
}

func (s *session) fields() []any {
	id := s.who()
	return []any{slog.String("transport", s.transport.name), slog.Int64("user_id", id.UserID), slog.String("role", id.Role)}
}

// contained makes an error of a panic.
func contained(do func() error) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("panic: %v\n%s", fault, debug.Stack())
		}
	}()
	return do()
}

// contain, deferred, makes a panic the end of this session and of nothing else.
func (s *session) contain(doing string) {
	if fault := recover(); fault != nil {
		s.caught(doing, fault)
		s.end(reasonInternal, "")
	}
}

// caught notes a panic.
func (s *session) caught(doing string, fault any) {
	s.server.failed(doing, fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
}

// expiryNotice is how long before its token ends a client is told so.
const expiryNotice = time.Minute

// untilTick is the time to what the clock must do next. s.mu is held.
func (s *session) untilTick(now time.Time) time.Duration {
	left := s.identity.ExpiresAt.Sub(now)
	next := min(left, s.beatAt.Sub(now))
	if !s.noticed {
		next = min(next, left-expiryNotice)
	}
	return max(next, 0)
}

// tick is what the clock calls: at each beat, and when the token ends or is about
// to.
func (s *session) tick() {
	defer s.contain("keep a session")
	s.mu.Lock()
	if s.reason != nil {
		s.mu.Unlock()
		return
	}
	now := time.Now()
	left := s.identity.ExpiresAt.Sub(now)
	beat := !now.Before(s.beatAt)
	if beat {
		s.beatAt = now.Add(s.link.interval())
	}
	notice := !s.noticed && left <= expiryNotice
	s.noticed = s.noticed || notice
	if left > 0 {
		s.server.clock.set(s, s.untilTick(now))
	}
	s.mu.Unlock()
	if left <= 0 {
		s.end(reasonTokenExpired, "")
		return
	}
	if notice {
		_ = s.sub.Post(expiring{left}) // one that is busy would not read it in time
	}
	if beat {
		s.link.beat()
	}
}

// renew changes who the client is: the same user with a new token. The client is
// told of that first, by tell, and of the new token's end only then, which may
// be near.
func (s *session) renew(id Identity, tell func()) {
	s.mu.Lock()
	s.identity, s.noticed = id, true
	s.mu.Unlock()
	tell()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noticed = false
	if s.reason == nil {
		s.server.clock.set(s, s.untilTick(time.Now()))
	}
}

// who is the present identity.
func (s *session) who() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity
}

// end ends the session for a reason. The first one counts; detail is added to
// its text.
func (s *session) end(reason *Reason, detail string) {
	s.mu.Lock()
	if s.reason != nil {
		s.mu.Unlock()
		return
	}
	s.reason = reason
	s.server.clock.drop(s)
	s.mu.Unlock()
	text := reason.Text
	if detail != "" {
		text += ": " + detail
	}
	s.link.sayGoodbye(reason, text)
}

// refuse ends the session for an error of a token.
func (s *session) refuse(err error) {
	var auth *AuthError
	if errors.As(err, &auth) {
		s.end(auth.reason, auth.detail)
	} else {
		s.server.failed("check a token", err)
		s.end(reasonInternal, "")
	}
}

// dismiss ends the session from a goroutine that is not its own.
func (s *session) dismiss(reason *Reason) {
	defer s.contain("dismiss a client")
	s.end(reason, "")
}

// ended is the reason for which the session ended, nil while it lives.
func (s *session) ended() *Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// End is part of [relay.Sink].
func (s *session) End(cause error) {
	var fault *relay.SinkPanicError
	switch {
	case errors.As(cause, &fault):
		s.server.failed("write to a client", cause)
		s.end(reasonInternal, "")
	case errors.Is(cause, relay.ErrRevoked):
		s.end(reasonRevoked, "")
	case errors.Is(cause, relay.ErrNewEpoch):
		s.end(reasonNewEpoch, "")
	case errors.Is(cause, relay.ErrNotServing): // another relay has become the owner
		s.end(reasonUnavailable, "")
	case errors.Is(cause, os.ErrDeadlineExceeded):
		s.end(reasonSlow, "")
	case errors.Is(cause, errEncode):
		s.server.failed("encode a message", cause)
		s.end(reasonInternal, "")
	default:
		s.end(reasonLost, "")
	}
}

// errEncode: a control message can't be encoded, which is a fault of ours.
var errEncode = errors.New("encode a control message")
