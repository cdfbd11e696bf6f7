package stream_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

func limited(t testing.TB, l stream.Limits) *world {
	t.Helper()
	p, err := stream.NewProxies([]string{"127.0.0.0/8"})
	if err != nil {
		t.Fatal(err)
	}
	return newWorld(t, worldOptions{Options: stream.Options{Limits: l, Proxies: p}})
}

// from is the header that makes a request one of this address.
func from(address string) http.Header { return http.Header{"X-Forwarded-For": {address}} }

// wantRefused tries both transports from an address.
func (w *world) wantRefused(t testing.TB, address string, claims jwt.MapClaims, code string, status int, text string) {
	t.Helper()
	query := "?token=" + sign(t, claims)
	w.dial(t, "/ws/updates/"+query, from(address)).wantClosed(t, 1013, text)
	response := w.get(t, "/api/events"+query, from(address))
	if response.Header.Get("Retry-After") == "" {
		t.Errorf("%s: no Retry-After", code)
	}
	wantError(t, response, status, code)
	for _, series := range []string{
		fmt.Sprintf("syncrelay_connects_total{outcome=%q,transport=\"websocket\"}", code),
		fmt.Sprintf("syncrelay_connects_total{outcome=%q,transport=\"sse\"}", code),
	} {
		relaytest.Wait(t, series, func() bool { n, _ := w.metric(t, series); return n >= 1 })
	}
	if n, _ := w.metric(t, fmt.Sprintf("syncrelay_refusals_total{reason=%q}", code)); n < 2 {
		t.Errorf("%s: %g refusals are counted", code, n)
	}
}

// let connects on one of the transports in turn, and returns how to leave.
func (w *world) let(t testing.TB, i int, address string, claims jwt.MapClaims) (leave func()) {
	t.Helper()
	query := "?token=" + sign(t, claims)
	if i%2 == 0 {
		c := w.dial(t, "/ws/updates/"+query, from(address))
		nextOf(t, c, "connection_established")
		return func() { _ = c.Close() }
	}
	c := w.events(t, "/api/events"+query, from(address))
	nextOf(t, c, "connection_established")
	return func() { _ = c.Body.Close() }
}

func (w *world) wantConnections(t testing.TB, n int) {
	t.Helper()
	relaytest.Wait(t, fmt.Sprintf("%d connections", n), func() bool {
		ws, _ := w.metric(t, `syncrelay_connections{transport="websocket"}`)
		sse, _ := w.metric(t, `syncrelay_connections{transport="sse"}`)
		return int(ws+sse) == n
	})
}

func staffUser(id int) jwt.MapClaims { return jwt.MapClaims{"user_id": id, "role": "admin"} }

func TestConnectionsAreLimitedInAllByAddressAndByUser(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		limits  stream.Limits
		address func(i int) string
		user    func(i int) int
		other   string // address of one who is let in although the limit is reached
		code    string
		text    string
	}{
		{"in all", stream.Limits{Connections: 4}, func(i int) string { return fmt.Sprint("192.0.2.", i) }, func(i int) int { return i + 1 }, "", "too_many_connections", "too many connections"},
		{"by address", stream.Limits{ConnectionsPerIP: 4}, func(int) string { return "192.0.2.1" }, func(i int) int { return i + 1 }, "192.0.2.2", "too_many_connections_of_ip", "from this address"},
		{"by network", stream.Limits{ConnectionsPerIP: 4}, func(i int) string { return fmt.Sprint("2001:db8:1:2::", i) }, func(i int) int { return i + 1 }, "2001:db8:1:3::1", "too_many_connections_of_ip", "from this address"},
		{"by user", stream.Limits{ConnectionsPerUser: 4}, func(i int) string { return fmt.Sprint("192.0.2.", i) }, func(int) int { return 7 }, "192.0.2.1", "too_many_connections_of_user", "of this user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := limited(t, c.limits)
			var leave []func()
			for i := range 4 {
				leave = append(leave, w.let(t, i, c.address(i), staffUser(c.user(i))))
			}
			w.wantRefused(t, c.address(4), staffUser(c.user(4)), c.code, http.StatusServiceUnavailable, c.text)
			if c.other != "" {
				w.let(t, 0, c.other, staffUser(99))()
				w.wantConnections(t, 4)
			}
			for i, bye := range leave {
				bye()
				relaytest.Wait(t, "the place is free", func() bool {
					next := w.get(t, "/api/events?token="+sign(t, staffUser(c.user(4))), from(c.address(4)))
					leave[i] = func() { _ = next.Body.Close() }
					return next.StatusCode == http.StatusOK
				})
			}
		})
	}
}

