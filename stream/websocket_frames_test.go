package stream_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/stream"
)

// rawFrame is a masked frame as a client sends it, with a mask of zeros.
func rawFrame(first byte, payload string) []byte {
	return append([]byte{first, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
}

func TestFramesThatBreakTheProtocolCloseWith1002(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for name, frame := range map[string][]byte{
		"a reserved bit":                 {0xc1, 0x80, 0, 0, 0, 0},
		"an unknown opcode":              {0x83, 0x80, 0, 0, 0, 0},
		"no mask":                        {0x81, 0x00},
		"a fragmented ping":              {0x09, 0x80, 0, 0, 0, 0},
		"a long ping":                    {0x89, 0xfe, 0, 126, 0, 0, 0, 0},
		"a continuation of nothing":      {0x80, 0x80, 0, 0, 0, 0},
		"a close code nobody may use":    rawFrame(0x88, "\x03\xed"),
		"a close reason that isn't text": rawFrame(0x88, "\x03\xe8\xff"),
	} {
		c := w.connect(t, admin)
		if _, err := c.NetConn().Write(frame); err != nil {
			t.Fatal(err)
		}
		if got := c.closed(t); got.Code != 1002 {
			t.Errorf("%s: closed with %v", name, got)
		}
	}
}

func TestTheCloseFrameOutlivesWhatTheClientWasStillSending(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	bad := append([]byte{0xff, 0x80, 0, 0, 0, 0}, make([]byte, 100<<10)...)
	if _, err := c.NetConn().Write(bad); err != nil {
		t.Fatal(err)
	}
	w.wantMetric(t, `syncrelay_disconnects_total{reason="protocol_error",transport="websocket"}`, 1)
	w.stop() // the relay is done with the connection before this client begins to read
	c.wantClosed(t, 1002, "")
}

func TestFragmentsWithControlFramesBetweenAreOneMessage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	var ponged string
	c.SetPongHandler(func(text string) error { ponged = text; return nil })
	var all []byte
	all = append(all, rawFrame(0x01, `{"type":"pi`)...)
	all = append(all, rawFrame(0x89, `are you there`)...)
	all = append(all, rawFrame(0x00, `ng","timesta`)...)
	all = append(all, rawFrame(0x80, `mp":7}`)...)
	if _, err := c.NetConn().Write(all); err != nil {
		t.Fatal(err)
	}
	if m := nextOf(t, c, "pong"); string(m.Timestamp) != "7" || ponged != "are you there" {
		t.Errorf("got %s, and the pong %q", m.text, ponged)
	}
}

func TestFragmentsAreLimitedTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	all := rawFrame(0x01, strings.Repeat("x", 100))
	for range 50 {
		all = append(all, rawFrame(0x00, strings.Repeat("x", 100))...)
	}
	if _, err := c.NetConn().Write(all); err != nil {
		t.Fatal(err)
	}
	c.wantClosed(t, 1009, "4096")
}

func TestAFrameThatAnnouncesMoreThanAnyMemoryHoldsCloses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, length := range []string{"\x7f\xff\xff\xff\xff\xff\xff\xff", "\xff\xff\xff\xff\xff\xff\xff\xff"} {
		c := w.connect(t, admin)
		if _, err := c.NetConn().Write([]byte("\x81\xff" + length + "\x00\x00\x00\x00" + strings.Repeat("x", 8192))); err != nil {
			t.Fatal(err)
		}
		c.wantClosed(t, 1009, "")
	}
}

func TestCloseFrameOfTheClientIsAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	if err := c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(1000, "bye")); err != nil {
		t.Fatal(err)
	}
	c.wantClosed(t, 1000, "")
	w.wantMetric(t, `syncrelay_disconnects_total{reason="closed",transport="websocket"}`, 1)
}

func TestFramesThatAreNoMessagesAreLimitedToo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Limits: stream.Limits{MessageRate: 0.1, MessageBurst: 6}, PingInterval: 500 * time.Millisecond}})
	for name, flood := range map[string]struct{ first, each frame }{
		"pongs":                     {frame{first: 0x8a}, frame{first: 0x8a, payload: "x"}},
		"empty fragments":           {more("x"), middle("")},
		"empty fragments from none": {more(""), middle("")},
		"pings between fragments":   {more("x"), ping("x")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, reader := w.handshake(t)
			_, _ = conn.Write(flood.first.encode())
			many := bytes.Repeat(flood.each.encode(), 100)
			stop := make(chan struct{})
			defer close(stop)
			go func() {
				for {
					select {
					case <-stop:
						return
					default:
						if _, err := conn.Write(many); err != nil {
							return
						}
					}
				}
			}()
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			for {
				answer, err := readAnswer(reader)
				if err != nil {
					t.Fatalf("ended with %q, %v", answer, err)
				}
				if strings.HasPrefix(answer, "close") {
					if answer != "close 1008" {
						t.Errorf("ended with %q", answer)
					}
					break
				}
			}
		})
	}

	// Who answers pings, or cuts a message into single bytes, does what is right.
	conn, reader := w.handshake(t)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for range 12 {
		for {
			answer, err := readAnswer(reader)
			if err != nil || strings.HasPrefix(answer, "close") {
				t.Fatalf("who answers pings was let go: %q, %v", answer, err)
			}
			if strings.HasPrefix(answer, "ping") {
				break
			}
		}
		_, _ = conn.Write(frame{first: 0x8a}.encode())
	}
	text := `{"type":"ping","timestamp":"` + strings.Repeat("x", 200) + `"}`
	for i := range text {
		f := frame{payload: text[i : i+1]}
		if i == 0 {
			f.first = 0x01
		}
		if i == len(text)-1 {
			f.first = 0x80
		}
		_, _ = conn.Write(f.encode())
	}
	for {
		answer, err := readAnswer(reader)
		if err != nil || strings.HasPrefix(answer, "close") {
			t.Fatalf("who sent a message in %d fragments was let go: %q, %v", len(text), answer, err)
		}
		if strings.Contains(answer, `"pong"`) {
			break
		}
		if strings.HasPrefix(answer, "ping") {
			_, _ = conn.Write(frame{first: 0x8a}.encode())
		}
	}
}
