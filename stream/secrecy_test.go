package stream_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/stream"
)

// lockedBuffer is a log that many write to.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestNoTokenIsEverLogged(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w := newWorld(t, worldOptions{Options: stream.Options{Logger: logger}})
	good, bad := sign(t, cadet17), sign(t, admin)+"x"
	c := w.dial(t, "/ws/updates/?token="+good, nil)
	nextOf(t, c, "connection_established")
	c.send(t, `{"type":"auth","token":"`+good+`"}`)
	nextOf(t, c, "connection_established")
	c.send(t, `{"type":"auth","token":"`+bad+`"}`)
	c.wantClosed(t, 4001, "")
	w.dial(t, "/ws/updates/", http.Header{"Sec-Websocket-Protocol": {"bearer, " + bad}}).wantClosed(t, 4001, "")
	w.get(t, "/api/events?token="+bad, nil).Body.Close()
	w.get(t, "/api/events", http.Header{"Authorization": {"Bearer " + bad}}).Body.Close()
	w.get(t, "/nowhere?token="+good, nil).Body.Close()
	_, response, err := websocket.DefaultDialer.Dial("ws://"+w.addr+"/ws/updates/?token="+good, http.Header{"Origin": {"https://evil.example"}})
	if err == nil {
		t.Fatal("connected from a forbidden origin")
	}
	response.Body.Close()
	w.stop()
	text := log.String()
	for _, part := range strings.Split(good+"."+bad, ".") {
		if len(part) > 20 && strings.Contains(text, part) {
			// The header is the same in all tokens and says nothing.
			if part != strings.Split(good, ".")[0] {
				t.Errorf("the log holds the part %s of a token", part)
			}
		}
	}
	for _, want := range []string{"msg=connected", "msg=disconnected", "user_id=5", "reason=invalid_token"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s:\n%s", want, text)
		}
	}
}

func TestWhatStrangersSendIsQuotedAndCutInTheLog(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w := newWorld(t, worldOptions{Options: stream.Options{Logger: logger}})
	w.get(t, "/%0Alevel=ERROR%20msg=forged"+strings.Repeat("x", 500), nil).Body.Close()
	w.get(t, "/api/events", http.Header{"Origin": {"https://" + strings.Repeat("y", 500)}}).Body.Close()
	w.stop()
	for line := range strings.Lines(log.String()) {
		if strings.HasPrefix(line, "level=") || len(line) > 400 {
			t.Errorf("a stranger wrote into the log: %s", line)
		}
	}
}
