package stream_test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

func TestTokenComesInEachOfItsWays(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	token, other := sign(t, cadet17), sign(t, admin)
	for _, c := range []struct {
		name   string
		path   string
		header http.Header
	}{
		{"query", "/ws/updates/?token=" + token, nil},
		{"query, no last slash", "/ws/updates?token=" + token, nil},
		{"Authorization", "/ws/updates/", http.Header{"Authorization": {"Bearer " + token}}},
		{"Authorization in small letters", "/ws/updates/", http.Header{"Authorization": {"bearer " + token}}},
		{"subprotocol", "/ws/updates/", http.Header{"Sec-Websocket-Protocol": {"bearer, " + token}}},
		{"subprotocol on two lines", "/ws/updates/", http.Header{"Sec-Websocket-Protocol": {"bearer", token}}},
		{"Authorization wins", "/ws/updates/?token=" + other, http.Header{"Authorization": {"Bearer " + token}, "Sec-Websocket-Protocol": {"bearer, " + other}}},
		{"subprotocol wins over the query", "/ws/updates/?token=" + other, http.Header{"Sec-Websocket-Protocol": {"bearer, " + token}}},
		{"another scheme is nothing", "/ws/updates/?token=" + token, http.Header{"Authorization": {"Basic dXNlcjpwYXNz"}}},
		{"an empty one is nothing", "/ws/updates/?token=" + token, http.Header{"Authorization": {"Bearer "}}},
		{"a subprotocol without a token is nothing", "/ws/updates/?token=" + token, http.Header{"Sec-Websocket-Protocol": {"bearer"}}},
	} {
		conn := w.dial(t, c.path, c.header)
		if m := nextOf(t, conn, "connection_established"); m.UserID != 5 {
			t.Errorf("%s: connected as user %d", c.name, m.UserID)
		}
		want := ""
		if c.header["Sec-Websocket-Protocol"] != nil {
			want = "bearer"
		}
		if conn.protocol != want {
			t.Errorf("%s: the subprotocol is %q", c.name, conn.protocol)
		}
	}
	w.dial(t, "/ws/updates/", nil).wantClosed(t, 4001, "no token")
	w.dial(t, "/ws/updates/", http.Header{"Cookie": {"token=" + token}}).wantClosed(t, 4001, "no token")
}

func TestConnectionEstablishedSaysWhoAndWhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.Insert(grade(17), grade(17))
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 2 })
	m := nextOf(t, w.dial(t, "/ws/updates/?token="+sign(t, cadet17), nil), "connection_established")
	want := fmt.Sprintf(`{"type":"connection_established","message":"WebSocket connection established","user_id":5,"role":"cadet","cadet_id":17,"last_event_id":2,"epoch":%q}`, w.Status().Epoch)
	if m.text != want {
		t.Errorf("got %s, want %s", m.text, want)
	}
	m = nextOf(t, w.dial(t, "/ws/updates/?token="+sign(t, admin), nil), "connection_established")
	if strings.Contains(m.text, "cadet_id") {
		t.Errorf("an admin was told a cadet: %s", m.text)
	}
}

func TestEventCarriesItsRow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	at := time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)
	w.Insert(
		relay.Row{Type: "grade_update", CadetID: 1, HasCadet: true, Payload: []byte(`{"score": 95}`), CreatedAt: at},
		relay.Row{Type: "audit", Payload: []byte(`[1, null, "ünï✓"]`), CreatedAt: at},
	)
	for _, want := range []string{
		`{"type":"grade_update","event_id":1,"cadet_id":1,"data":{"cadet_id": 1, "score": 95},"timestamp":"2024-01-15T10:30:00Z"}`,
		`{"type":"audit","event_id":2,"data":[1, null, "ünï✓"],"timestamp":"2024-01-15T10:30:00Z"}`,
	} {
		if got := c.next(t); got.text != want {
			t.Errorf("got %s, want %s", got.text, want)
		}
	}
}

func TestPongCarriesThePingsTimestampAsItWas(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	for _, timestamp := range []string{`1700000000123`, `"2024-01-15T10:30:00Z"`, `1.50e3`, `null`, `{"a":[1, "<&>"]}`, `12345678901234567890`} {
		c.send(t, `{"type":"ping","timestamp":`+timestamp+`}`)
		if m := c.next(t); m.text != `{"type":"pong","timestamp":`+timestamp+`}` {
			t.Errorf("ping with %s: got %s", timestamp, m.text)
		}
	}
	c.send(t, `{"type":"ping"}`)
	if m := c.next(t); m.text != `{"type":"pong","timestamp":null}` {
		t.Errorf("ping without a timestamp: got %s", m.text)
	}
}

func TestReplayRequestsAreAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, cadet17)
	w.Insert(grade(17), grade(18), grade(17), grade(17))
	wantEvents(t, c, 1, 3, 4)
	c.send(t, `{"type":"replay_request","last_event_id":1}`)
	wantEvents(t, c, 3, 4)
	if m := nextOf(t, c, "replay_complete"); m.text != `{"type":"replay_complete","requested":1,"count":2,"last_event_id":4,"truncated":false,"oldest_event_id":1}` {
		t.Errorf("got %s", m.text)
	}
	c.send(t, `{"type":"replay_request","last_event_id":0}`)
	wantEvents(t, c, 1, 3, 4)
	nextOf(t, c, "replay_complete")
	w.Insert(grade(17))
	wantEvents(t, c, 5)
}

func TestReplayRequestsThatCannotBeMetAreAnsweredWithAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	w.Insert(grade(17))
	wantEvents(t, c, 1)
	for _, id := range []string{
		"-1", "2", "9007199254740991", "9007199254740992", "99999999999999999999999999", "1.0", "0.5", "1e0", `"1"`, `"abc"`, "null", "true", "[1]", "{}",
	} {
		c.send(t, `{"type":"replay_request","last_event_id":`+id+`}`)
		if m := nextOf(t, c, "error"); m.Code != "invalid_last_event_id" || !strings.Contains(m.Message, "last_event_id") {
			t.Errorf("last_event_id %s: got %s", id, m.text)
		}
	}
	c.send(t, `{"type":"replay_request"}`)
	if m := nextOf(t, c, "error"); m.Code != "invalid_last_event_id" || !strings.Contains(m.Message, "missing") {
		t.Errorf("no last_event_id: got %s", m.text)
	}
	w.Insert(grade(17))
	wantEvents(t, c, 2)
}

func TestResumeStartsRightAfterTheEventOnBothTransports(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.Insert(grade(17), grade(18), grade(17))
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 3 })
	for name, c := range map[string]client{
		"WebSocket": w.connect(t, cadet17, "last_event_id=1"),
		"SSE":       w.follow(t, cadet17, "last_event_id=1"),
	} {
		wantEvents(t, c, 3)
		if m := nextOf(t, c, "replay_complete"); m.Requested != 1 || m.Count != 1 || m.LastEventID != 3 || m.Truncated {
			t.Errorf("%s: got %s", name, m.text)
		}
	}
	c := w.connect(t, cadet17, "last_event_id=0")
	wantEvents(t, c, 1, 3)
	nextOf(t, c, "replay_complete")
	w.Insert(grade(17))
	wantEvents(t, c, 4)
	w.connect(t, cadet17, "last_event_id=") // empty is absent
}

func TestResumeThatCannotBeMetIsAnsweredWithAnErrorAndGoesOnAtTheHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.Insert(grade(17))
	relaytest.Wait(t, "the event is assigned", func() bool { return w.Status().Head == 1 })
	head := int64(1)
	for _, id := range []string{"abc", "-1", "1.5", "1e3", "%2B1", "1000", "9007199254740992", "٣", "+1", strings.Repeat("9", 500)} {
		for name, connect := range map[string]func() client{
			"WebSocket": func() client { return w.connect(t, cadet17, "last_event_id="+id) },
			"SSE":       func() client { return w.follow(t, cadet17, "last_event_id="+id) },
		} {
			c := connect()
			m := nextOf(t, c, "error")
			if m.Code != "invalid_last_event_id" || len(m.Message) > 200 {
				t.Errorf("%s, last_event_id=%s: got %s", name, id, m.text)
			}
			w.Insert(grade(17))
			head++
			wantEvents(t, c, head)
			relaytest.Wait(t, "assigned", func() bool { return w.Status().Head == head })
		}
	}
}

func TestMalformedMessagesAreAnsweredAndTooManyCloseWith1008(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	for _, text := range []string{
		`{not json`, ``, `[]`, `"ping"`, `null`, `{"type":5}`, `{}`, `{"type":"ping"} {}`, `{"type":"ping","type":"auth"}`, `{"type":"auth","token":5}`,
	} {
		c.send(t, text)
		if m := nextOf(t, c, "error"); m.Code != "malformed_message" {
			t.Errorf("%s: got %s", text, m.text)
		}
	}
	c.send(t, `{"type":"subscribe"}`)
	if m := nextOf(t, c, "error"); m.Code != "unknown_type" || !strings.Contains(m.Message, `"subscribe"`) || !strings.Contains(m.Message, "replay_request") {
		t.Errorf("got %s", m.text)
	}
	c.send(t, `{"type":"PING"}`) // names are compared exactly
	if m := nextOf(t, c, "error"); m.Code != "unknown_type" {
		t.Errorf("got %s", m.text)
	}
	c.send(t, `{not json`)
	c.wantClosed(t, 1008, "malformed messages: not JSON")
}

