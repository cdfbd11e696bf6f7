package stream_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay/relaytest"
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

// debugLog is a log that takes everything.
func debugLog() (*lockedBuffer, *slog.Logger) {
	log := &lockedBuffer{}
	return log, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// misplaced are requests with a token at every place where one could stand by
// mistake, or by malice.
func misplaced(token string) []string {
	const end = "\r\nHost: relay\r\n\r\n"
	requests := []string{
		"GET /api/events?token=" + token + " HTTP/1.1" + end,
		"GET /api/events?access_token=" + token + " HTTP/1.1" + end,
		"GET /api/events?last_event_id=" + token + " HTTP/1.1" + end,
		"GET /api/events%3Ftoken=" + token + " HTTP/1.1" + end,
		"GET /" + token + " HTTP/1.1" + end,
		"GET /api/events/" + token + " HTTP/1.1" + end,
		"GET /api/events;token=" + token + " HTTP/1.1" + end,
		"GET /api/events?a=b;token=" + token + " HTTP/1.1" + end,
		"GET http://" + token + "/api/events HTTP/1.1" + end,
		"GET http://relay:" + token + "/api/events HTTP/1.1" + end,
		"GET /%zz" + token + " HTTP/1.1" + end,
		"CONNECT " + token + ":443 HTTP/1.1" + end,
		token + " / HTTP/1.1" + end,
		"GET / " + token + end,
		"GET / HTTP/1.1\r\nHost: " + token + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: relay\r\n" + token + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: relay\r\n" + token + ": x\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: relay\r\nContent-Length: " + token + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: " + token + "\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 400\r\n\r\n" + token,
		"POST / HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n" + token + "\r\n",
	}
	for _, name := range []string{
		"Authorization", "Origin", "Cookie", "Referer", "User-Agent", "Last-Event-ID", "X-Forwarded-For", "Forwarded", "Upgrade", "Connection",
		"Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-WebSocket-Version", "Sec-WebSocket-Extensions", "Expect",
	} {
		for _, value := range []string{token, "Bearer " + token, "Basic " + token, "bearer, " + token, "https://" + token} {
			for _, path := range []string{"/api/events", "/ws/updates/"} {
				request := "GET " + path + " HTTP/1.1\r\nHost: relay\r\n" + name + ": " + value + "\r\n"
				for _, need := range []string{"Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="} {
					if path == "/ws/updates/" && !strings.HasPrefix(need, name+":") {
						request += need + "\r\n"
					}
				}
				requests = append(requests, request+"\r\n")
			}
		}
	}
	return requests
}

func TestNoTokenIsEverLogged(t *testing.T) {
	t.Parallel()
	log, logger := debugLog()
	w := newWorld(t, worldOptions{Options: stream.Options{Logger: logger, Limits: stream.Limits{HeaderTimeout: 2 * time.Second}}})
	good, bad := sign(t, cadet17), sign(t, admin)+"x"
	ticket := rand.Text() + rand.Text() + rand.Text() + rand.Text() // secret from its first character on
	for _, token := range []string{good, bad, ticket} {
		var group sync.WaitGroup
		for _, request := range misplaced(token) {
			group.Go(func() {
				conn := w.raw(t)
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, _ = io.WriteString(conn, request)
				_, _ = conn.Read(make([]byte, 1)) // an answer has come, or none will
				_ = conn.Close()
			})
		}
		group.Wait()
		for _, frame := range [][]byte{
			[]byte(`{"type":"` + token + `"}`), []byte(`{"type":"replay_request","last_event_id":"` + token + `"}`), []byte(`{"` + token + `":1}`),
			[]byte(`{"type":"auth","token":["` + token + `"]}`), []byte(token), []byte(`{"type":"auth","token":"` + token + `"}`),
			[]byte(`{"type":"auth","token":"` + bad + `"}`),
		} {
			c := w.connect(t, cadet17)
			c.send(t, string(frame))
			if got := c.next2(t); got == "" {
				t.Errorf("%s was not answered", frame)
			}
			_ = c.Close()
		}
		for _, frame := range [][]byte{
			rawFrame(0x82, token[:100]), rawFrame(0x89, token[:100]), rawFrame(0x8a, token[:100]),
			rawFrame(0x88, "\x03\xe8"+token[:100]), rawFrame(0x88, token[:100]), rawFrame(0xf1, token[:100]), []byte(token),
		} {
			c := w.connect(t, cadet17)
			_, _ = c.NetConn().Write(frame)
			_ = c.Close()
		}
	}
	w.dial(t, "/ws/updates/?token="+bad, nil).wantClosed(t, 4001, "")
	w.wantConnections(t, 0)
	w.stop()
	text := log.String()
	for _, token := range []string{good, bad, "." + ticket} {
		for i, part := range strings.Split(token, ".") {
			// The header is the same in all tokens and says nothing.
			for at := 0; i > 0 && at+12 <= len(part); at++ {
				if strings.Contains(text, part[at:at+12]) && !strings.Contains(sign(t, jwt.MapClaims{}), part[at:at+12]) {
					t.Fatalf("the log holds the part %s of a token:\n%s", part[at:at+12], lineWith(text, part[at:at+12]))
				}
			}
		}
	}
	for _, want := range []string{"msg=connected", "msg=disconnected", "user_id=5", "msg=request", "msg=\"origin refused\"", "msg=\"clients were refused or let go\"", "invalid_token="} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

func lineWith(text, part string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			return line
		}
	}
	return ""
}

