package stream

import (
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
	"golang.org/x/time/rate"

	"github.com/syncrelay/syncrelay/relay"
)

// webSocket is a client on a WebSocket (CONTRACT, section 4).
type webSocket struct {
	session
	wire wire
	conn *websocket.Conn

	// heard: something has come since the last ping was sent, which pinged says.
	heard, pinged atomic.Bool
	limits        *clientLimits // nil until the client sends something
}

// clientLimits bound what one client may send.
type clientLimits struct{ messages, malformed *rate.Limiter }

// readBuffer is gorilla's smallest, in bytes: a control frame must fit. What is
// longer is read past it.
const readBuffer = 125

func (s *Server) newUpgrader() *websocket.Upgrader {
	return &websocket.Upgrader{
		HandshakeTimeout: s.options.WriteTimeout,
		ReadBufferSize:   readBuffer,
		// Control frames need no buffer, and we write all others past gorilla,
		// so that with a pool nothing is ever allocated for writing.
		WriteBufferPool: &s.writeBuffers,
		CheckOrigin:     func(*http.Request) bool { return true }, // serveWebSocket did
		Error: func(w http.ResponseWriter, _ *http.Request, status int, err error) {
			writeError(w, status, reasonBadRequest.Label, err.Error())
		},
	}
}

// serveWebSocket answers the handshake. What is wrong with the token is said
// after it, because a browser shows a page no HTTP status.
func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request) {
	t := s.metrics.webSocket
	if !websocket.IsWebSocketUpgrade(r) {
		t.connect(reasonBadRequest.Label)
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		writeError(w, http.StatusUpgradeRequired, reasonBadRequest.Label, "this address speaks WebSocket (RFC 6455); the same events come as a text/event-stream from "+pathEvents)
		return
	}
	if !s.origins.Allow(r) {
		t.connect(reasonOrigin.Label)
		s.refuseOrigin(w, r)
		return
	}
	query, ok := parseQuery(w, r)
	if !ok {
		t.connect(reasonBadRequest.Label)
		return
	}
	from := start(r, query, false)
	identity, visit, err := s.knock(w, r, query)
	running := false // on a goroutine of its own, which gives back what is taken here
	defer func() {
		if !running {
			s.depart(visit)
		}
	}()

	var header http.Header
	if slices.Contains(subprotocols(r), bearer) {
		header = http.Header{"Sec-Websocket-Protocol": {bearer}}
	}
	c := &webSocket{}
	c.session = session{server: s, transport: t, link: c, visit: visit}
	c.wire.deadline.timeout, c.wire.deadline.farewell = s.options.WriteTimeout, s.options.CloseTimeout
	c.wire.unaccounted.most = s.options.Limits.MessageBytes + maxFragments*maxClientHeader
	upgrader := s.upgrader
	c.wire.framing = s.frames
	if s.deflating != nil && deflates(r.Header) {
		upgrader, c.wire.framing = s.deflating, s.packedFrames
	}
	if !s.enter() {
		t.connect(reasonRestarting.Label)
		writeReason(w, r, reasonRestarting)
		return
	}
	defer func() {
		if !running {
			s.leave()
		}
	}()
	c.conn, _ = upgrader.Upgrade(&hijacker{w, &c.wire}, r, header)
	if c.conn == nil {
		t.connect(reasonBadRequest.Label)
		return // the upgrader has answered
	}
	c.conn.SetPingHandler(c.pingFrame)
	c.conn.SetPongHandler(c.pongFrame)
	c.begin(identity, err, from)
	// A goroutine of its own lets go of the HTTP server's, with its deep stack,
	// its buffers and the request.
	running = true
	go c.read()
}

// over ends what the connection was, because of a panic if fault is not nil.
func (c *webSocket) over(fault any) {
	defer c.contain("end a WebSocket")
	defer c.server.leave()
	defer c.server.depart(c.visit)
	defer func() { _ = c.wire.Close() }() // nothing that failed here could be mended
	if fault != nil {
		c.caught("read from a WebSocket", fault)
		c.end(reasonInternal, "")
	}
	c.session.close()
}

// begin lets the client in, or says why not.
func (c *webSocket) begin(id Identity, denied error, from relay.Start) {
	defer c.contain("begin a WebSocket")
	if denied != nil {
		c.refuse(denied)
		c.transport.connect(c.ended().Label)
		return
	}
	if reason := c.open(id, from); reason != nil {
		c.end(reason, "")
		c.transport.connect(reason.Label)
	}
}

