package stream_test

import (
	"bytes"
	"compress/flate"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// counted counts what is read from a connection.
type counted struct {
	net.Conn
	read atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// packing connects a WebSocket that offers permessage-deflate, and takes its
// connection_established.
func (w *world) packing(t testing.TB, claims jwt.MapClaims, query ...string) (*wsClient, *counted) {
	t.Helper()
	wire := &counted{}
	dialer := websocket.Dialer{EnableCompression: true, NetDial: func(network, address string) (net.Conn, error) {
		conn, err := net.Dial(network, address)
		wire.Conn = conn
		return wire, err
	}}
	conn, response, err := dialer.Dial("ws://"+w.addr+"/ws/updates/?"+strings.Join(append(query, "token="+sign(t, claims)), "&"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	const answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	if got := response.Header.Get("Sec-Websocket-Extensions"); got != answer {
		t.Fatalf("the offer was answered with %q", got)
	}
	c := &wsClient{Conn: conn}
	nextOf(t, c, "connection_established")
	return c, wire
}

func newPackingWorld(t testing.TB) *world {
	t.Helper()
	return newWorld(t, worldOptions{Options: stream.Options{Compression: true, WriteTimeout: patience}})
}

// rowsOfAllSizes are one that is too short to be compressed, three that are (the
// last of them is too long for a push), and one that is too long.
func rowsOfAllSizes() []relay.Row {
	noise := make([]byte, 600)
	_, _ = rand.Read(noise)
	var rows []relay.Row
	for _, payload := range []string{
		`{"merits": 3}`,
		`"` + strings.Repeat("Parade, and again: ", 60) + `"`,
		`"` + hex.EncodeToString(noise) + `"`,
		`"` + strings.Repeat("words and words ", 4000) + `"`,
		`"` + strings.Repeat("too long ", 150_000) + `"`,
	} {
		rows = append(rows, relay.Row{Type: "message", Payload: []byte(payload)})
	}
	return rows
}

// TestEventsAreCompressedOnceForAllWhoOfferIt: who offers it is sent the same events
// as who does not, in fewer bytes, and each is compressed only once.
func TestEventsAreCompressedOnceForAllWhoOfferIt(t *testing.T) {
	t.Parallel()
	w := newPackingWorld(t)
	plain := w.connect(t, admin)
	first, wire := w.packing(t, admin)
	clients := []*wsClient{plain, first}
	for range 3 {
		c, _ := w.packing(t, staff)
		clients = append(clients, c)
	}
	rows := rowsOfAllSizes()
	before, want := wire.read.Load(), 0
	for round := range 3 {
		w.Insert(rows...)
		for range rows {
			text := plain.next(t).text
			want += len(text)
			for i, c := range clients[1:] {
				if got := c.next(t).text; got != text {
					t.Fatalf("round %d: client %d was sent %.100s, want %.100s", round, i, got, text)
				}
			}
		}
	}
	const tried = 3 * 3
	w.wantMetric(t, "syncrelay_compressed_events_total", tried)
	late, _ := w.packing(t, admin, "last_event_id=0") // from memory
	for id := range int64(3 * len(rows)) {
		wantEvents(t, late, id+1)
	}
	w.wantMetric(t, "syncrelay_compressed_events_total", tried)
	raw := 3 * len(rows[len(rows)-1].Payload)
	if got := int(wire.read.Load() - before); got > raw+(want-raw)/5 {
		t.Errorf("%d bytes of events were sent as %d", want, got)
	}
}

func TestCompressionIsNotTakenUpUnlessItIsSwitchedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	dialer := websocket.Dialer{EnableCompression: true}
	conn, response, err := dialer.Dial("ws://"+w.addr+"/ws/updates/?token="+sign(t, admin), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := response.Header.Get("Sec-Websocket-Extensions"); got != "" {
		t.Errorf("the offer was answered with %q", got)
	}
}

// pack is the payload of a compressed frame.
func pack(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\x00\x00\xff\xff")
}

// packedFrame is a compressed text of any length, with a mask of zeros.
func packedFrame(payload string) []byte {
	b := binary.BigEndian.AppendUint64([]byte{0xc1, 0x80 | 127}, uint64(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...)
}

// TestCompressedMessagesAreReadUpToTheirLimit: a client's message is unpacked as far
// as a message may be long, whatever is in it.
func TestCompressedMessagesAreReadUpToTheirLimit(t *testing.T) {
	t.Parallel()
	w := newPackingWorld(t)
	ping := func(n int) string { return say(strings.Repeat("x", n-len(say("")))) }
	for name, c := range map[string]struct {
		payload string
		code    int    // 0 if it is answered
		reason  string // as the close frame says it
	}{
		"a short message":              {pack(t, say("a")), 0, ""},
		"a message of the most length": {pack(t, ping(4096)), 0, ""},
		"a message that is too long":   {pack(t, ping(4097)), 1009, "4096 bytes are allowed"},
		"a bomb of 1 MiB":              {pack(t, strings.Repeat("\x00", 1<<20)), 1009, "4096 bytes are allowed"},
		"a bomb of 1 GiB":              {strings.Repeat(pack(t, strings.Repeat("\x00", 1<<20))+"\x00\x00\xff\xff", 1<<10), 1009, "4096 bytes are allowed"},
		"nothing, again and again":     {strings.Repeat("\x00\x00\x00\xff\xff", 100_000), 1008, "too many fragments"},
		"more after its end":           {"\x03\x00" + strings.Repeat("x", 100_000), 1008, "too many fragments"},
		"what can't be unpacked":       {"\xff\xff\xff\xff", 1002, "can't be unpacked"},
		"what has no end":              {pack(t, say("a"))[:10], 1002, "can't be unpacked"},
		"bytes that are no text":       {pack(t, "\xff\xfe"), 1007, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, _ := w.packing(t, admin)
			go func() { _, _ = conn.NetConn().Write(packedFrame(c.payload)) }()
			if c.code != 0 {
				conn.wantClosed(t, c.code, c.reason)
				return
			}
			nextOf(t, conn, "pong")
		})
	}
}

// TestOnlyWhoOfferedItMaySendCompressedMessages: the bit is reserved for others.
func TestOnlyWhoOfferedItMaySendCompressedMessages(t *testing.T) {
	t.Parallel()
	w := newPackingWorld(t)
	c := w.connect(t, admin)
	w.Insert(rowsOfAllSizes()...)
	for id := range int64(5) {
		wantEvents(t, c, id+1)
	}
	if _, err := c.NetConn().Write(packedFrame(pack(t, say("a")))); err != nil {
		t.Fatal(err)
	}
	c.wantClosed(t, 1002, "RSV1")
}

// TestALotOfCompressedEventsComeInOrder: also those that a client has to be sent
// later, as it does not read.
func TestALotOfCompressedEventsComeInOrder(t *testing.T) {
	t.Parallel()
	w := newPackingWorld(t)
	slow, _ := w.packing(t, admin)
	noise := make([]byte, 8<<10)
	const n = 2000
	for range n {
		_, _ = rand.Read(noise)
		w.Insert(relay.Row{Type: "message", Payload: []byte(`"` + hex.EncodeToString(noise) + `"`)})
	}
	relaytest.Wait(t, "all are assigned", func() bool { return w.Status().Head == n })
	_ = slow.SetReadDeadline(time.Now().Add(patience))
	for id := range int64(n) {
		wantEvents(t, slow, id+1)
	}
}
