package stream

import (
	"slices"
	"strconv"
	"sync"

	"github.com/syncrelay/syncrelay/relay"
)

// framing is how events stand in what a transport writes, and lends the memory
// in which events are put together for many clients at once.
type framing struct {
	// payload is the part of a frame that is encoded already, and whether that is
	// compressed.
	payload func(*relay.Event) (b []byte, packed bool)
	// head appends what stands before a payload of that length, at most
	// maxHead bytes, and tail stands behind it.
	head func(b []byte, length int, packed bool) []byte
	tail string

	parcels sync.Pool
}

// maxHead is the longest head and tail of any framing, in bytes.
const maxHead = maxFrameHeader + len(endOfLine)

const endOfLine = "\r\n"

// newChunkFraming makes each event a chunk of HTTP/1.1 (RFC 9112, section 7.1).
func newChunkFraming() *framing {
	return &framing{
		payload: plain((*relay.Event).SSE),
		head: func(b []byte, length int, _ bool) []byte {
			return append(strconv.AppendInt(b, int64(length), 16), endOfLine...)
		},
		tail: endOfLine,
	}
}

// newBlockFraming is for HTTP/1.0, where the end of the connection is the answer's.
func newBlockFraming() *framing {
	return &framing{payload: plain((*relay.Event).SSE), head: func(b []byte, _ int, _ bool) []byte { return b }}
}

// newWebSocketFraming makes each event a text frame (RFC 6455, section 5.2).
func newWebSocketFraming() *framing {
	return &framing{
		payload: plain((*relay.Event).JSON),
		head:    func(b []byte, length int, _ bool) []byte { return appendFrameHeader(b, frameText, length) },
	}
}

// plain is a payload that is never compressed.
func plain(payload func(*relay.Event) []byte) func(*relay.Event) ([]byte, bool) {
	return func(e *relay.Event) ([]byte, bool) { return payload(e), false }
}

// append appends one event.
func (f *framing) append(b []byte, e *relay.Event) []byte {
	payload, packed := f.payload(e)
	b = append(f.head(b, len(payload), packed), payload...)
	return append(b, f.tail...)
}

// frame appends a payload that is no event's.
func (f *framing) frame(b, payload []byte) []byte {
	b = append(f.head(b, len(payload), false), payload...)
	return append(b, f.tail...)
}

// size is the most that events can take, in bytes.
func (f *framing) size(events []*relay.Event) int {
	size := 0
	for _, e := range events {
		payload, _ := f.payload(e)
		size += maxHead + len(payload)
	}
	return size
}

// small reports whether events are few enough for a parcel, as long as they are
// not compressed: others must not be compressed by who may not wait.
func small(events []*relay.Event) bool {
	size := 0
	for _, e := range events {
		size += len(e.JSON())
	}
	return size <= largeBuffer
}

// parcel is some events, framed. The clients of a group are mostly sent the same
// ones, one client after the other by the same goroutine: a parcel that is
// borrowed again mostly holds them already.
type parcel struct {
	events []*relay.Event
	b      []byte
}

// pack borrows a parcel of these events, nil if they are too many for one.
func (f *framing) pack(events []*relay.Event) *parcel {
	p, _ := f.parcels.Get().(*parcel)
	if p == nil {
		p = &parcel{}
	}
	if slices.Equal(p.events, events) {
		return p
	}
	size := 0
	if small(events) {
		size = f.size(events)
	}
	if size == 0 || size > largeBuffer {
		f.parcels.Put(p)
		return nil
	}
	if cap(p.b) < size {
		p.b = make([]byte, 0, max(size, smallBuffer))
	}
	p.b, p.events = p.b[:0], append(p.events[:0], events...)
	for _, e := range events {
		p.b = f.append(p.b, e)
	}
	return p
}

func (f *framing) putBack(p *parcel) { f.parcels.Put(p) }