// read reads one message, does what the client asks for, and leaves the next one to
// another goroutine, until the connection is over; once the session has ended it
// only looks for the client's close frame. It mostly waits, with all that it has
// called for that on the smallest stack that there is. What a message takes more is
// given back with the goroutine: of itself no stack would get that small again. (That
// is no help with a ping frame, which gorilla hands over in the midst of reading.)
func (c *webSocket) read() {
	over := true
	defer func() {
		if fault := recover(); over {
			c.over(fault)
		} else {
			go c.read()
		}
	}()
	kind, r, err := c.conn.NextReader()
	if err == nil && c.ended() == nil {
		c.heard.Store(true)
		err = c.message(kind, r)
	}
	if err != nil {
		c.readFailed(err)
		return
	}
	over = false
}

// message reads and handles one message. The buffer is lent only for as long.
func (c *webSocket) message(kind int, r io.Reader) error {
	defer c.contain("answer a message")
	longest := c.server.options.Limits.MessageBytes
	buffer := buffers.get(longest + 1)
	defer buffers.put(buffer)
	n, err := readUpTo(r, (*buffer)[:longest+1])
	switch {
	case err == nil: // what is packed is only unpacked up to here
		c.end(reasonTooLarge, c.longest())
		return nil
	case !errors.Is(err, io.EOF):
		return err
	}
	text := (*buffer)[:n]
	switch {
	case !c.withinRate():
	case kind != websocket.TextMessage:
		c.end(reasonMalformed, "binary messages are not understood")
	case !utf8.Valid(text):
		c.end(reasonNotUTF8, "")
	default:
		c.handle(text)
	}
	return nil
}

// readUpTo fills b, or returns with an error what came before that: io.EOF at the
// end of a message, while io.ErrUnexpectedEOF means that it can't be unpacked.
func readUpTo(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var more int
		more, err = r.Read(b[n:])
		n += more
	}
	return n, err
}

// longest says how long a message may be.
func (c *webSocket) longest() string {
	return fmt.Sprintf("%d bytes are allowed", c.server.options.Limits.MessageBytes)
}

// maxFragments is into how many fragments a message may be cut at least, each with
// the longest header that a client's frame can have, in bytes.
const maxFragments, maxClientHeader = 256, 14

// withinRate counts a message, a ping or a pong that nobody asked for. A client that
// sends too many is let go.
func (c *webSocket) withinRate() bool {
	c.wire.unaccounted.bytes = 0
	if c.limits == nil {
		o := &c.server.options.Limits
		c.limits = &clientLimits{
			messages:  limiter(o.MessageRate, o.MessageBurst),
			malformed: rate.NewLimiter(rate.Limit(maxMalformed/malformedWindow.Seconds()), maxMalformed),
		}
	}
	if !c.limits.messages.Allow() {
		c.end(reasonTooMany, fmt.Sprintf("%g a second are allowed", c.server.options.Limits.MessageRate))
		return false
	}
	return true
}

// What is forgiven to a client that sends nonsense: so many in so long.
const (
	maxMalformed    = 10
	malformedWindow = time.Minute
)

// handle does what a message asks for.
func (c *webSocket) handle(text []byte) {
	frame, err := parseClientFrame(text)
	switch {
	case errors.Is(err, errUnknownType):
		c.post(relay.Failure{Code: codeUnknownType, Message: err.Error()})
	case err != nil && !c.limits.malformed.Allow():
		c.end(reasonMalformed, err.Error())
	case err != nil:
		c.post(relay.Failure{Code: codeMalformed, Message: "malformed message: " + err.Error()})
	case frame.kind == "ping":
		c.post(pong{slices.Clone(frame.timestamp)})
	case frame.kind == "replay_request":
		c.replay(&frame)
	case frame.kind == "auth":
		c.authenticate(frame.token)
	}
}

func (c *webSocket) replay(frame *clientFrame) {
	after, err := frame.replayAfter()
	if err != nil {
		c.post(relay.Failure{Code: relay.CodeInvalidLastEventID, Message: err.Error()})
		return
	}
	refused, err := c.user.replay(c.server.relay.Remembers(after), func() error { return c.sub.Replay(after) })
	switch {
	case refused:
		c.post(relay.Failure{Code: codeTooManyRequests, Message: "too many replays were asked for: ask again later"})
	case err != nil:
		c.post(relay.Failure{Code: codeTooManyRequests, Message: "too many replays are waiting: ask again after the next replay_complete"})
	}
}

