package stream

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// eventStream is a client on SSE (CONTRACT, section 5).
type eventStream struct {
	session
	// resumed: the client asked for a place to begin, which is a later one only
	// when it has been brought there.
	resumed bool
	out     output
}

// output is where an event stream is written: a connection of its own, or a
// stream of HTTP/2's.
type output interface {
	writeEvents(events []*relay.Event) error
	// push is that of a [relay.Prompt].
	push(events []*relay.Event) (left func() error, err error)
	writeBlock(block []byte) error
	// finish writes a last block, unless it is nil or nothing can be written, and
	// makes the stream end soon.
	finish(block []byte)
}

// serveEvents answers GET /api/events.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	t := s.metrics.sse
	if !s.origins.Allow(r) {
		t.connect(reasonOrigin.Label)
		s.refuseOrigin(w, r)
		return
	}
	allowOrigin(w, r)
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Methods", "GET, HEAD")
		w.Header().Set("Access-Control-Allow-Headers", "Authorization, Last-Event-ID, Cache-Control")
		w.Header().Set("Access-Control-Max-Age", "600")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.ContentLength > 0 {
		t.connect(reasonBadRequest.Label)
		closeAfter(w, r) // nobody waits for the body
		writeError(w, http.StatusBadRequest, reasonBadRequest.Label, "a request for the event stream has no body")
		return
	}
	query, ok := parseQuery(w, r)
	if !ok {
		t.connect(reasonBadRequest.Label)
		return
	}
	id, visit, err := s.knock(w, r, query)
	taken := false // over by a goroutine of the connection's, which gives back what is taken here
	defer func() {
		if !taken {
			s.depart(visit)
		}
	}()
	if err != nil {
		s.refuseToken(w, r, err, t.connect)
		return
	}
	if r.Method == http.MethodHead {
		streamHeader(w.Header())
		return
	}
	if !s.enter() {
		t.connect(reasonRestarting.Label)
		writeReason(w, r, reasonRestarting)
		return
	}
	defer func() {
		if !taken {
			s.leave()
		}
	}()
	c := &eventStream{}
	c.session = session{server: s, transport: t, link: c, visit: visit}
	from := start(r, query, true)
	c.resumed = from.Resume
	if r.ProtoMajor >= 2 {
		c.serveMultiplexed(w, r, id, from)
		return
	}
	reason := c.takeOver(w, r, id, from)
	if taken = reason == nil; taken {
		return
	}
	c.session.close()
	if c.sub == nil {
		t.connect(reason.Label) // it was not let in
	}
	if reason.Status != 0 {
		writeReason(w, r, reason)
	}
}

// refuseToken answers a request whose token is no good, and counts it.
func (s *Server) refuseToken(w http.ResponseWriter, r *http.Request, err error, count func(outcome string)) {
	reason, text := reasonInternal, reasonInternal.Text
	if auth, ok := err.(*AuthError); ok { //nolint:errorlint // Verify returns no other
		reason, text = auth.reason, auth.Error()
	}
	count(reason.Label)
	if reason.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	writeRefusal(w, r, reason, text)
}

// allowOrigin lets a page of another origin, which is allowed, read the answer.
// Credentials of the browser's own (cookies) are never asked for.
func allowOrigin(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Origin")
	if from := r.Header.Get("Origin"); from != "" {
		w.Header().Set("Access-Control-Allow-Origin", from)
		w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
	}
}

func streamHeader(h http.Header) {
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	h.Set("X-Content-Type-Options", "nosniff")
}

// How long a browser waits before it connects again, in milliseconds: each its
// own time, so that they don't all come back at once.
const retryFrom, retryTo = 1000, 5000

// preamble is what stands before the first message.
func preamble() []byte {
	retry := retryFrom + rand.IntN(retryTo-retryFrom) //nolint:gosec // needs no secrecy
	return []byte("retry: " + strconv.Itoa(retry) + "\n\n")
}

// Events is part of [relay.Sink].
func (c *eventStream) Events(events []*relay.Event, live bool) error {
	if err := c.out.writeEvents(events); err != nil {
		return err
	}
	c.transport.delivered(events, live)
	return nil
}

// Push is part of [relay.Prompt].
func (c *eventStream) Push(events []*relay.Event) (left func() error, err error) {
	left, err = c.out.push(events)
	return c.transport.pushed(events, left, err)
}

// Control is part of [relay.Sink].
func (c *eventStream) Control(m relay.Control) error {
	if _, ok := m.(heartbeat); ok {
		return c.out.writeBlock([]byte(": heartbeat\n\n"))
	}
	eventType, text, err := control(m, c.transport.name, c.who().Identity)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncode, err)
	}
	return c.out.writeBlock(appendSSE(nil, c.position(m), eventType, text))
}

// position is the event ID that a control message tells the browser to resume
// after: the one at which the cursor is known to stand. So a client that was
// not sent an event for hours doesn't ask for hours when it reconnects.
func (c *eventStream) position(m relay.Control) int64 {
	switch m := m.(type) {
	case relay.Established:
		if !c.resumed {
			return m.LastEventID
		}
	case relay.ReplayComplete:
		return m.LastEventID
	}
	return -1
}

// beat is part of link.
func (c *eventStream) beat() { _ = c.sub.Post(heartbeat{}) } // one that is busy needs no comment

func (c *eventStream) interval() time.Duration { return c.server.options.Heartbeat }

// sayGoodbye is part of link. A client that is still there is told why in an
// error event; it may find that out too by connecting again.
func (c *eventStream) sayGoodbye(reason *Reason, text string) {
	var block []byte
	if reason.Code != 0 {
		eventType, message, err := control(relay.Failure{Code: reason.Label, Message: text}, c.transport.name, relay.Identity{})
		if err == nil { // texts can't fail
			block = appendSSE(nil, -1, eventType, message)
		}
	}
	c.out.finish(block)
}
