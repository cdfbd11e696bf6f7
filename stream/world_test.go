package stream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

const secret = "a secret that only the tests know about"

// patience is how long a test waits for what must come.
const patience = 40 * time.Second

// world is a running relay with a server in front of it, on real sockets.
type world struct {
	*relaytest.Relay
	server   *stream.Server
	registry *prometheus.Registry
	addr     string // of the public listener
	ops      string
	stop     func() // ends Run and waits for it
}

type worldOptions struct {
	stream.Options
	relay relay.Options
}

func newWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	w := &world{registry: o.Registry}
	if o.Relay == nil {
		observer := stream.NewObserver(o.Registry)
		o.relay.Observer, o.Observer = observer, observer
		w.Relay = relaytest.New(t, o.relay)
		o.Relay = w.Relay.Relay
	}
	if o.Verifier == nil {
		o.Verifier = newVerifier(t)
	}
	server, err := stream.New(o.Options)
	if err != nil {
		t.Fatal(err)
	}
	w.server = server
	public, ops := listen(t), listen(t)
	w.addr, w.ops = public.Addr().String(), ops.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, public, ops) }()
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(w.stop)
	return w
}

func newVerifier(t testing.TB) *stream.Verifier {
	t.Helper()
	v, err := stream.NewVerifier(stream.VerifierOptions{HMACSecret: []byte(secret)})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The people of the tests.
var (
	admin   = jwt.MapClaims{"user_id": 1, "role": "admin"}
	staff   = jwt.MapClaims{"user_id": 2, "role": "training_staff"}
	cadet17 = jwt.MapClaims{"user_id": 5, "role": "cadet", "cadet_id": 17}
	cadet18 = jwt.MapClaims{"user_id": 6, "role": "cadet", "cadet_id": 18}
)

// sign makes a token: the claims given, later ones over earlier ones, and an
// hour to live.
func sign(t testing.TB, claims ...jwt.MapClaims) string {
	t.Helper()
	all := jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix()}
	for _, more := range claims {
		for name, value := range more {
			all[name] = value
		}
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, all).SignedString([]byte(secret))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func grade(cadet int64) relay.Row {
	return relay.Row{Type: "grade_update", CadetID: cadet, HasCadet: true, Payload: []byte(`{"merits": 3}`)}
}

// message is any message of the server's.
type message struct {
	Type        string          `json:"type"`
	EventID     int64           `json:"event_id"`
	CadetID     *int64          `json:"cadet_id"`
	Data        json.RawMessage `json:"data"`
	Timestamp   json.RawMessage `json:"timestamp"`
	Message     string          `json:"message"`
	UserID      int64           `json:"user_id"`
	Role        string          `json:"role"`
	LastEventID int64           `json:"last_event_id"`
	Epoch       string          `json:"epoch"`
	Renewed     bool            `json:"renewed"`
	Requested   int64           `json:"requested"`
	Count       int64           `json:"count"`
	Truncated   bool            `json:"truncated"`
	OldestID    int64           `json:"oldest_event_id"`
	Code        string          `json:"code"`
	ExpiresIn   int             `json:"expires_in"`

	text  string // as it came
	id    string // the SSE field
	event string // the SSE field
}

func parse(t testing.TB, text []byte) message {
	t.Helper()
	m, err := decode(text)
	if err != nil {
		t.Fatalf("the server sent %q: %v", text, err)
	}
	return m
}

func decode(text []byte) (message, error) {
	m := message{text: string(text)}
	err := json.Unmarshal(text, &m)
	return m, err
}

// client is a client of either transport.
type client interface {
	// next is the next message; the connection must not end instead.
	next(t testing.TB) message
}

// nextOf is the next message of a type; it fails if events come before.
func nextOf(t testing.TB, c client, kind string) message {
	t.Helper()
	m := c.next(t)
	if m.Type != kind {
		t.Fatalf("got %s, want a message of type %s", m.text, kind)
	}
	return m
}

// wantEvents reads events with these IDs, and nothing in between.
func wantEvents(t testing.TB, c client, ids ...int64) {
	t.Helper()
	for _, id := range ids {
		if m := c.next(t); m.EventID != id {
			t.Fatalf("got %s, want event %d", m.text, id)
		}
	}
}

type wsClient struct {
	*websocket.Conn
	protocol string
}

// dial connects a WebSocket; path may hold a query.
func (w *world) dial(t testing.TB, path string, header http.Header) *wsClient {
	t.Helper()
	conn, response, err := websocket.DefaultDialer.Dial("ws://"+w.addr+path, header)
	if err != nil {
		status := ""
		if response != nil {
			status = response.Status
		}
		t.Fatalf("dial %s: %v %s", path, err, status)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &wsClient{conn, conn.Subprotocol()}
}

// connect connects a WebSocket and takes its connection_established.
func (w *world) connect(t testing.TB, claims jwt.MapClaims, query ...string) *wsClient {
	t.Helper()
	c := w.dial(t, "/ws/updates/?"+strings.Join(append(query, "token="+sign(t, claims)), "&"), nil)
	nextOf(t, c, "connection_established")
	return c
}

func (c *wsClient) next(t testing.TB) message {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	kind, text, err := c.ReadMessage()
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if kind != websocket.TextMessage {
		t.Fatalf("the server sent a message of kind %d", kind)
	}
	return parse(t, text)
}

func (c *wsClient) send(t testing.TB, text string) {
	t.Helper()
	if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		t.Fatalf("send %q: %v", text, err)
	}
}

// closed reads to the end and returns the close frame.
func (c *wsClient) closed(t testing.TB) *websocket.CloseError {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	for {
		_, _, err := c.ReadMessage()
		var frame *websocket.CloseError
		switch {
		case err == nil:
		case errors.As(err, &frame) && frame.Code != websocket.CloseAbnormalClosure:
			return frame
		default:
			t.Fatalf("the connection ended without a close frame: %v", err)
		}
	}
}

// wantClosed reads to the end, which must come with this code and reason.
func (c *wsClient) wantClosed(t testing.TB, code int, reason string) {
	t.Helper()
	if got := c.closed(t); got.Code != code || !strings.Contains(got.Text, reason) {
		t.Fatalf("closed with %d %q, want %d %q", got.Code, got.Text, code, reason)
	}
}

type sseClient struct {
	*http.Response
	lines *bufio.Reader
	// comments and retry are what stood before the last message.
	comments []string
	retry    string
}

// get sends a request to the public listener.
func (w *world) get(t testing.TB, path string, header http.Header) *http.Response {
	t.Helper()
	return w.do(t, http.MethodGet, "http://"+w.addr+path, header)
}

func (w *world) do(t testing.TB, method, address string, header http.Header) *http.Response {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, method, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		request.Header[name] = values
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatalf("%s %s: %v", method, address, err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// events opens an event stream.
func (w *world) events(t testing.TB, path string, header http.Header) *sseClient {
	t.Helper()
	response := w.get(t, path, header)
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body)
		t.Fatalf("GET %s: %s: %s", path, response.Status, body)
	}
	return newSSEClient(response)
}

func newSSEClient(response *http.Response) *sseClient {
	return &sseClient{Response: response, lines: bufio.NewReader(response.Body)}
}

// follow opens an event stream and takes its connection_established.
func (w *world) follow(t testing.TB, claims jwt.MapClaims, query ...string) *sseClient {
	t.Helper()
	c := w.events(t, "/api/events?"+strings.Join(append(query, "token="+url.QueryEscape(sign(t, claims))), "&"), nil)
	nextOf(t, c, "connection_established")
	return c
}

func (c *sseClient) next(t testing.TB) message {
	t.Helper()
	m, err := c.read()
	if err != nil {
		t.Fatalf("the stream ended: %v", err)
	}
	full := parse(t, []byte(m.text))
	full.id, full.event = m.id, m.event
	return full
}

// read reads one message as the HTML standard says (section 9.2.6).
func (c *sseClient) read() (m message, err error) {
	for {
		line, err := c.lines.ReadString('\n')
		if err != nil {
			return m, err
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "\n" && m.text != "":
			return m, nil
		case line == "\n":
		case field == "":
			c.comments = append(c.comments, value)
		case field == "id":
			m.id = value
		case field == "event":
			m.event = value
		case field == "data":
			m.text += value
		case field == "retry":
			c.retry = value
		default:
			return m, fmt.Errorf("an unknown field in %q", line)
		}
	}
}