func TestNewConnectionsOfAnAddressAreLimitedInTheirRate(t *testing.T) {
	t.Parallel()
	w := limited(t, stream.Limits{ConnectRatePerIP: 0.001, ConnectBurstPerIP: 4})
	for i := range 4 {
		w.let(t, i, "192.0.2.1", staffUser(1))()
	}
	w.wantRefused(t, "192.0.2.1", staffUser(1), "connecting_too_fast", http.StatusTooManyRequests, "too many new connections")
	w.let(t, 0, "192.0.2.2", staffUser(1))
}

func TestAddressesWithManyBadTokensAreToldThatInstead(t *testing.T) {
	t.Parallel()
	w := limited(t, stream.Limits{FailedAuthRatePerIP: 0.001, FailedAuthBurstPerIP: 3})
	bad := "?token=x"
	c := w.dial(t, "/ws/updates/?token="+sign(t, staffUser(1)), from("192.0.2.1"))
	nextOf(t, c, "connection_established")
	c.send(t, `{"type":"auth","token":"x"}`) // counts too
	c.wantClosed(t, 4001, "invalid token")
	w.dial(t, "/ws/updates/"+bad, from("192.0.2.1")).wantClosed(t, 4001, "invalid token")
	wantError(t, w.get(t, "/api/events"+bad, from("192.0.2.1")), http.StatusUnauthorized, "invalid_token")

	w.dial(t, "/ws/updates/"+bad, from("192.0.2.1")).wantClosed(t, 1013, "too many bad tokens")
	refused := w.get(t, "/api/events"+bad, from("192.0.2.1"))
	if refused.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	wantError(t, refused, http.StatusTooManyRequests, "too_many_failed_tokens")
	w.wantMetric(t, `syncrelay_refusals_total{reason="too_many_failed_tokens"}`, 2)
	w.let(t, 0, "192.0.2.1", staffUser(1)) // others of the address have good ones
	wantError(t, w.get(t, "/api/events"+bad, from("192.0.2.2")), http.StatusUnauthorized, "invalid_token")
}

func TestReplaysOfAUserAreLimitedInTheirRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{
		relay:   relay.Options{RingEvents: 1},
		Options: stream.Options{Limits: stream.Limits{ReplayRatePerUser: 0.001, ReplayBurstPerUser: 4}},
	})
	w.Insert(grade(17), relay.Row{Type: "notice", UserIDs: []int64{5}})
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 2 })
	first, second := w.connect(t, cadet17), w.connect(t, cadet17, "last_event_id=0")
	wantEvents(t, second, 1, 2)
	nextOf(t, second, "replay_complete")
	for i := range 4 {
		c := []*wsClient{first, second}[i%2]
		c.send(t, `{"type":"replay_request","last_event_id":0}`)
		if i == 3 { // the resume was one, too
			if m := nextOf(t, c, "error"); m.Code != "too_many_requests" {
				t.Errorf("got %s", m.text)
			}
			break
		}
		wantEvents(t, c, 1, 2)
		nextOf(t, c, "replay_complete")
	}
	// What is in memory costs the database nothing, and missing nothing is no offence.
	for i := range 10 {
		first.send(t, fmt.Sprintf(`{"type":"replay_request","last_event_id":%d}`, 1+i%2))
		if i%2 == 0 {
			wantEvents(t, first, 2)
		}
		nextOf(t, first, "replay_complete")
		late := w.follow(t, cadet17, fmt.Sprintf("last_event_id=%d", 1+i%2))
		if i%2 == 0 {
			wantEvents(t, late, 2)
		}
		nextOf(t, late, "replay_complete")
		_ = late.Body.Close()
	}
	// Coming back is no way around it, neither for one who is connected nor for
	// one who was.
	for range 2 {
		w.dial(t, "/ws/updates/?last_event_id=0&token="+sign(t, cadet17), nil).wantClosed(t, 1013, "too many replays")
		wantError(t, w.get(t, "/api/events?last_event_id=0&token="+sign(t, cadet17), nil), http.StatusServiceUnavailable, "too_many_replays")
		_, _ = first.Close(), second.Close()
		w.wantConnections(t, 0)
	}
	w.connect(t, cadet17)                    // without a replay
	w.connect(t, cadet18, "last_event_id=0") // another user
	w.wantMetric(t, `syncrelay_refusals_total{reason="too_many_replays"}`, 5)
}

