package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime/debug"
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

// Sizes of what a client sends, in bytes.
const (
	maxMessage = 4 << 10
	// readBuffer is gorilla's smallest: a control frame must fit. What is longer
	// is read past it.
	readBuffer = 125
)

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
	query := r.URL.Query()
	from := start(r, query, false)
	identity, err := s.verifier.Verify(token(r, query))

	var header http.Header
	if slices.Contains(subprotocols(r), bearer) {
		header = http.Header{"Sec-Websocket-Protocol": {bearer}}
	}
	c := &webSocket{}
	c.session = session{server: s, transport: t, link: c}
	c.wire.deadline.timeout = s.options.WriteTimeout
	if !s.enter() {
		t.connect(reasonRestarting.Label)
		writeReason(w, reasonRestarting)
		return
	}
	c.conn, _ = s.upgrader.Upgrade(&hijacker{w, &c.wire}, r, header)
	if c.conn == nil {
		s.leave()
		t.connect(reasonBadRequest.Label)
		return // the upgrader has answered
	}
	// A goroutine of its own lets go of the HTTP server's, with its deep stack,
	// its buffers and the request.
	go c.run(identity, err, from)
}

// run is the life of the connection after the handshake.
func (c *webSocket) run(id Identity, denied error, from relay.Start) {
	defer c.server.leave()
	defer func() { _ = c.wire.Close() }() // nothing that failed here could be mended
	c.conn.SetPingHandler(c.pingFrame)
	c.conn.SetPongHandler(func(string) error { c.heard.Store(true); return nil })
	switch {
	case denied != nil:
		c.refuse(denied)
		c.transport.connect(c.ended().Label)
	default:
		if reason := c.open(id, from); reason != nil {
			c.end(reason, "")
			c.transport.connect(reason.Label)
			break
		}
		defer c.session.close()
	}
	c.read()
}

// read reads until the connection is over: what the client asks for, and once
// the session has ended only for the client's close frame.
func (c *webSocket) read() {
	defer func() {
		if fault := recover(); fault != nil {
			c.server.failed("serve a WebSocket", fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
			c.end(reasonInternal, "")
		}
	}()
	for {
		kind, r, err := c.conn.NextReader()
		if err != nil {
			c.readFailed(err)
			return
		}
		if c.ended() != nil {
			continue
		}
		c.heard.Store(true)
		if err := c.message(kind, r); err != nil {
			c.readFailed(err)
			return
		}
	}
}

// message reads and handles one message. The buffer is lent only for as long.
func (c *webSocket) message(kind int, r io.Reader) error {
	buffer := buffers.get(maxMessage + 1)
	defer buffers.put(buffer)
	n, err := io.ReadFull(r, (*buffer)[:maxMessage+1])
	switch {
	case err == nil:
		c.end(reasonTooLarge, "")
		return nil
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
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

// withinRate counts a message or a ping frame. A client that sends too many is
// let go.
func (c *webSocket) withinRate() bool {
	if c.limits == nil {
		o := &c.server.options
		c.limits = &clientLimits{
			messages:  rate.NewLimiter(rate.Limit(o.MessageRate), o.MessageBurst),
			malformed: rate.NewLimiter(rate.Limit(maxMalformed/malformedWindow.Seconds()), maxMalformed),
		}
	}
	if !c.limits.messages.Allow() {
		c.end(reasonTooMany, fmt.Sprintf("%g a second are allowed", c.server.options.MessageRate))
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
	if c.sub.Replay(after) != nil {
		c.post(relay.Failure{Code: codeTooManyRequests, Message: "too many replays are waiting: ask again after the next replay_complete"})
	}
}

// authenticate renews the identity of the connection with a new token.
func (c *webSocket) authenticate(token string) {
	id, err := c.server.verifier.Verify(token)
	switch {
	case err != nil:
		c.refuse(err)
	case id.UserID != c.who().UserID:
		c.end(reasonOtherUser, "")
	default:
		c.renew(id)
		c.sub.SetIdentity(id.Identity)
		status := c.server.relay.Status()
		c.post(renewed{relay.Established{LastEventID: status.Head, Epoch: status.Epoch}})
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
	c.heard.Store(true)
	if c.ended() == nil && c.withinRate() {
		_ = c.wire.writeFrame(framePong, []byte(payload)) // a broken connection is found by the next read
	}
	return nil
}

// readFailed ends the session with what reading has failed with, and sees to it
// that the client can read the close frame that it was sent.
func (c *webSocket) readFailed(err error) {
	var closed *websocket.CloseError
	var failed net.Error
	switch {
	case errors.As(err, &failed) && failed.Timeout():
		return // the farewell is over; there is no other deadline for reading
	case errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure:
		c.end(reasonClosed, "")
		return // gorilla has sent the close frame back
	case errors.Is(err, websocket.ErrReadLimit):
		c.end(reasonTooLarge, "")
	case c.wire.saidGoodbye():
		c.end(reasonProtocolError, "") // gorilla has said what was wrong
	default:
		c.end(reasonLost, "")
		return
	}
	// Closing a socket with something unread in it would reset the connection,
	// and the close frame could be lost.
	c.wire.deadline.close(c.wire.Conn)
	_ = c.wire.SetReadDeadline(time.Now().Add(farewell))
	_, _ = io.Copy(io.Discard, c.wire.Conn)
}

// Events is part of [relay.Sink].
func (c *webSocket) Events(events []*relay.Event, live bool) error {
	if err := c.wire.writeEvents(events); err != nil {
		return err
	}
	c.transport.delivered(events, live)
	return nil
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
	_ = c.wire.SetReadDeadline(time.Now().Add(farewell))
}
