package outbox_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
)

// benchTenure makes a tenure of the journal of a database of its own.
func benchTenure(b *testing.B) (*world, *outbox.Journal, relay.Tenure) {
	b.Helper()
	w := newWorld(b)
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(journal.Close)
	tenure, err := journal.Acquire(b.Context(), func(string) {})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(tenure.Close)
	return w, journal, tenure
}

// benchBatch makes events of grades for many cadets, and every tenth for a user.
func benchBatch(after int64, n int) *relay.Batch {
	batch := &relay.Batch{}
	for i := range n {
		id := after + int64(i) + 1
		row := relay.Row{ID: id, Type: "grade_update", Payload: []byte(`{"merits": 3, "reason": "Parade"}`), CreatedAt: time.Unix(1_700_000_000, id)}
		if i%10 == 0 {
			row.UserIDs = []int64{id%1000 + 1}
		} else {
			row.CadetID, row.HasCadet = id%1000+1, true
		}
		batch.Events = append(batch.Events, relay.NewEvent(id, &row, row.CreatedAt))
	}
	batch.High = relay.Position{Commit: relay.LSN(after + int64(n))}
	batch.Confirm = batch.High.Commit
	return batch
}

// BenchmarkJournalAppend is what journaling a batch costs, with the server's part.
func BenchmarkJournalAppend(b *testing.B) {
	for _, n := range []int{1, 100, 4096} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			_, _, tenure := benchTenure(b)
			after := int64(0)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				batch := benchBatch(after, n)
				after += int64(n)
				b.StartTimer()
				if err := tenure.Append(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkJournalRead is what reading a page of a client's events from the
// journal costs, one in ten of all being for it.
func BenchmarkJournalRead(b *testing.B) {
	w, journal, tenure := benchTenure(b)
	const rows = 20_000
	w.exec(`INSERT INTO sync_events (event_type, cadet_id, payload) SELECT 'grade_update', n % 10 + 1, '{"merits": 3}' FROM generate_series(1, $1::int) n`, rows)
	w.exec(`INSERT INTO syncrelay.journal (event_id, row_id, created_at, cadet_id, staff) SELECT id, id, created_at, cadet_id, true FROM sync_events`)
	w.exec(`UPDATE syncrelay.state SET last_event_id = $1`, rows)
	w.exec(`ANALYZE syncrelay.journal`)
	w.exec(`ANALYZE sync_events`)
	_ = tenure
	groups := []relay.Group{relay.UserGroup(5), relay.RoleGroup("cadet"), relay.Everyone, relay.CadetGroup(3)}
	b.ReportAllocs()
	for b.Loop() {
		page, err := journal.Read(b.Context(), "", 0, rows, groups, 1024)
		if err != nil || len(page.Events) != 1024 {
			b.Fatalf("%d events, %v", len(page.Events), err)
		}
	}
	b.ReportMetric(float64(b.N*1024)/b.Elapsed().Seconds(), "events/s")
}
