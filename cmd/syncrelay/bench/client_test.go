package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// frame is a server's frame.
func frame(kind byte, payload string) []byte {
	b := []byte{kind}
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

func eventText(id int64, size int) string {
	return fmt.Sprintf(`{"type":"parade","event_id":%d,"data":{"pad": %q},"timestamp":"2026-01-15T10:30:00Z"}`, id, strings.Repeat("x", size))
}

func quietCrowd() *crowd { return newCrowd(&child{ended: make(chan struct{})}, "") }

func TestClientReadsFramesHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	var sent []byte
	for i, size := range []int{1, 200, 70_000, 1} {
		sent = append(sent, frame(frameText, eventText(int64(i+1), size))...)
	}
	for _, piece := range []int{1, 2, 3, 7, 130, 1000, 16384, len(sent)} {
		c := &client{crowd: quietCrowd()}
		c.consecutive = true
		for at := 0; at < len(sent); at += piece {
			if err := c.feed(sent[at:min(at+piece, len(sent))]); err != nil {
				t.Fatalf("in pieces of %d: %v", piece, err)
			}
		}
		if err := c.checker.complete(4); err != nil || c.crowd.received.Load() != 4 {
			t.Errorf("in pieces of %d: %v, and the crowd has %d", piece, err, c.crowd.received.Load())
		}
	}
}

func TestClientTakesControlMessagesForWhatTheyAre(t *testing.T) {
	t.Parallel()
	c := &client{crowd: quietCrowd()}
	greeting := `{"type":"connection_established","message":"WebSocket connection established","user_id":1,"role":"admin","last_event_id":41,"epoch":"e"}`
	complete := `{"type":"replay_complete","requested":41,"count":2,"last_event_id":43,"truncated":false,"oldest_event_id":1}`
	for _, text := range []string{greeting, eventText(42, 1), eventText(43, 1), complete} {
		if err := c.feed(frame(frameText, text)); err != nil {
			t.Fatal(err)
		}
	}
	if !c.established || !c.complete || c.replayed != 2 || c.count != 2 {
		t.Errorf("the client is %+v", c)
	}
	for name, bad := range map[string][]byte{
		"an error":           frame(frameText, `{"type":"error","code":"x","message":"no"}`),
		"a truncated replay": frame(frameText, strings.Replace(complete, "false", "true", 1)),
		"a close frame":      frame(frameClose, "\x03\xf5over a limit"),
		"a binary frame":     frame(0x82, "x"),
		"a masked frame":     {frameText, 0x81, 0, 0, 0, 0, 'x'},
	} {
		if err := c.feed(bad); err == nil {
			t.Errorf("%s is no failure", name)
		}
	}
}

func TestCrowdFailsIfOneClientIsSentSomethingElse(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ids     []int64 // what the last client is sent after the first event
		finding string
	}{
		"nothing wrong": {ids: []int64{2, 3}},
		"lost":          {ids: []int64{3}, finding: "1 events were lost between 1 and 3"},
		"repeated":      {ids: []int64{2, 2, 3}, finding: "event 2 was sent twice"},
		"out of order":  {ids: []int64{3, 2}, finding: "1 events were lost between 1 and 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := playTo(t, c.ids)
			switch {
			case c.finding == "" && err != nil:
				t.Errorf("it fails with %v", err)
			case c.finding != "" && (err == nil || !strings.Contains(err.Error(), c.finding)):
				t.Errorf("it ends with %v, want %q", err, c.finding)
			}
		})
	}
}

// playTo has events 2 and 3 driven to three clients, of which the last is sent
// something of its own.
func playTo(t *testing.T, last []int64) error {
	t.Helper()
	conns := make(chan *websocket.Conn, 3)
	upgrader := websocket.Upgrader{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		conns <- conn
	}))
	defer server.Close()
	c := quietCrowd()
	c.address, c.bare, c.consecutive = server.Listener.Addr().(*net.TCPAddr).String(), true, true
	defer c.leave()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.join(ctx, 3, 1, func(int) visitor { return visitor{after: -1} }); err != nil {
		t.Fatal(err)
	}
	all := []*websocket.Conn{<-conns, <-conns, <-conns}
	send := func(conn *websocket.Conn, ids ...int64) {
		for _, id := range ids {
			if err := conn.WriteMessage(websocket.TextMessage, []byte(eventText(id, 10))); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(func() {
		for _, conn := range all {
			_ = conn.Close()
		}
	})
	for _, conn := range all {
		send(conn, 1)
	}
	if err := c.await(ctx, 3); err != nil {
		t.Fatal(err)
	}
	err := c.drive(ctx, 1, 1, 2, 1, func(context.Context) error {
		send(all[2], last...) // before the others, so that nothing is whole without it
		send(all[0], 2, 3)
		send(all[1], 2, 3)
		return nil
	})
	if err != nil {
		return err
	}
	return c.verifyEach(func(*client) int64 { return 3 })
}
