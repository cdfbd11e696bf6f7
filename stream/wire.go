package stream

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
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

	mu        sync.Mutex // held while a frame or a batch of them is written
	deadline  deadline
	sentClose bool
	broken    error // the first error of a write
}

// Write writes what gorilla writes: the handshake's answer, then control frames.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sentClose {
		return 0, errClosing
	}
	if p[0] == frameClose {
		w.sentClose = true
	}
	if err := w.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetWriteDeadline is called by gorilla only: wire sets its own deadlines.
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// piece is how many bytes are written under one deadline: a client that is slow
// but reads gets the largest payload, one that has stopped is let go.
const piece = 64 << 10

// write writes all of p. w.mu is held.
func (w *wire) write(p []byte) error {
	for len(p) > 0 && w.broken == nil {
		w.deadline.extend(w.Conn)
		n, err := w.Conn.Write(p[:min(len(p), piece)])
		p, w.broken = p[n:], err
	}
	return w.broken
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

// writeEvents writes events as text frames. Those that are not huge leave
// together, in one system call for as many as the buffer holds.
func (w *wire) writeEvents(events []*relay.Event) error {
	size := 0
	for _, e := range events {
		size += maxFrameHeader + min(len(e.JSON()), direct)
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
		payload := e.JSON()
		huge := len(payload) >= direct
		if !huge && len(b)+maxFrameHeader+len(payload) > cap(b) || huge && len(b)+maxFrameHeader > cap(b) {
			if err := w.write(b); err != nil {
				return err
			}
			b = b[:0]
		}
		b = appendFrameHeader(b, frameText, len(payload))
		if !huge {
			b = append(b, payload...)
			continue
		}
		if err := w.write(b); err != nil {
			return err
		}
		if err := w.write(payload); err != nil {
			return err
		}
		b = b[:0]
	}
	return w.write(b)
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
	h.wire.Conn = conn
	return h.wire, rw, nil
}

// deadline moves a connection's write deadline on as writes get through.
type deadline struct {
	timeout time.Duration
	until   time.Time // guarded by the connection's lock
	closing atomic.Bool
}

// writeDeadliner is a [net.Conn] or an [http.ResponseController].
type writeDeadliner interface{ SetWriteDeadline(t time.Time) error }

// farewell is how long a connection that ends has to take the last of what was
// written to it, and then to answer the close frame.
const farewell = time.Second

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
		_ = conn.SetWriteDeadline(now.Add(farewell))
	}
}

// close lets no write take longer than a second from now. Unlike extend it needs
// no lock, and so reaches a write that is stuck.
func (d *deadline) close(conn writeDeadliner) {
	d.closing.Store(true)
	_ = conn.SetWriteDeadline(time.Now().Add(farewell))
}