// stuckReplay asks for a replay of more than sockets take, and does not read.
func (w *world) stuckReplay(t testing.TB, claims jwt.MapClaims) *wsClient {
	t.Helper()
	c := w.connect(t, claims)
	_ = c.NetConn().(*net.TCPConn).SetReadBuffer(1)
	c.send(t, `{"type":"replay_request","last_event_id":0}`)
	return c
}

func TestReplaysAtOnceAreLimitedInAllAndByUser(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limits stream.Limits
		third  jwt.MapClaims // who is refused
	}{
		"in all":  {stream.Limits{Replays: 2}, admin},
		"by user": {stream.Limits{ReplaysPerUser: 2}, cadet17},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{Options: stream.Options{Limits: c.limits}})
			big := grade(17)
			big.Payload = textOf(900 << 10)
			for range 20 {
				w.Insert(big)
			}
			relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 20 })
			stuck := []*wsClient{w.stuckReplay(t, cadet17), w.stuckReplay(t, cadet17)}
			relaytest.Wait(t, "both are under way", func() bool { return w.Replays() == 2 })
			w.dial(t, "/ws/updates/?last_event_id=0&token="+sign(t, c.third), nil).wantClosed(t, 1013, "too many replays")
			asking := w.connect(t, c.third)
			asking.send(t, `{"type":"replay_request","last_event_id":0}`)
			if m := nextOf(t, asking, "error"); m.Code != "too_many_requests" {
				t.Errorf("got %s", m.text)
			}
			_ = stuck[0].Close()
			relaytest.Wait(t, "one has ended", func() bool { return w.Replays() == 1 })
			w.connect(t, c.third, "last_event_id=19")
		})
	}
}

func TestReplaysAreSlowedForAUserWhoWantsMuchReplayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{
		relay:   relay.Options{RingEvents: 1},
		Options: stream.Options{Limits: stream.Limits{ReplayPageRatePerUser: 10, ReplayPageBurstPerUser: 1}},
	})
	w.Insert(grade(17), grade(17), grade(17))
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 3 })
	c := w.connect(t, cadet17)
	begun := time.Now()
	const replays = 6
	for range replays {
		c.send(t, `{"type":"replay_request","last_event_id":0}`)
		wantEvents(t, c, 1, 2, 3)
		nextOf(t, c, "replay_complete")
	}
	if took := time.Since(begun); took < (replays-2)*100*time.Millisecond {
		t.Errorf("%d replays took %s", replays, took)
	}
	begun = time.Now()
	wantEvents(t, w.connect(t, cadet17B, "last_event_id=0"), 1, 2, 3)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("another user waited for %s", took)
	}
}

// cadet17B is another user who sees what cadet 17 does.
var cadet17B = jwt.MapClaims{"user_id": 8, "role": "parent", "cadet_id": 17}

func TestTheLengthOfAMessageIsASetting(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Limits: stream.Limits{MessageBytes: 8192}}})
	c := w.connect(t, admin)
	c.send(t, `{"type":"ping","timestamp":"`+strings.Repeat("x", 8192-30)+`"}`)
	nextOf(t, c, "pong")
	c.send(t, `{"type":"ping","timestamp":"`+strings.Repeat("x", 8193-30)+`"}`)
	c.wantClosed(t, 1009, "8192 bytes are allowed")
}

func TestNoLimitIsNone(t *testing.T) {
	t.Parallel()
	const none = stream.NoLimit
	w := limited(t, stream.Limits{
		Connections: none, ConnectionsPerIP: none, ConnectionsPerUser: none, ConnectRatePerIP: none, FailedAuthRatePerIP: none,
		Replays: none, ReplaysPerUser: none, ReplayRatePerUser: none, ReplayPageRatePerUser: none, MessageRate: none,
	})
	for range 30 {
		w.dial(t, "/ws/updates/?token=x", from("192.0.2.1")).wantClosed(t, 4001, "invalid token")
		c := w.connect(t, admin, "last_event_id=0")
		for range 20 {
			c.send(t, `{"type":"ping"}`)
		}
		c.send(t, `{"type":"replay_request","last_event_id":0}`)
	}
	w.wantConnections(t, 30)
}

