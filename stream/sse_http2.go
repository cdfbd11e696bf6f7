package stream

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// multiplexed is an event stream that is one of several streams of an HTTP/2
// connection, which stays the HTTP server's.
type multiplexed struct {
	over chan struct{} // closed when nothing more will be written

	out        sync.Mutex // held while something is written
	w          http.ResponseWriter
	controller *http.ResponseController
	deadline   deadline
	begun      bool // the header has been written
	timedOut   bool // a write was not taken in time
	finished   bool // nothing may be written any more
}

// serveMultiplexed is the life of the stream.
func (c *eventStream) serveMultiplexed(w http.ResponseWriter, r *http.Request, id Identity, from relay.Start) {
	o := &multiplexed{over: make(chan struct{}), w: w, controller: http.NewResponseController(w)}
	o.deadline.timeout, o.deadline.farewell = c.server.options.WriteTimeout, c.server.options.CloseTimeout
	c.out = o
	c.runMultiplexed(o, id, from, r.Context().Done())
	// The writer is the HTTP server's again once this returns: close waits for the
	// pump, and whoever has ended the session, which close does at the latest, has
	// said the goodbye then.
	c.session.close()
	<-o.over
	reason := c.ended()
	if c.sub == nil {
		c.transport.connect(reason.Label) // it was not let in
	}
	if !o.begun && reason.Status != 0 {
		writeReason(w, r, reason) // it ended before there was a stream
	}
}

func (c *eventStream) runMultiplexed(o *multiplexed, id Identity, from relay.Start, gone <-chan struct{}) {
	defer c.contain("serve an event stream")
	if reason := c.open(id, from); reason != nil {
		c.end(reason, "")
		return
	}
	select {
	case <-o.over:
	case <-gone:
		c.end(o.gone(), "")
	}
}

// begin writes the header and what stands before the first message. o.out is
// held.
func (o *multiplexed) begin() error {
	o.begun = true
	streamHeader(o.w.Header())
	o.w.WriteHeader(http.StatusOK)
	_, err := o.w.Write(preamble())
	return err
}

// ready prepares for writing. o.out is held.
func (o *multiplexed) ready() error {
	if o.finished {
		return errClosing
	}
	if !o.begun {
		return o.begin()
	}
	return nil
}

// writeBlock writes one block.
func (o *multiplexed) writeBlock(block []byte) error {
	o.out.Lock()
	defer o.out.Unlock()
	if err := o.ready(); err != nil {
		return err
	}
	if err := o.pieces(block); err != nil {
		return err
	}
	return o.flush()
}

// writeEvents writes events, those that are not huge together.
func (o *multiplexed) writeEvents(events []*relay.Event) error {
	size := 0
	for _, e := range events {
		size += min(len(e.SSE()), direct)
	}
	buffer := buffers.get(size)
	defer buffers.put(buffer)
	b := (*buffer)[:0]
	o.out.Lock()
	defer o.out.Unlock()
	if err := o.ready(); err != nil {
		return err
	}
	for _, e := range events {
		if o.deadline.closing.Load() {
			// The goodbye is waiting, and must get through within a second.
			if err := o.pieces(b); err != nil {
				return err
			}
			return errClosing
		}
		block := e.SSE()
		huge := len(block) >= direct
		if huge || len(b)+len(block) > cap(b) {
			if err := o.pieces(b); err != nil {
				return err
			}
			b = b[:0]
		}
		if !huge {
			b = append(b, block...)
		} else if err := o.pieces(block); err != nil {
			return err
		}
	}
	if err := o.pieces(b); err != nil {
		return err
	}
	return o.flush()
}

// pieces writes p. o.out is held.
func (o *multiplexed) pieces(p []byte) error {
	for len(p) > 0 {
		o.deadline.extend(o.controller)
		n, err := o.w.Write(p[:min(len(p), piece)])
		if err != nil {
			return o.failed(err)
		}
		p = p[n:]
	}
	return nil
}

// flush sends what has been written. o.out is held.
func (o *multiplexed) flush() error {
	err := o.controller.Flush()
	if err == nil {
		// On HTTP/2 a deadline that passes resets the stream, although nothing is
		// waiting to be written.
		o.deadline.lift(o.controller)
	}
	return o.failed(err)
}

// failed notes how a write failed. o.out is held.
func (o *multiplexed) failed(err error) error {
	if err != nil && !o.deadline.until.IsZero() && time.Now().After(o.deadline.until) {
		err = fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err) // HTTP/2 says that the stream is closed
	}
	o.timedOut = o.timedOut || errors.Is(err, os.ErrDeadlineExceeded)
	return err
}

// gone is why the HTTP server says that the client has gone: it says so too
// when a write was not taken in time.
func (o *multiplexed) gone() *Reason {
	o.out.Lock()
	defer o.out.Unlock()
	if o.timedOut {
		return reasonSlow
	}
	return reasonClosed
}

// push leaves all to a goroutine: HTTP/2 has windows of its own.
func (o *multiplexed) push(events []*relay.Event) (left func() error, err error) {
	events = slices.Clone(events)
	return func() error { return o.writeEvents(events) }, nil
}

// finish is part of output.
func (o *multiplexed) finish(block []byte) {
	defer close(o.over)
	o.deadline.close(o.controller)
	o.out.Lock()
	defer o.out.Unlock()
	said := o.begun && !o.finished && block != nil
	o.finished = true
	if said && o.pieces(block) == nil {
		_ = o.flush() // the stream ends either way
	}
}
