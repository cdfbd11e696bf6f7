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

// BenchmarkWriteEvents is what writing a batch to one WebSocket costs without
// the kernel. It must not allocate.
func BenchmarkWriteEvents(b *testing.B) {
	for _, n := range []int{1, 20} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			w := &wire{Conn: sinkhole{}}
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
		if _, err := v.Verify(token); err != nil {
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
