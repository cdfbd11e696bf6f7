package stream

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// eventStream is a client on SSE (CONTRACT, section 5).
type eventStream struct {
	session
	// resumed: the client asked for a place to begin, which is a later one only
	// when it has been brought there.
	resumed bool
	over    chan struct{} // closed when nothing more will be written

	out        sync.Mutex // held while something is written
	w          http.ResponseWriter
	controller *http.ResponseController
	deadline   deadline
	begun      bool // the header has been written
	timedOut   bool // a write was not taken in time
	finished   bool // nothing may be written any more
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
	query := r.URL.Query()
	id, err := s.verifier.Verify(token(r, query))
	if err != nil {
		s.refuseToken(w, err)
		return
	}
	if r.Method == http.MethodHead {
		streamHeader(w.Header())
		return
	}
	if !s.enter() {
		t.connect(reasonRestarting.Label)
		writeReason(w, reasonRestarting)
		return
	}
	defer s.leave()
	from := start(r, query, true)
	c := &eventStream{
		resumed: from.Resume, over: make(chan struct{}),
		w: w, controller: http.NewResponseController(w),
	}
	c.session = session{server: s, transport: t, link: c}
	c.deadline.timeout = s.options.WriteTimeout
	if reason := c.open(id, from); reason != nil {
		t.connect(reason.Label)
		writeReason(w, reason)
		return
	}
	select {
	case <-c.over:
	case <-r.Context().Done():
		c.end(c.gone(), "")
		<-c.over
	}
	// The writer is the HTTP server's again once this returns: the goodbye is
	// said, and close waits for the pump.
	c.session.close()
	if reason := c.ended(); !c.begun && reason.Status != 0 {
		writeReason(w, reason) // it ended before there was a stream
	}
}

// refuseToken answers a request whose token is no good.
func (s *Server) refuseToken(w http.ResponseWriter, err error) {
	reason, text := reasonInternal, reasonInternal.Text
	if auth, ok := err.(*AuthError); ok { //nolint:errorlint // Verify returns no other
		reason, text = auth.reason, auth.Error()
	}
	s.metrics.sse.connect(reason.Label)
	if reason.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	writeError(w, reason.Status, reason.Label, text)
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

// begin writes the header and what stands before the first message. c.out is
// held.
func (c *eventStream) begin() error {
	c.begun = true
	streamHeader(c.w.Header())
	c.w.WriteHeader(http.StatusOK)
	retry := retryFrom + rand.IntN(retryTo-retryFrom) //nolint:gosec // needs no secrecy
	_, err := c.w.Write([]byte("retry: " + strconv.Itoa(retry) + "\n\n"))
	return err
}

// ready prepares for writing. c.out is held.
func (c *eventStream) ready() error {
	if c.finished {
		return errClosing
	}
	if !c.begun {
		return c.begin()
	}
	return nil
}

// writeBlock writes one block.
func (c *eventStream) writeBlock(block []byte) error {
	c.out.Lock()
	defer c.out.Unlock()
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.pieces(block); err != nil {
		return err
	}
	return c.flush()
}

// writeEvents writes events, those that are not huge together.
func (c *eventStream) writeEvents(events []*relay.Event) error {
	size := 0
	for _, e := range events {
		size += min(len(e.SSE()), direct)
	}
	buffer := buffers.get(size)
	defer buffers.put(buffer)
	b := (*buffer)[:0]
	c.out.Lock()
	defer c.out.Unlock()
	if err := c.ready(); err != nil {
		return err
	}
	for _, e := range events {
		if c.deadline.closing.Load() {
			// The goodbye is waiting, and must get through within a second.
			if err := c.pieces(b); err != nil {
				return err
			}
			return errClosing
		}
		block := e.SSE()
		huge := len(block) >= direct
		if huge || len(b)+len(block) > cap(b) {
			if err := c.pieces(b); err != nil {
				return err
			}
			b = b[:0]
		}
		if !huge {
			b = append(b, block...)
		} else if err := c.pieces(block); err != nil {
			return err
		}
	}
	if err := c.pieces(b); err != nil {
		return err
	}
	return c.flush()
}

// pieces writes p. c.out is held.
func (c *eventStream) pieces(p []byte) error {
	for len(p) > 0 {
		c.deadline.extend(c.controller)
		n, err := c.w.Write(p[:min(len(p), piece)])
		if err != nil {
			return c.failed(err)
		}
		p = p[n:]
	}
	return nil
}

// flush sends what has been written. c.out is held.
func (c *eventStream) flush() error { return c.failed(c.controller.Flush()) }

// failed notes how a write failed. c.out is held.
func (c *eventStream) failed(err error) error {
	c.timedOut = c.timedOut || errors.Is(err, os.ErrDeadlineExceeded)
	return err
}

// gone is why the HTTP server says that the client has gone: it says so too
// when a write was not taken in time.
func (c *eventStream) gone() *Reason {
	c.out.Lock()
	defer c.out.Unlock()
	if c.timedOut {
		return reasonSlow
	}
	return reasonClosed
}

// Events is part of [relay.Sink].
func (c *eventStream) Events(events []*relay.Event, live bool) error {
	if err := c.writeEvents(events); err != nil {
		return err
	}
	c.transport.delivered(events, live)
	return nil
}

// Control is part of [relay.Sink].
func (c *eventStream) Control(m relay.Control) error {
	if _, ok := m.(heartbeat); ok {
		return c.writeBlock([]byte(": heartbeat\n\n"))
	}
	eventType, text, err := control(m, c.transport.name, c.who().Identity)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncode, err)
	}
	return c.writeBlock(appendSSE(nil, c.position(m), eventType, text))
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
	defer close(c.over)
	c.deadline.close(c.controller)
	c.out.Lock()
	defer c.out.Unlock()
	if !c.begun || c.finished || reason.Code == 0 {
		c.finished = true
		return
	}
	c.finished = true
	eventType, message, err := control(relay.Failure{Code: reason.Label, Message: text}, c.transport.name, relay.Identity{})
	if err != nil {
		return
	}
	if c.pieces(appendSSE(nil, -1, eventType, message)) == nil {
		_ = c.flush() // the stream ends either way
	}
}
