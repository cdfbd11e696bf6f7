package stream_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/stream"
)

// TestFramesAreWholeAndTheCloseFrameIsTheLast: events, pongs to the client's
// pings and the close frame, be it ours or the answer to the client's, are
// written by different goroutines.
func TestFramesAreWholeAndTheCloseFrameIsTheLast(t *testing.T) {
	t.Parallel()
	// On a busy machine much may be on its way to the client.
	w := newWorld(t, worldOptions{Options: stream.Options{CloseTimeout: patience}})
	for i := range 6 {
		end := rawFrame(0x88, "\x03\xe8")
		if i%2 == 1 {
			end = append(rawFrame(0x82, "binary messages are not understood"), end...)
		}
		raw, in := w.upgraded(t, cadet17)
		if _, err := in.Peek(1); err != nil { // the client is let in
			t.Fatal(err)
		}
		inserted := make(chan struct{})
		go func() {
			defer close(inserted)
			big := grade(17)
			big.Payload = textOf(900 << 10)
			for range 30 {
				w.Insert(grade(17), big, grade(17))
				if i%2 == 1 { // pongs would keep the reader behind the writer
					_, _ = raw.Write(rawFrame(0x89, "ping")) // what is lost is seen below
				}
			}
			_, _ = raw.Write(end)
		}()
		all, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		<-inserted
		kinds := frames(t, all)
		last := len(kinds) - 1
		if last < 0 || kinds[last] != 0x88 || bytes.IndexByte(kinds, 0x88) != last {
			t.Fatalf("the frames were %x: the close frame must be the last", kinds)
		}
		if i%2 == 1 && !bytes.Contains(kinds, []byte{0x8a}) {
			t.Errorf("no pong among %d frames", len(kinds))
		}
	}
}

// upgraded is a connection after the handshake, and all that the server writes
// from then on. Gorilla's client would keep the first of it in a buffer of its own.
func (w *world) upgraded(t testing.TB, claims jwt.MapClaims) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn := w.raw(t)
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "GET /ws/updates/?token=%s HTTP/1.1\r\nHost: %s\r\n"+
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
		sign(t, claims), w.addr); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	response, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the answer to the handshake was %s", response.Status)
	}
	return conn, in
}

// frames splits what the server wrote into frames and returns their first bytes.
func frames(t *testing.T, all []byte) []byte {
	t.Helper()
	var kinds []byte
	for len(all) > 0 {
		if len(all) < 2 {
			t.Fatalf("half a frame: %x", all)
		}
		length, head := int(all[1]), 2
		switch {
		case length == 126 && len(all) >= 4:
			length, head = int(binary.BigEndian.Uint16(all[2:])), 4
		case length == 127 && len(all) >= 10:
			length, head = int(binary.BigEndian.Uint64(all[2:])), 10
		}
		if len(all) < head+length {
			t.Fatalf("a frame of %d bytes was cut after %d", head+length, len(all))
		}
		if all[0] == 0x81 && !json.Valid(all[head:head+length]) {
			t.Fatalf("a text frame is no JSON: %.100q", all[head:head+length])
		}
		kinds, all = append(kinds, all[0]), all[head+length:]
	}
	return kinds
}
