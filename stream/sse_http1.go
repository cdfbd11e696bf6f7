package stream

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// ownConnection is an event stream on HTTP/1.1 or 1.0, which has its connection
// to itself. It leaves the HTTP server behind, whose buffers and goroutines cost
// several times what a quiet stream needs.
type ownConnection struct {
	wire
	last  string      // what ends the body
	taken atomic.Bool // the connection is there
}

// takeOver lets the client in and takes the connection over from the HTTP server.
// Otherwise it returns the reason, and the connection is still the server's.
func (c *eventStream) takeOver(w http.ResponseWriter, r *http.Request, id Identity, from relay.Start) *Reason {
	o := &ownConnection{last: "0\r\n\r\n"}
	o.deadline.timeout, o.deadline.farewell = c.server.options.WriteTimeout, c.server.options.CloseTimeout
	o.framing = c.server.chunks
	if !r.ProtoAtLeast(1, 1) {
		o.framing, o.last = c.server.blocks, ""
	}
	c.out = o
	reason := c.begin(o, w, r, id, from)
	if reason != nil {
		c.end(reason, "")
	}
	return reason
}

// begin lets the client in, takes its connection and writes the header. What the
// client is told first waits for that. After a panic the output is not left locked,
// nor the connection open.
func (c *eventStream) begin(o *ownConnection, w http.ResponseWriter, r *http.Request, id Identity, from relay.Start) (reason *Reason) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer func() { o.sentClose = o.sentClose || !o.taken.Load() }() // there is nothing to write to
	defer func() {
		if fault := recover(); fault != nil {
			c.caught("serve an event stream", fault)
			reason = reasonInternal
			if o.taken.Load() {
				_ = o.Close() // nothing that failed here could be mended
			}
		}
	}()
	if reason := c.open(id, from); reason != nil {
		return reason
	}
	if reason := c.ended(); reason != nil {
		return reason
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		c.server.failed("take over a connection", err)
		return reasonInternal
	}
	o.take(conn)
	o.taken.Store(true)
	_ = o.write(o.header(w.Header(), r)) // a broken connection is found by what follows
	go c.listen(o)
	return nil
}

// header is the answer's header, and what stands before the first message.
func (o *ownConnection) header(h http.Header, r *http.Request) []byte {
	streamHeader(h)
	h.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	h.Set("Connection", "close")
	b := []byte("HTTP/1.0 200 OK\r\n")
	if r.ProtoAtLeast(1, 1) {
		h.Set("Transfer-Encoding", "chunked")
		b[len("HTTP/1.")] = '1'
	}
	for name, values := range h {
		for _, value := range values { // of our own making, or an origin that was checked
			b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
		}
	}
	return o.framing.frame(append(b, "\r\n"...), preamble())
}

// listen waits until the client has gone, which has nothing more to say.
func (c *eventStream) listen(o *ownConnection) {
	defer c.contain("end an event stream")
	defer c.server.leave()
	defer c.server.depart(c.visit)
	defer func() { _ = o.Close() }() // nothing that failed here could be mended
	defer c.session.close()
	scratch := make([]byte, 64)
	for said := 0; ; {
		n, err := o.in.Read(scratch)
		if said += n; err != nil || said > patience {
			break
		}
	}
	if c.ended() == nil {
		c.end(reasonClosed, "")
	}
}

// writeBlock writes one block.
func (o *ownConnection) writeBlock(block []byte) error {
	buffer := buffers.get(maxHead + len(block))
	defer buffers.put(buffer)
	b := o.framing.frame((*buffer)[:0], block)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sentClose {
		return errClosing
	}
	return o.write(b)
}

// finish is part of output.
func (o *ownConnection) finish(block []byte) {
	if o.taken.Load() {
		o.deadline.close(o.Conn) // a write may be stuck
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	said := o.sentClose || o.broken != nil
	o.sentClose = true
	switch {
	case !o.taken.Load():
		return // the answer is the HTTP server's
	case block == nil:
		_ = o.Close()
		return
	case !said:
		o.deadline.close(o.Conn)
		_ = o.write(append(o.framing.frame(nil, block), o.last...)) // the stream ends either way
		if half, ok := o.Conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // as above
		}
	}
	_ = o.SetReadDeadline(time.Now().Add(o.deadline.farewell))
}