// next2 is the next message, or the close frame.
func (c *wsClient) next2(t testing.TB) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, text, err := c.ReadMessage()
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func TestAFloodOfBadClientsIsACountInTheLog(t *testing.T) {
	t.Parallel()
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		log := &lockedBuffer{}
		logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))
		w := newWorld(t, worldOptions{Options: stream.Options{Logger: logger, SummaryInterval: 50 * time.Millisecond}})
		const flood = 1600
		begun := time.Now()
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range flood / 8 {
					w.get(t, "/api/events?token=x", nil).Body.Close()
				}
			})
		}
		group.Wait()
		sum := func() int {
			n := 0
			for _, m := range regexp.MustCompile(`(?:invalid_token|too_many_failed_tokens)=(\d+)`).FindAllStringSubmatch(log.String(), -1) {
				more, err := strconv.Atoi(m[1])
				if err != nil {
					t.Fatal(err)
				}
				n += more
			}
			return n
		}
		relaytest.Wait(t, "all are counted", func() bool { return sum() == flood })
		w.stop()
		lines := strings.Count(log.String(), "\n")
		summaries := strings.Count(log.String(), "clients were refused")
		most := 0
		if level == slog.LevelDebug { // noiseBurst, and noiseRate a second
			most = 500 + int(50*time.Since(begun).Seconds())
		}
		if lines-summaries > most {
			t.Errorf("%s: %d requests made %d lines", level, flood, lines)
		}
		// Each is a request and a refusal.
		if level == slog.LevelDebug && most < 2*flood && !strings.Contains(log.String(), "lines_left_out=") {
			t.Error("no line was left out")
		}
	}
}

func TestTheOperatorIsWarnedOnceOfAProxyThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	log, logger := debugLog()
	w := newWorld(t, worldOptions{Options: stream.Options{Logger: logger}})
	for range 3 {
		w.get(t, "/api/events", from("192.0.2.1")).Body.Close()
	}
	if n := strings.Count(log.String(), "listen.trusted_proxies"); n != 1 {
		t.Errorf("warned %d times:\n%s", n, log)
	}
}

func TestWhatStrangersSendIsQuotedAndCutInTheLog(t *testing.T) {
	t.Parallel()
	log, logger := debugLog()
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
