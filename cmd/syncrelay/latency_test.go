package main

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// BenchmarkCommitToClient measures the time from the return of a COMMIT to the
// receipt of its event, at 1,000 rows a second, over loopback, beside Postgres and
// the writer on the same machine. To print median and 99 % in milliseconds:
//
//	go test -run '^$' -bench CommitToClient -benchtime 5000x ./cmd/syncrelay
func BenchmarkCommitToClient(b *testing.B) {
	for _, transport := range []string{overWebSocket, overSSE} {
		b.Run(transport, func(b *testing.B) {
			p := newProduct(b)
			f := follow(b, transport, p.address(), staffToken(b), -1)
			conn, err := pgx.Connect(b.Context(), p.url)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = conn.Close(b.Context()) }()
			committed := make([]time.Time, b.N)
			b.ResetTimer()
			next := time.Now()
			for i := range b.N {
				_, err := conn.Exec(b.Context(), `INSERT INTO sync_events (event_type, cadet_id, payload) VALUES ('grade_update', $1, '{"merits": 3}')`, i%100)
				if err != nil {
					b.Fatal(err)
				}
				committed[i] = time.Now()
				next = next.Add(time.Millisecond)
				time.Sleep(time.Until(next))
			}
			events := f.await(b, b.N)
			b.StopTimer()
			latencies := make([]time.Duration, b.N)
			for i, e := range events {
				// A client can have an event before the writer's own COMMIT returns.
				latencies[i] = max(0, e.received.Sub(committed[i]))
			}
			slices.Sort(latencies)
			at := func(percent int) float64 {
				return float64(latencies[(b.N-1)*percent/100].Microseconds()) / 1000
			}
			b.ReportMetric(at(50), "median-ms")
			b.ReportMetric(at(99), "p99-ms")
			b.ReportMetric(0, "ns/op")
			b.Logf("%s: %d rows, median %.3f ms, 99 %% %.3f ms", transport, b.N, at(50), at(99))
		})
	}
}
