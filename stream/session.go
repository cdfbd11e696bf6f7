package stream

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
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
	// sub is set before the session's first beat and never changed.
	sub *relay.Subscriber

	mu       sync.Mutex
	identity Identity
	clock    *time.Timer // the next beat, or the end of the token
	reason   *Reason     // why the session ended; nil while it lives
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
	s.identity = id
	if !s.server.admit(s) {
		return reasonRestarting
	}
	sub, err := s.server.relay.Subscribe(id.Identity, s.link, start)
	if err != nil {
		s.server.forget(s)
		if !errors.Is(err, relay.ErrNotServing) {
			s.server.failed("subscribe a client", err)
			return reasonInternal
		}
		return reasonUnavailable
	}
	s.sub = sub
	s.transport.connect(accepted)
	s.transport.connections.Inc()
	s.server.logger.Debug("connected", s.fields()...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason == nil {
		// The first beat comes early by a random time, so that clients who came
		// together don't beat together for ever.
		first := s.link.interval()/2 + rand.N(s.link.interval()/2) //nolint:gosec // needs no secrecy
		s.clock = time.AfterFunc(min(first, time.Until(id.ExpiresAt)), s.tick)
	}
	return nil
}

// close takes the session off the relay, when nothing is written for it any
// more. It is called once, by the transport, if open succeeded.
func (s *session) close() {
	s.end(reasonLost, "") // if for no other reason; writes fail from now on
	s.sub.Close()
	s.server.forget(s)
	s.transport.connections.Dec()
	s.transport.disconnects.WithLabelValues(s.ended().Label).Inc()
	s.server.logger.Debug("disconnected", append(s.fields(), slog.String("reason", s.ended().Label))...)
}

func (s *session) fields() []any {
	id := s.who()
	return []any{slog.String("transport", s.transport.name), slog.Int64("user_id", id.UserID), slog.String("role", id.Role)}
}

// tick is what the clock calls: at each beat, and when the token ends.
func (s *session) tick() {
	s.mu.Lock()
	if s.reason != nil {
		s.mu.Unlock()
		return
	}
	left := time.Until(s.identity.ExpiresAt)
	if left > 0 {
		s.clock.Reset(min(s.link.interval(), left))
	}
	s.mu.Unlock()
	if left <= 0 {
		s.end(reasonTokenExpired, "")
		return
	}
	s.link.beat()
}

// renew changes who the client is: the same user with a new token.
func (s *session) renew(id Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.identity = id
	if s.reason == nil {
		s.clock.Reset(min(s.link.interval(), time.Until(id.ExpiresAt)))
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
	if s.clock != nil {
		s.clock.Stop()
	}
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

// ended is the reason for which the session ended, nil while it lives.
func (s *session) ended() *Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// End is part of [relay.Sink].
func (s *session) End(cause error) {
	switch {
	case errors.Is(cause, relay.ErrRevoked):
		s.end(reasonRevoked, "")
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
