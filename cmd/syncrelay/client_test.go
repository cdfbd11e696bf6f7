package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// message is what a client is sent: an event, or a control message.
type message struct {
	Type        string          `json:"type"`
	EventID     int64           `json:"event_id"`
	CadetID     *int64          `json:"cadet_id"`
	Data        json.RawMessage `json:"data"`
	Timestamp   string          `json:"timestamp"`
	LastEventID int64           `json:"last_event_id"`
	Count       int64           `json:"count"`
	Truncated   bool            `json:"truncated"`
	Message     string          `json:"message"`
	received    time.Time
}

// follower is a client of the product on one of its transports, outside of it:
// it knows nothing but the protocol.
type follower struct {
	transport, address, token string

	mu     sync.Mutex
	events []message
	notes  []message // control messages
	err    error
	close  func()
	ended  chan struct{}
}

const (
	overWebSocket = "websocket"
	overSSE       = "sse"
)

// follow connects and waits until connection_established has come. last below 0
// starts at the head.
func follow(t testing.TB, transport, address, token string, last int64) *follower {
	t.Helper()
	f, err := tryFollow(t.Context(), transport, address, token, last)
	if err != nil {
		t.Fatalf("connect over %s: %v", transport, err)
	}
	t.Cleanup(f.stop)
	eventually(t, "connection_established", func() bool { return f.note("connection_established") != nil || f.failed() != nil })
	if err := f.failed(); err != nil {
		t.Fatalf("connect over %s: %v", transport, err)
	}
	return f
}

// tryFollow connects.
func tryFollow(ctx context.Context, transport, address, token string, last int64) (*follower, error) {
	f := &follower{transport: transport, address: address, token: token, ended: make(chan struct{})}
	query := url.Values{"token": {token}}
	if last >= 0 {
		query.Set("last_event_id", fmt.Sprint(last))
	}
	if transport == overWebSocket {
		conn, _, err := websocket.DefaultDialer.DialContext(ctx, "ws://"+address+"/ws/updates/?"+query.Encode(), nil)
		if err != nil {
			return nil, err
		}
		f.close = func() { _ = conn.Close() }
		go f.readFrames(conn)
		return f, nil
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/events?"+query.Encode(), http.NoBody)
	if err != nil {
		cancel()
		return nil, err
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		cancel()
		return nil, err
	}
	f.close = cancel
	if response.StatusCode != http.StatusOK {
		cancel()
		_ = response.Body.Close()
		return nil, fmt.Errorf("status %s", response.Status)
	}
	go f.readBlocks(response)
	return f, nil
}

func (f *follower) readFrames(conn *websocket.Conn) {
	defer close(f.ended)
	for {
		_, text, err := conn.ReadMessage()
		if err != nil {
			f.fail(err)
			return
		}
		f.take(text)
	}
}

func (f *follower) readBlocks(response *http.Response) {
	defer close(f.ended)
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewReaderSize(response.Body, 64<<10)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			f.fail(err)
			return
		}
		if text, ok := strings.CutPrefix(string(line), "data: "); ok {
			f.take([]byte(text))
		}
	}
}

func (f *follower) take(text []byte) {
	m := message{received: time.Now()}
	err := json.Unmarshal(text, &m)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil:
		f.err = fmt.Errorf("%s: %w", text, err)
	case m.EventID > 0:
		f.events = append(f.events, m)
	default:
		f.notes = append(f.notes, m)
	}
}

func (f *follower) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

func (f *follower) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// stop cuts the connection and waits until nothing more is read.
func (f *follower) stop() {
	f.close()
	<-f.ended
}

// got is the events that were received.
func (f *follower) got() []message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

func (f *follower) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.events)
}

// note is the last control message of a type, nil for none.
func (f *follower) note(kind string) *message {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range slices.Backward(f.notes) {
		if m.Type == kind {
			return &m
		}
	}
	return nil
}

// await waits until n events have come.
func (f *follower) await(t testing.TB, n int) []message {
	t.Helper()
	eventually(t, fmt.Sprintf("%d events over %s", n, f.transport), func() bool { return f.count() >= n || f.failed() != nil })
	got := f.got()
	if len(got) != n {
		t.Fatalf("over %s came %d events, want %d (%v)", f.transport, len(got), n, f.failed())
	}
	return got
}

// eventually waits until something holds, for at most a minute.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute in vain: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
