package stream

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// errClosing: a close frame has gone out, and nothing may follow it (RFC 6455,
// section 5.5.1).
var errClosing = errors.New("the connection is closing")

// wire is a WebSocket's network connection. It stands under gorilla's [Conn],
// which reads from it and answers what breaks RFC 6455, while all else is
// written past gorilla, many events in one system call.
//
// So two parties write, and wire sees to it that they don't disturb each other:
// each Write of gorilla's is one whole frame (its server side builds control
// frames in one buffer; data frames we never write through it) and holds the
// lock, as does each batch of ours; a close frame of either side is the last;
// and gorilla's deadlines, meant for one control frame, don't cut short a write
// of ours that is under way.
//
// [Conn]: https://pkg.go.dev/github.com/gorilla/websocket#Conn
type wire struct {
	net.Conn
	in      io.Reader       // what Conn reads from: each call in between takes stack
	raw     syscall.RawConn // Conn's socket, nil if only Conn may read and write it
	pull    pull            // what reads from raw
	framing *framing

	mu        sync.Mutex // held while a frame or a batch of them is written
	deadline  deadline
	sentClose bool
	broken    error  // the first error of a write
	held      []byte // the handshake's answer, until the first frame goes out with it

	// The reader's own: what was read since the close frame, and since something
	// was counted, in bytes. Empty fragments are read inside of gorilla, for as long
	// as they come: only here can it be seen that nothing comes of them.
	leftover    int
	unaccounted struct{ bytes, most int }
}

// errFragments: more was read than a message can be, and it still has no end.
var errFragments = errors.New("too many fragments")

// take gives the wire its connection.
func (w *wire) take(conn net.Conn) {
	w.Conn, w.in, w.raw = conn, conn, rawConn(conn)
	if s, ok := conn.(*socket); ok {
		w.in = s.Conn
	}
}

// patience bounds what is read, in bytes, of a client that goes on sending after
// it was told that the connection ends: more than a client may have had on its
// way, and less than what a flood would cost.
const patience = 2 << 20

// Read is part of [net.Conn].
func (w *wire) Read(p []byte) (n int, err error) {
	closing := w.deadline.closing.Load()
	switch {
	case closing && w.leftover >= patience:
		return 0, errClosing
	case !closing && w.unaccounted.most > 0 && w.unaccounted.bytes > w.unaccounted.most:
		return 0, errFragments
	}
	if w.raw == nil {
		n, err = w.in.Read(p)
	} else {
		if w.pull.do == nil {
			w.pull.do = w.pull.read
		}
		w.pull.b, w.pull.n = p, 0
		if err = w.raw.Read(w.pull.do); err == nil {
			err = w.pull.err
		}
		n, w.pull.b = w.pull.n, nil
	}
	if closing {
		w.leftover += n
	} else {
		w.unaccounted.bytes += n
	}
	return n, err
}

// Write writes what gorilla writes: the handshake's answer, then control frames.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sentClose {
		return 0, errClosing
	}
	switch p[0] {
	case frameClose:
		w.sentClose = true
	case handshakeBegins:
		// connection_established or a close frame follows at once: both leave in one
		// system call.
		w.held = slices.Clone(p)
		return len(p), nil
	}
	if err := w.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// handshakeBegins is the first byte of an answer of HTTP/1.1, which no frame
// that gorilla writes begins with: it would be one of a fragment.
const handshakeBegins = 'H'

// SetWriteDeadline is called by gorilla only: wire sets its own deadlines.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// piece is how many bytes are written under one deadline: a client that is slow
// but reads gets the largest payload, one that has stopped is let go.
const piece = 64 << 10

// write writes all of p. w.mu is held. Only what has to wait has a deadline: a timer
// for each that was written to lately would have to be kept.
func (w *wire) write(p []byte) error {
	if w.held != nil {
		p, w.held = append(w.held, p...), nil
	}
	if w.raw != nil && w.broken == nil && len(p) > 0 {
		p = p[w.attempt(p):]
	}
	for len(p) > 0 && w.broken == nil {
		w.deadline.extend(w.Conn)
		n, err := w.Conn.Write(p[:min(len(p), piece)])
		p, w.broken = p[n:], err
	}
	return w.broken
}

// attempt writes what can be written of p without waiting, and returns how much that
// was. w.mu is held.
func (w *wire) attempt(p []byte) (n int) {
	w.deadline.liftOld(w.Conn)
	n, w.broken = tryWrite(w.raw, p)
	return n
}

// writeFrame writes one short frame.
func (w *wire) writeFrame(frame byte, payload []byte) error {
	buffer := buffers.get(maxFrameHeader + len(payload))
	defer buffers.put(buffer)
	b := append(appendFrameHeader((*buffer)[:0], frame, len(payload)), payload...)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sentClose {
		return errClosing
	}
	return w.write(b)
}

// direct is the size in bytes from which a payload is written from where it is
// rather than copied into a batch: one more system call is then cheaper.
const direct = 16 << 10

