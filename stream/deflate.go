package stream

import (
	"bytes"
	"compress/flate"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
)

// deflater compresses events for the WebSockets that want it (permessage-deflate,
// RFC 7692), each once, however many clients it goes to: no message refers to
// one before, so that all of them can be sent the same bytes.
type deflater struct {
	// Packers that nobody uses, nil if not made yet. They are large, so there are
	// only so many, one of them for what is too large for a push: who pushes waits
	// for no such work.
	idle, slow chan *packer
	packed     prometheus.Counter
}

type packer struct {
	w   *flate.Writer
	out bytes.Buffer
}

// What is compressed, in bytes of JSON. Less than the least gets hardly smaller;
// more than the most would hold up those who wait for a packer, and need not: it
// may be sent as it is (RFC 7692, section 6).
const leastPacked, mostPacked = 256, 1 << 20

func newDeflater(packed prometheus.Counter) *deflater {
	d := &deflater{idle: make(chan *packer, runtime.GOMAXPROCS(0)), slow: make(chan *packer, 1), packed: packed}
	d.slow <- nil
	for range cap(d.idle) {
		d.idle <- nil
	}
	return d
}

// payload is an event's part of a frame, and whether it is compressed.
func (d *deflater) payload(e *relay.Event) (b []byte, packed bool) {
	text := e.JSON()
	if len(text) < leastPacked || len(text) > mostPacked {
		return text, false
	}
	if smaller := e.Packed(d.pack); smaller != nil {
		return smaller, true
	}
	return text, false
}

// pack compresses a text; nil if that makes it no smaller.
func (d *deflater) pack(text []byte) []byte {
	packers := d.idle
	if len(text) > largeBuffer {
		packers = d.slow
	}
	p := <-packers
	defer func() { packers <- p }()
	if p == nil {
		p = &packer{}
		p.w, _ = flate.NewWriter(&p.out, flate.BestSpeed) // it fails for unknown levels only
	}
	d.packed.Inc()
	p.out.Reset()
	p.w.Reset(&p.out)
	_, _ = p.w.Write(text) // a buffer takes all
	_ = p.w.Flush()
	b := bytes.TrimSuffix(p.out.Bytes(), []byte(endOfFlush))
	if len(b) >= len(text) {
		return nil
	}
	return bytes.Clone(b)
}

// endOfFlush ends what was flushed, and stands in no frame (RFC 7692, section 7.2.1).
const endOfFlush = "\x00\x00\xff\xff"

// newDeflateFraming makes each event a text frame that may be compressed.
func newDeflateFraming(d *deflater) *framing {
	return &framing{
		payload: d.payload,
		head: func(b []byte, length int, packed bool) []byte {
			if packed {
				return appendFrameHeader(b, frameText|framePacked, length)
			}
			return appendFrameHeader(b, frameText, length)
		},
	}
}

// deflates reports whether a client offers permessage-deflate in a way that can be
// taken up (RFC 7692, section 7.1).
func deflates(h http.Header) bool {
	for _, line := range h["Sec-Websocket-Extensions"] {
		if slices.ContainsFunc(strings.Split(line, ","), isDeflateOffer) {
			return true
		}
	}
	return false
}

func isDeflateOffer(offer string) bool {
	parts := strings.Split(offer, ";")
	if strings.TrimSpace(parts[0]) != "permessage-deflate" {
		return false
	}
	names := make([]string, 0, len(parts))
	for _, part := range parts[1:] {
		name, value, valued := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.Trim(strings.TrimSpace(value), `"`)
		if slices.Contains(names, name) {
			return false
		}
		names = append(names, name)
		switch name {
		case "server_no_context_takeover", "client_no_context_takeover":
			if valued {
				return false
			}
		case "client_max_window_bits":
			if bits, err := strconv.Atoi(value); valued && (err != nil || bits < 8 || bits > 15) {
				return false
			}
		default: // also server_max_window_bits: our window can't be made smaller
			return false
		}
	}
	return true
}
