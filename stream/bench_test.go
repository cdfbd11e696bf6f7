package stream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// sinkhole is a connection that takes everything.
type sinkhole struct{ net.Conn }

func (sinkhole) Write(p []byte) (int, error)      { return len(p), nil }
func (sinkhole) SetWriteDeadline(time.Time) error { return nil }

func benchEvents(n int) []*relay.Event {
	events := make([]*relay.Event, n)
	for i := range events {
		row := relay.Row{Type: "grade_update", CadetID: 17, HasCadet: true, Payload: []byte(`{"merits": 3, "reason": "Parade"}`)}
		events[i] = relay.NewEvent(int64(i+1), &row, time.Now())
	}
	return events
}

// benchLarge are events with so many bytes of payload, which looks like an
// application's: names that repeat, and values that mostly don't.
func benchLarge(n, size int) []*relay.Event {
	events := make([]*relay.Event, n)
	for i := range events {
		payload := []byte(`{"grades":[`)
		for j := 0; len(payload) < size; j++ {
			if j > 0 {
				payload = append(payload, ',')
			}
			payload = fmt.Appendf(payload, `{"cadet_id":%d,"subject":"navigation","score":%d,"graded_by":"Lt. %x"}`, 1000+i*7919+j*104729%9000, (i*31+j*17)%101, i*2654435761+j*40503)
		}
		row := relay.Row{Type: "grade_update", Payload: append(payload, "]}"...)}
		events[i] = relay.NewEvent(int64(i+1), &row, time.Now())
	}
	return events
}

// BenchmarkWriteEvents is what writing a batch to one WebSocket costs without
// the kernel. It must not allocate.
func BenchmarkWriteEvents(b *testing.B) {
	for _, n := range []int{1, 20} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			w := &wire{Conn: sinkhole{}, framing: newWebSocketFraming()}
			w.deadline.timeout = time.Minute
			events := benchEvents(n)
			b.ReportAllocs()
			for b.Loop() {
				if err := w.writeEvents(events); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPush is what handing an event to one of many WebSockets costs, with the
// system call, on a connection that is read from. It must not allocate.
func BenchmarkPush(b *testing.B) {
	for _, n := range []int{1, 20} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			benchPush(b, newWebSocketFraming(), benchEvents(n))
		})
	}
}

func benchPush(b *testing.B, f *framing, events []*relay.Event) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		if far, err := net.Dial("tcp", l.Addr().String()); err == nil {
			_, _ = io.Copy(io.Discard, far)
		}
	}()
	near, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer near.Close()
	w := &wire{framing: f}
	w.take(near)
	w.deadline.timeout = time.Minute
	b.ReportAllocs()
	for b.Loop() {
		left, err := w.push(events)
		if left != nil { // the reader is behind
			err = left()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDeflate is what compressing an event costs, once for all clients, and
// how many bytes each of them is spared.
func BenchmarkDeflate(b *testing.B) {
	for _, size := range []int{256, 1 << 10, 4 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			d := newDeflater(prometheus.NewCounter(prometheus.CounterOpts{}))
			text := benchLarge(1, size)[0].JSON()
			b.ReportAllocs()
			var packed []byte
			for b.Loop() {
				packed = d.pack(text)
			}
			b.ReportMetric(float64(len(packed))/float64(len(text)), "packed/plain")
		})
	}
}

// BenchmarkPushDeflated is BenchmarkPush for events of 1 KiB, as they are and
// compressed before. It must not allocate.
func BenchmarkPushDeflated(b *testing.B) {
	for _, packed := range []bool{false, true} {
		b.Run(fmt.Sprintf("packed=%v", packed), func(b *testing.B) {
			f := newWebSocketFraming()
			if packed {
				f = newDeflateFraming(newDeflater(prometheus.NewCounter(prometheus.CounterOpts{})))
			}
			benchPush(b, f, benchLarge(1, 1<<10))
		})
	}
}

func benchToken(b *testing.B) (*Verifier, string) {
	b.Helper()
	secret := []byte(strings.Repeat("secret", 8))
	v, err := NewVerifier(VerifierOptions{HMACSecret: secret})
	if err != nil {
		b.Fatal(err)
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"user_id": 5, "role": "cadet", "cadet_id": 17, "exp": time.Now().Add(time.Hour).Unix(), "token_type": "access",
	}).SignedString(secret)
	if err != nil {
		b.Fatal(err)
	}
	return v, token
}

// BenchmarkVerify is what a token costs.
func BenchmarkVerify(b *testing.B) {
	v, token := benchToken(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdleWebSocket reports what an idle WebSocket costs in memory, with
// its stack and its subscriber; the other end, in the same process, is a bare
// socket.
func BenchmarkIdleWebSocket(b *testing.B) {
	v, token := benchToken(b)
	r := relaytest.New(b, relay.Options{})
	s, err := New(Options{Relay: r.Relay, Verifier: v})
	if err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	defer s.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	request := "GET /ws/updates/?token=" + token + " HTTP/1.1\r\nHost: " + address +
		"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	before := inUse()
	var conns []net.Conn
	for b.Loop() {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			b.Fatal(err)
		}
		conns = append(conns, conn)
		if _, err := io.WriteString(conn, request); err != nil {
			b.Fatal(err)
		}
		reader := bufio.NewReaderSize(conn, 256)
		response, err := http.ReadResponse(reader, nil)
		if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			b.Fatalf("%v, %v", response, err)
		}
		if _, err := reader.ReadByte(); err != nil { // connection_established
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(inUse()-before)/float64(len(conns)), "B/connection")
	for _, conn := range conns {
		_ = conn.Close()
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
