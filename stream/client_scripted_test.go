package stream_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/stream/clienttest"
)

// scripted is a server that says what no relay says, or seldom: clients must bear
// that too.
type scripted struct {
	*httptest.Server
	frames   []string         // sent on a WebSocket
	received chan string      // what clients send
	answer   http.HandlerFunc // to a request for an event stream; nil for none
}

const established = `{"type":"connection_established","message":"WebSocket connection established","user_id":5,"role":"cadet","cadet_id":17,"last_event_id":0,"epoch":"e"}`

func newScripted(t *testing.T, s *scripted) *scripted {
	t.Helper()
	s.received = make(chan string, 100)
	upgrader := websocket.Upgrader{Subprotocols: []string{"bearer"}, CheckOrigin: func(*http.Request) bool { return true }}
	mux := http.NewServeMux()
	mux.HandleFunc("/ws/updates/", func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		for _, frame := range s.frames {
			_ = conn.WriteMessage(websocket.TextMessage, []byte(frame))
		}
		for {
			_, text, err := conn.ReadMessage()
			if err != nil {
				return
			}
			s.received <- string(text)
		}
	})
	if s.answer != nil {
		mux.HandleFunc("/api/events", s.answer)
	}
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s
}

func TestClientDropsWhatComesTwiceAndBearsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	_, h := inNode(t)
	event := func(id, more string) string {
		return `{"type":"grade_update","event_id":` + id + `,"data":{},"timestamp":"2024-01-15T10:30:00Z"` + more + `}`
	}
	s := newScripted(t, &scripted{frames: []string{
		established, event("1", ""), event("2", ""), event("2", ""), event("1", ""), `{"type":"of a later version"}`,
		event("3", `,"of a later version":1`), `{"type":"error","code":"of_a_later_version","message":"?"}`, `{"type":"pong","event_id":4,"data":{}}`,
	}})
	a := h.Connect(clienttest.Options{URL: s.URL, Token: sign(t, cadet17), Transport: "websocket"})
	if got := ids(a.AwaitEvents(4)); !slices.Equal(got, upTo(4)) {
		t.Errorf("handed out were %v", got)
	}
	if e := a.AwaitError(1); e[0].Label != "of_a_later_version" {
		t.Errorf("errors %+v", e)
	}
	a.Interrupt()
	if got := a.AwaitReached("waiting", func(s clienttest.State) bool { return s.Status == "waiting" }); got.Counts.Duplicates != 2 || got.Cursor != 4 {
		t.Errorf("the state is %+v, want 2 duplicates and the cursor at 4", got)
	}
}

func TestClientWaitsAsLongAsItIsToldTo(t *testing.T) {
	t.Parallel()
	_, h := inNode(t)
	s := newScripted(t, &scripted{answer: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"type":"error","code":"too_many_connections","message":"too many connections: try again later"}`))
	}})
	a := h.Connect(clienttest.Options{URL: s.URL, Token: sign(t, cadet17), Transport: "sse", MinDelay: 10, MaxDelay: 10})
	got := a.AwaitReached("waiting", func(s clienttest.State) bool { return s.Status == "waiting" })
	if wait := got.RetryAt - got.At; got.Reason.Code != 1013 || got.Reason.Label != "too_many_connections" || wait < 25_000 {
		t.Errorf("after %+v it waits %.0f ms, want 30 s", got.Reason, wait)
	}
}

func TestClientShowsItsNewTokenOnTheConnectionThatIsThere(t *testing.T) {
	t.Parallel()
	_, h := inNode(t)
	s := newScripted(t, &scripted{frames: []string{established, `{"type":"token_expiring","expires_in":60}`}})
	var calls atomic.Int64
	fresh := sign(t, cadet17)
	h.Connect(clienttest.Options{URL: s.URL, Transport: "websocket", Tokens: func(string) (string, error) {
		if calls.Add(1) == 1 {
			return sign(t, cadet17, map[string]any{"first": true}), nil
		}
		return fresh, nil
	}})
	for text := range s.received {
		if strings.Contains(text, `"auth"`) {
			if text != `{"type":"auth","token":"`+fresh+`"}` {
				t.Errorf("the client sent %s", text)
			}
			return
		}
	}
}