func TestMessagesThatBreakTheRulesCloseTheConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, c := range []struct {
		name string
		kind int
		text string
		code int
		want string
	}{
		{"over 4 KiB", websocket.TextMessage, `{"type":"ping","timestamp":"` + strings.Repeat("x", 4096) + `"}`, 1009, "4096"},
		{"far over 4 KiB", websocket.TextMessage, strings.Repeat("x", 1<<20), 1009, "4096"},
		{"binary", websocket.BinaryMessage, `{"type":"ping"}`, 1008, "binary"},
		{"not UTF-8", websocket.TextMessage, "{\"type\":\"p\xff\"}", 1007, "UTF-8"},
	} {
		conn := w.connect(t, admin)
		if err := conn.WriteMessage(c.kind, []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		got := conn.closed(t)
		if got.Code != c.code || !strings.Contains(got.Text, c.want) {
			t.Errorf("%s: closed with %d %q, want %d %q", c.name, got.Code, got.Text, c.code, c.want)
		}
	}
}

func TestAMessageOfExactlyTheLimitIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, admin)
	text := `{"type":"ping","timestamp":"` + strings.Repeat("x", 4096-30) + `"}`
	if len(text) != 4096 {
		t.Fatalf("the test's message has %d bytes", len(text))
	}
	c.send(t, text)
	nextOf(t, c, "pong")
}

func TestTooManyMessagesCloseWith1008(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Limits: stream.Limits{MessageRate: 1, MessageBurst: 10}}})
	for name, send := range map[string]func(c *wsClient) error{
		"messages":    func(c *wsClient) error { return c.WriteMessage(websocket.TextMessage, []byte(`{"type":"ping"}`)) },
		"ping frames": func(c *wsClient) error { return c.WriteMessage(websocket.PingMessage, nil) },
	} {
		c := w.connect(t, admin)
		for range 30 {
			if send(c) != nil {
				break // closed already
			}
		}
		if got := c.closed(t); got.Code != 1008 || !strings.Contains(got.Text, "too many messages") {
			t.Errorf("%s: closed with %v", name, got)
		}
	}
}

func TestTokenThatExpiresCloses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	expires := time.Now().Add(2 * time.Second).Truncate(time.Second)
	soon := jwt.MapClaims{"user_id": 5, "role": "cadet", "exp": expires.Unix()}
	ws, sse := w.connect(t, soon), w.follow(t, soon)
	inTime := startWatch(t)
	ws.wantClosed(t, 4001, "token expired")
	inTime(expires)
	wantNotice(t, sse, 0, 2)
	if m := nextOf(t, sse, "error"); m.Code != "token_expired" || m.event != "error" {
		t.Errorf("SSE: got %s", m.text)
	}
	if _, err := sse.read(); err == nil {
		t.Error("the stream goes on")
	}
}

func TestAuthFrameRenewsTheIdentityInPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, jwt.MapClaims{"user_id": 5, "role": "cadet", "cadet_id": 17, "exp": time.Now().Unix() + 2})
	wantNotice(t, c, 0, 2)
	c.send(t, `{"type":"auth","token":"`+sign(t, jwt.MapClaims{"user_id": 5, "role": "cadet", "cadet_id": 18})+`"}`)
	m := nextOf(t, c, "connection_established")
	if !m.Renewed || !strings.Contains(m.text, `"cadet_id":18`) {
		t.Errorf("got %s", m.text)
	}
	w.Insert(grade(17), grade(18))
	wantEvents(t, c, 2)
	// The first token has ended when this test's patience with it has.
	deadline := time.Now().Add(3 * time.Second)
	for id := int64(3); time.Now().Before(deadline); id++ {
		w.Insert(grade(18))
		wantEvents(t, c, id)
		c.send(t, `{"type":"ping"}`)
		nextOf(t, c, "pong")
		waitUntil(time.Now().Add(100 * time.Millisecond))
	}
}

func waitUntil(at time.Time) { <-time.After(time.Until(at)) }

func TestARenewedTokenMayEndSooner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, cadet17)
	expires := time.Now().Add(2 * time.Second).Truncate(time.Second)
	c.send(t, `{"type":"auth","token":"`+sign(t, cadet17, jwt.MapClaims{"exp": expires.Unix()})+`"}`)
	inTime := startWatch(t)
	nextOf(t, c, "connection_established")
	c.wantClosed(t, 4001, "token expired")
	inTime(expires)
}

func TestAuthFrameOfAnotherUserCloses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.connect(t, cadet17)
	c.send(t, `{"type":"auth","token":"`+sign(t, admin)+`"}`)
	c.wantClosed(t, 4001, "another user")
}

func TestRevokedSessionIsClosedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ws, sse, other := w.connect(t, cadet17), w.follow(t, cadet17), w.connect(t, admin)
	w.Insert(relay.Row{Type: relay.TypeSessionRevoked, UserIDs: []int64{5}}, grade(17))
	ws.wantClosed(t, 4001, "session revoked")
	if m := sse.next(t); m.Type != "error" || m.Code != "session_revoked" {
		t.Errorf("SSE: got %s", m.text)
	}
	wantEvents(t, other, 2)
}

func TestDeadPeerIsFoundByItsSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{PingInterval: 500 * time.Millisecond}})
	alive, dead := w.connect(t, admin), w.connect(t, staff)
	go func() { // reading answers the pings
		for {
			if _, _, err := alive.ReadMessage(); err != nil {
				return
			}
		}
	}()
	_ = dead // does not read, and so answers no ping
	w.wantMetric(t, `syncrelay_disconnects_total{reason="silent",transport="websocket"}`, 1)
	w.wantMetric(t, `syncrelay_connections{transport="websocket"}`, 1)
}

// textOf is a JSON text of about n bytes.
func textOf(n int) []byte { return []byte(`"` + strings.Repeat("x", n) + `"`) }

func TestASlowReaderDelaysNobodyAndMissesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{relay: relay.Options{RingEvents: 64}, Options: stream.Options{WriteTimeout: patience}})
	slow, slowSSE, quick := w.connect(t, cadet17), w.follow(t, cadet17), w.connect(t, cadet17)
	big := grade(17)
	big.Payload = textOf(20 << 10)
	const n = 600 // 12 MB: more than any socket buffer takes
	for id := int64(1); id <= n; id++ {
		w.Insert(big)
		wantEvents(t, quick, id)
	}
	for id := int64(1); id <= n; id++ {
		wantEvents(t, slow, id)
		wantEvents(t, slowSSE, id)
	}
}

func TestAClientThatDoesNotReadIsLetGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{WriteTimeout: 200 * time.Millisecond}})
	ws, sse := w.connect(t, admin), w.follow(t, admin)
	_ = ws.NetConn().(*net.TCPConn).SetReadBuffer(1)
	_ = sse
	big := relay.Row{Type: "audit"}
	big.Payload = textOf(900 << 10)
	for range 20 {
		w.Insert(big)
	}
	w.wantMetric(t, `syncrelay_disconnects_total{reason="slow",transport="websocket"}`, 1)
	w.wantMetric(t, `syncrelay_disconnects_total{reason="slow",transport="sse"}`, 1)
}

func TestLargePayloadsAndManyAtOnceArriveWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ws, sse := w.connect(t, admin), w.follow(t, admin)
	var rows []relay.Row
	var want []string
	for _, size := range []int{0, 10, 125 - 60, 126, 300, 4000, 4096, 16<<10 - 100, 16 << 10, 32 << 10, 65535, 65536, 65537, 900 << 10, 1, 2, 3, 40 << 10, 5} {
		payload := []byte(`{"text": "` + strings.Repeat("é", size/2) + `"}`)
		rows, want = append(rows, relay.Row{Type: "audit", Payload: payload}), append(want, string(payload))
	}
	for range 300 {
		rows, want = append(rows, relay.Row{Type: "audit", Payload: []byte(`{"n": 1}`)}), append(want, `{"n": 1}`)
	}
	w.Insert(rows...)
	for i := range want {
		for _, c := range []client{ws, sse} {
			if m := c.next(t); m.EventID != int64(i+1) || string(m.Data) != want[i] {
				t.Fatalf("event %d of %d bytes: got event %d with %d bytes", i+1, len(want[i]), m.EventID, len(m.Data))
			}
		}
	}
}

func TestRequestThatIsNoHandshakeIsToldSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	wantError(t, w.get(t, "/ws/updates/", nil), http.StatusUpgradeRequired, "bad_request")
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}
	wantError(t, w.get(t, "/ws/updates/", upgrade), http.StatusBadRequest, "bad_request")
	wantError(t, w.do(t, http.MethodPost, "http://"+w.addr+"/ws/updates/", upgrade), http.StatusMethodNotAllowed, "method_not_allowed")
}

func TestARelayThatIsNotServingClosesWith1013(t *testing.T) {
	t.Parallel()
	world := relaytest.NewWorld()
	idle := relay.New(relay.Options{Source: world.Source(), Journal: world.Journal()}) // not running
	w := newWorld(t, worldOptions{Options: stream.Options{Relay: idle}})
	w.dial(t, "/ws/updates/?token="+sign(t, admin), nil).wantClosed(t, 1013, "try again later")
	response := w.get(t, "/api/events?token="+sign(t, admin), nil)
	if response.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	wantError(t, response, http.StatusServiceUnavailable, "unavailable")
}
