package bench

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// client is one client on a WebSocket or an event stream. It reads no more of
// what it is sent than it has to, because thousands of it share the machine with
// what is measured.
type client struct {
	crowd *crowd
	index int
	conn  *net.TCPConn

	checker
	partial     []byte // the beginning of a frame that has not come whole
	established bool
	replayed    int64 // events that replay_complete has counted
	complete    bool  // replay_complete has come
	ended       chan struct{}
}

// Frame types of RFC 6455, section 5.2, with the bit of a last fragment.
const (
	frameText  = 0x81
	frameClose = 0x88
	framePing  = 0x89
	framePong  = 0x8a
)

// errShort: the rest of the frame has not come yet.
var errShort = errors.New("the frame is not whole")

// nextFrame splits the first frame off what a server has sent.
func nextFrame(p []byte) (kind byte, payload, rest []byte, err error) {
	if len(p) < 2 {
		return 0, nil, p, errShort
	}
	at, length := 2, uint64(p[1])
	switch {
	case p[1]&0x80 != 0:
		return 0, nil, p, errors.New("a server's frame is masked")
	case p[1] == 126 && len(p) >= 4:
		at, length = 4, uint64(binary.BigEndian.Uint16(p[2:]))
	case p[1] == 127 && len(p) >= 10:
		at, length = 10, binary.BigEndian.Uint64(p[2:])
	case p[1] >= 126:
		return 0, nil, p, errShort
	}
	if length > longest {
		return 0, nil, p, fmt.Errorf("a frame of %d bytes", length)
	}
	end := at + int(length) // which cannot overflow: it was just compared
	if len(p) < end {
		return 0, nil, p, errShort
	}
	return p[0], p[at:end], p[end:], nil
}

// chunkSize is how much is read at once at most, in bytes.
const chunkSize = 16 << 10

// longest bounds a frame: nothing that the bench writes is near it.
const longest = 1 << 20

// feed takes what has come on a WebSocket.
func (c *client) feed(p []byte) error {
	if len(c.partial) > 0 {
		c.partial = append(c.partial, p...)
		p = c.partial
	}
	var events int64
	at := time.Now().UnixNano()
	for len(p) > 0 {
		kind, payload, rest, err := nextFrame(p)
		if errors.Is(err, errShort) {
			break
		}
		if err != nil {
			return err
		}
		p = rest
		switch kind {
		case frameText:
			isEvent, err := c.message(payload, at)
			if err != nil {
				return err
			}
			if isEvent {
				events++
			}
		case framePing:
			if err := c.pong(payload); err != nil {
				return err
			}
		case framePong:
		case frameClose:
			return closed(payload)
		default:
			return fmt.Errorf("a frame that begins with %#x", kind)
		}
	}
	switch {
	case len(p) > 0:
		c.partial = append(c.partial[:0], p...)
	case len(c.partial) > 0:
		c.partial = nil
	}
	c.crowd.count(events)
	return nil
}

// closed reads a close frame.
func closed(payload []byte) error {
	if len(payload) < 2 {
		return errors.New("the server has closed the connection")
	}
	return fmt.Errorf("the server has closed the connection: %d %s", binary.BigEndian.Uint16(payload), payload[2:])
}

// pong answers a ping. Its mask is of zeros, which changes nothing.
func (c *client) pong(payload []byte) error {
	if len(payload) > 125 {
		return errors.New("a ping is too long")
	}
	frame := append([]byte{framePong, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...) //nolint:gosec // it was just bounded
	_, err := c.conn.Write(frame)
	return err
}

// message takes one message and tells whether it is an event.
func (c *client) message(text []byte, at int64) (isEvent bool, err error) {
	id, isEvent := number(text[:min(len(text), head)], eventIDKey)
	if !isEvent {
		return false, c.control(text)
	}
	if err := c.event(id); err != nil {
		return true, err
	}
	return true, c.crowd.observe(c, id, text, at)
}

// control takes a message that is no event.
func (c *client) control(text []byte) error {
	switch {
	case bytes.HasPrefix(text, []byte(`{"type":"connection_established"`)):
		c.established = true
		if id, ok := number(text, lastEventIDKey); ok && !c.known {
			c.last = id // the next event is above it, but after a jump not the next number
		}
	case bytes.HasPrefix(text, []byte(`{"type":"replay_complete"`)):
		c.replayed, _ = number(text, countKey)
		if bytes.Contains(text, []byte(`"truncated":true`)) {
			return fmt.Errorf("the replay is truncated: %s", text)
		}
		c.complete = true
		c.crowd.completed.Add(1)
		c.crowd.notify()
	default:
		return fmt.Errorf("the server says %.200s", text)
	}
	return nil
}