// authenticate renews the identity of the connection with a new token.
func (c *webSocket) authenticate(token string) {
	id, err := c.server.authenticateAgain(context.Background(), token, c.who())
	var auth *AuthError
	switch {
	case errors.As(err, &auth) && auth.reason == reasonUnavailable:
		// That is no fault of the client's, whose present token still holds.
		c.post(relay.Failure{Code: reasonUnavailable.Label, Message: "the token can't be checked now: send it again later"})
	case err != nil:
		c.refuse(c.server.gate.judged(c.visit.home, err))
	default:
		c.renew(id, func() {
			c.sub.SetIdentity(id.Identity)
			status := c.server.relay.Status()
			c.post(renewed{relay.Established{LastEventID: status.Head, Epoch: status.Epoch}})
		})
	}
}

// post queues an answer. A client that asks faster than it reads is let go.
func (c *webSocket) post(m relay.Control) {
	if errors.Is(c.sub.Post(m), relay.ErrBusy) {
		c.end(reasonTooMany, "the answers are not being read")
	}
}

// pingFrame answers a ping frame.
func (c *webSocket) pingFrame(payload string) error {
	defer c.contain("answer a ping")
	c.heard.Store(true)
	if c.ended() == nil && c.withinRate() {
		_ = c.wire.writeFrame(framePong, []byte(payload)) // a broken connection is found by the next read
	}
	return nil
}

// pongFrame takes a pong. One that answers a ping of ours counts for nothing.
func (c *webSocket) pongFrame(string) error {
	defer c.contain("take a pong")
	c.heard.Store(true)
	if c.pinged.Swap(false) {
		c.wire.unaccounted.bytes = 0
	} else if c.ended() == nil {
		c.withinRate()
	}
	return nil
}

// readFailed ends the session with what reading has failed with, and sees to it
// that the client can read the close frame that it was sent.
func (c *webSocket) readFailed(err error) {
	var closed *websocket.CloseError
	var failed net.Error
	var corrupt flate.CorruptInputError
	switch {
	case errors.As(err, &corrupt), errors.Is(err, io.ErrUnexpectedEOF) && c.wire.framing == c.server.packedFrames:
		c.end(reasonProtocolError, "a message can't be unpacked")
	case errors.As(err, &failed) && failed.Timeout():
		return // the farewell is over; there is no other deadline for reading
	case errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure:
		c.end(reasonClosed, "")
		return // gorilla has sent the close frame back
	case errors.Is(err, websocket.ErrReadLimit):
		c.end(reasonTooLarge, c.longest())
	case errors.Is(err, errFragments):
		c.end(reasonTooMany, "a message in too many fragments")
	case c.wire.saidGoodbye():
		c.end(reasonProtocolError, "") // gorilla has said what was wrong
	default:
		c.end(reasonLost, "")
		return
	}
	// Closing a socket with something unread in it would reset the connection,
	// and the close frame could be lost.
	c.wire.deadline.close(c.wire.Conn)
	_ = c.wire.SetReadDeadline(time.Now().Add(c.wire.deadline.farewell))
	_, _ = io.Copy(io.Discard, &c.wire)
}

// Events is part of [relay.Sink].
func (c *webSocket) Events(events []*relay.Event, live bool) error {
	if err := c.wire.writeEvents(events); err != nil {
		return err
	}
	c.transport.delivered(events, live)
	return nil
}

// Push is part of [relay.Prompt].
func (c *webSocket) Push(events []*relay.Event) (left func() error, err error) {
	left, err = c.wire.push(events)
	return c.transport.pushed(events, left, err)
}

// Control is part of [relay.Sink].
func (c *webSocket) Control(m relay.Control) error {
	if _, ok := m.(heartbeat); ok {
		c.heard.Store(false)
		c.pinged.Store(true)
		return c.wire.writeFrame(framePing, nil)
	}
	_, text, err := control(m, c.transport.name, c.who().Identity)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncode, err)
	}
	return c.wire.writeFrame(frameText, text)
}

// beat is part of link. A client that has not been heard of since the ping
// before is taken for dead.
func (c *webSocket) beat() {
	if c.pinged.Load() && !c.heard.Load() {
		c.end(reasonSilent, "")
		return
	}
	_ = c.sub.Post(heartbeat{}) // one that is busy needs no ping
}

func (c *webSocket) interval() time.Duration { return c.server.options.PingInterval }

// sayGoodbye is part of link.
func (c *webSocket) sayGoodbye(reason *Reason, text string) {
	if reason.Code == 0 {
		_ = c.wire.Close()
		return
	}
	c.wire.sayGoodbye(reason.Code, text)
	_ = c.wire.SetReadDeadline(time.Now().Add(c.wire.deadline.farewell))
}
