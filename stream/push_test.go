package stream

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// pair is the two ends of a TCP connection.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return near, far
}

// rawWire is a wire on the near end of a TCP connection, whose writes are attempted.
func rawWire(t *testing.T) (w *wire, far net.Conn) {
	t.Helper()
	if !canAttempt {
		t.Skip("writes are not attempted on this system")
	}
	near, far := pair(t)
	w = &wire{framing: newWebSocketFraming()}
	w.take(near)
	if w.raw == nil {
		t.Fatal("the socket can't be reached")
	}
	return w, far
}

func pushedEvent(id int64, payload string) *relay.Event {
	row := relay.Row{Type: "message", Payload: []byte(payload)}
	return relay.NewEvent(id, &row, time.Now())
}

// TestAPushThatFindsNoRoomIsCompletedInOrder: a client that stops reading in the
// middle of a frame is sent its rest later, and nothing else before that.
func TestAPushThatFindsNoRoomIsCompletedInOrder(t *testing.T) {
	t.Parallel()
	w, far := rawWire(t)
	w.deadline.timeout = 20 * time.Second
	filler := `"` + strings.Repeat("x", 10<<10) + `"`
	var want []byte
	var left func() error
	for id := int64(1); left == nil; id++ {
		e := pushedEvent(id, filler)
		want = w.framing.append(want, e)
		var err error
		if left, err = w.push([]*relay.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
	// Whatever else is to be written has to wait for the rest of the frame.
	more := []*relay.Event{pushedEvent(1000, `1`), pushedEvent(1001, `2`)}
	next, err := w.push(more)
	if err != nil || next == nil {
		t.Fatalf("a push in the middle of a frame: %v; it must be left for later", err)
	}
	pong := make(chan error, 1)
	go func() { pong <- w.writeFrame(framePong, []byte("pong")) }()
	got := make(chan []byte, 1)
	_ = far.SetReadDeadline(time.Now().Add(20 * time.Second))
	go func() {
		all, _ := io.ReadAll(far)
		got <- all
	}()
	for _, write := range []func() error{left, next} {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-pong; err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	all := string(<-got)
	rest, found := strings.CutPrefix(all, string(want))
	if !found {
		t.Fatalf("what was read is not what was written: %d bytes, %d wanted first", len(all), len(want))
	}
	events := string(w.framing.append(w.framing.append(nil, more[0]), more[1]))
	if answer := "\x8a\x04pong"; rest != answer+events && rest != events+answer {
		t.Errorf("after it came %q", rest)
	}
}

// TestAPushAfterALongPauseIsNotLate: the deadline of an earlier write has passed.
func TestAPushAfterALongPauseIsNotLate(t *testing.T) {
	t.Parallel()
	w, far := rawWire(t)
	w.deadline.timeout = time.Nanosecond
	w.deadline.extend(w.Conn) // as a write does that has to wait
	left, err := w.push([]*relay.Event{pushedEvent(1, `1`)})
	if err != nil {
		t.Fatalf("a push failed with %v", err)
	}
	if left != nil {
		t.Fatal("a push that has room was left for later")
	}
	_ = far.SetReadDeadline(time.Now().Add(20 * time.Second))
	buffer := make([]byte, 100)
	for got := ""; !strings.Contains(got, `"event_id":1`); {
		n, err := far.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		got += string(buffer[:n])
	}
}

// TestOnlyAWriteThatWaitsHasADeadline, as each would be a timer.
func TestOnlyAWriteThatWaitsHasADeadline(t *testing.T) {
	t.Parallel()
	w, _ := rawWire(t)
	w.deadline.timeout = time.Millisecond
	if err := w.writeFrame(framePing, nil); err != nil || !w.deadline.until.IsZero() {
		t.Fatalf("a ping was written with the deadline %s: %v", w.deadline.until, err)
	}
	e := pushedEvent(1, `"`+strings.Repeat("x", 32<<20)+`"`)
	if err := w.writeEvents([]*relay.Event{e}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("what nobody reads was written, or waited for, with %v", err)
	}
}

// TestNothingIsPushedAfterTheCloseFrame, or to a connection that broke.
func TestNothingIsPushedAfterTheCloseFrame(t *testing.T) {
	t.Parallel()
	w, _ := rawWire(t)
	w.deadline.timeout = 20 * time.Second
	w.sayGoodbye(1001, "bye")
	left, err := w.push([]*relay.Event{pushedEvent(1, `1`)})
	if left != nil {
		err = left()
	}
	if err == nil {
		t.Error("an event was written after the close frame")
	}
}