// hangsUp reads until the server has closed the connection.
func hangsUp(t testing.TB, conn net.Conn) (answer string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	all, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection was not closed: %v", err)
	}
	return string(all)
}

func (w *world) raw(t testing.TB) net.Conn { return rawTo(t, w.addr) }

func rawTo(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestRequestsThatDoNotComeInTheirTimeOrAreTooLargeAreLetGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{
		Limits: stream.Limits{HeaderTimeout: 300 * time.Millisecond, HeaderBytes: 8 << 10},
	}})
	silent, slow, large := w.raw(t), w.raw(t), w.raw(t)
	go func() { // a byte now and then
		for {
			if _, err := slow.Write([]byte("G")); err != nil {
				return
			}
			waitUntil(time.Now().Add(50 * time.Millisecond))
		}
	}()
	_, _ = io.WriteString(large, "GET /api/events HTTP/1.1\r\nHost: relay\r\nX-Large: "+strings.Repeat("x", 64<<10))
	hangsUp(t, silent)
	hangsUp(t, slow)
	if answer := hangsUp(t, large); answer != "" && !strings.HasPrefix(answer, "HTTP/1.1 431 ") {
		t.Errorf("a large header was answered with %q", answer)
	}
	w.wantMetric(t, `syncrelay_refusals_total{reason="no_request"}`, 3)
}

func TestABodyThatNobodyWantsIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Limits: stream.Limits{HeaderTimeout: 300 * time.Millisecond}}})
	for _, request := range []string{
		"GET /healthz HTTP/1.1\r\nHost: relay\r\nContent-Length: 100000\r\n\r\nx",
		"POST / HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
		"GET /api/events?token=" + sign(t, admin) + " HTTP/1.1\r\nHost: relay\r\nContent-Length: 100000\r\n\r\nx",
	} {
		conn := w.raw(t)
		_, _ = io.WriteString(conn, request)
		if answer := hangsUp(t, conn); strings.Contains(request, "/api/events") && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
			t.Errorf("a body before a stream was answered with %q", answer)
		}
	}
}

func TestAnAddressCannotTakeAllSocketsWithoutSayingAWord(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Limits: stream.Limits{ConnectionsPerIP: 4}}})
	var held []net.Conn
	for range 4 + 1 + 16 {
		held = append(held, w.raw(t))
	}
	hangsUp(t, w.raw(t))
	w.wantMetric(t, `syncrelay_refusals_total{reason="too_many_sockets"}`, 1)
	_ = held[0].Close()
	w.wantMetric(t, `syncrelay_refusals_total{reason="no_request"}`, 1)
	w.connect(t, admin)
}

func TestAReplayThatIsSlowedKeepsNobodyFromPingingAndRenewing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{
		relay:   relay.Options{RingEvents: 1},
		Options: stream.Options{Limits: stream.Limits{ReplayPageRatePerUser: 0.001, ReplayPageBurstPerUser: 1}},
	})
	w.Insert(grade(17), grade(17))
	relaytest.Wait(t, "the events are assigned", func() bool { return w.Status().Head == 2 })
	c := w.connect(t, cadet17, "last_event_id=0")
	wantEvents(t, c, 1, 2)
	nextOf(t, c, "replay_complete")
	c.send(t, `{"type":"replay_request","last_event_id":0}`) // for which there is no page until long after this test
	relaytest.Wait(t, "the replay waits", func() bool { return w.Replays() == 1 })
	for range 3 {
		c.send(t, `{"type":"ping","timestamp":1}`)
		nextOf(t, c, "pong")
		c.send(t, `{"type":"auth","token":"`+sign(t, cadet17)+`"}`)
		if m := nextOf(t, c, "connection_established"); !m.Renewed {
			t.Errorf("got %s", m.text)
		}
	}
	if w.Replays() != 1 {
		t.Error("the replay is not waiting any more")
	}
}