// writeEvents writes events. Those that are not huge leave together, in one
// system call for as many as the buffer holds.
func (w *wire) writeEvents(events []*relay.Event) error {
	size := 0
	for _, e := range events {
		payload, _ := w.framing.payload(e)
		size += maxHead + min(len(payload), direct)
	}
	buffer := buffers.get(size)
	defer buffers.put(buffer)
	b := (*buffer)[:0]
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sentClose {
		return errClosing
	}
	for _, e := range events {
		if w.deadline.closing.Load() {
			// The close frame is waiting, and must get through within a second.
			if err := w.write(b); err != nil {
				return err
			}
			return errClosing
		}
		payload, packed := w.framing.payload(e)
		if huge := len(payload) >= direct; len(b)+maxHead > cap(b) || !huge && len(b)+maxHead+len(payload) > cap(b) {
			if err := w.write(b); err != nil {
				return err
			}
			b = b[:0]
		}
		if len(payload) < direct {
			b = w.framing.append(b, e)
			continue
		}
		if err := w.write(w.framing.head(b, len(payload), packed)); err != nil {
			return err
		}
		if err := w.write(payload); err != nil {
			return err
		}
		b = append(b[:0], w.framing.tail...)
	}
	return w.write(b)
}

// push writes events as far as that is possible without waiting. What is left is
// written by the function that it returns, which must be called: nothing else is
// written before.
func (w *wire) push(events []*relay.Event) (left func() error, err error) {
	later := func() func() error {
		events := slices.Clone(events)
		return func() error { return w.writeEvents(events) }
	}
	if w.raw == nil || !w.mu.TryLock() {
		return later(), nil
	}
	kept := false // the lock and the parcel are left's
	defer func() {
		if !kept {
			w.mu.Unlock()
		}
	}()
	p := w.framing.pack(events)
	if p == nil {
		return later(), nil
	}
	defer func() {
		if !kept {
			w.framing.putBack(p)
		}
	}()
	switch {
	case w.held != nil:
		return later(), nil
	case w.sentClose || w.deadline.closing.Load():
		return nil, errClosing
	case w.broken != nil:
		return nil, w.broken
	}
	rest := p.b[w.attempt(p.b):]
	if w.broken != nil || len(rest) == 0 {
		return nil, w.broken
	}
	kept = true
	return func() error {
		defer w.mu.Unlock()
		defer w.framing.putBack(p)
		return w.write(rest)
	}, nil
}

// sayGoodbye writes a close frame, unless one was written already or a write has
// failed, perhaps in the middle of a frame. A write that is under way is given
// a last second.
func (w *wire) sayGoodbye(code int, text string) {
	w.deadline.close(w.Conn)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sentClose || w.broken != nil {
		return
	}
	w.sentClose = true
	_ = w.write(appendCloseFrame(make([]byte, 0, maxControlPayload+2), code, text)) // the connection ends either way
}

// saidGoodbye reports whether a close frame was written.
func (w *wire) saidGoodbye() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sentClose && w.broken == nil
}

// hijacker puts a wire between the connection that it takes over and gorilla.
type hijacker struct {
	http.ResponseWriter
	wire *wire
}

// Hijack is part of [http.Hijacker].
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.wire.take(conn)
	return h.wire, rw, nil
}

// deadline moves a connection's write deadline on as writes get through.
type deadline struct {
	timeout  time.Duration // of a write
	farewell time.Duration // see Options.CloseTimeout
	until    time.Time     // guarded by the connection's lock
	closing  atomic.Bool
}

// writeDeadliner is a [net.Conn] or an [http.ResponseController].
type writeDeadliner interface{ SetWriteDeadline(t time.Time) error }

// extend gives the next write its time. It asks the connection only when an
// eighth of that is gone, as moving a timer for every event costs.
func (d *deadline) extend(conn writeDeadliner) {
	if d.closing.Load() {
		return
	}
	now := time.Now()
	if d.until.Sub(now) > d.timeout-d.timeout/8 {
		return
	}
	d.until = now.Add(d.timeout)
	_ = conn.SetWriteDeadline(d.until) // a connection that is gone says so when written to
	if d.closing.Load() {              // close came in between
		_ = conn.SetWriteDeadline(now.Add(d.farewell))
	}
}

// lift takes the deadline away while nothing is written.
func (d *deadline) lift(conn writeDeadliner) {
	if d.until.IsZero() || d.closing.Load() {
		return
	}
	d.until = time.Time{}
	_ = conn.SetWriteDeadline(d.until) // as above
	if d.closing.Load() {
		_ = conn.SetWriteDeadline(time.Now().Add(d.farewell))
	}
}

// liftOld lifts the deadline that a write before has left, if it is near or has passed.
func (d *deadline) liftOld(conn writeDeadliner) {
	if !d.until.IsZero() && time.Until(d.until) < d.timeout/2 {
		d.lift(conn)
	}
}

// close lets no write take longer than the farewell from now. Unlike extend it needs
// no lock, and so reaches a write that is stuck.
func (d *deadline) close(conn writeDeadliner) {
	d.closing.Store(true)
	_ = conn.SetWriteDeadline(time.Now().Add(d.farewell))
}
