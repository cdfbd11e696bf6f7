package relay

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// taker is a client that takes everything at once.
type taker struct{ taken *atomic.Int64 }

func (taker) Control(Control) error { return nil }
func (taker) End(error)             {}

func (c taker) Events(events []*Event, _ bool) error {
	c.taken.Add(int64(len(events)))
	return nil
}

func (c taker) Push(events []*Event) (func() error, error) {
	c.taken.Add(int64(len(events)))
	return nil, nil
}

func benchRow() *Row {
	return &Row{
		ID: 1, Type: "grade_update", CadetID: 17, HasCadet: true, CreatedAt: time.Now(),
		Payload: []byte(`{"merits": 3, "reason": "Parade", "grades": {"drill": 4, "navigation": 5}}`),
	}
}

// crowd is a hub with n clients of cadet 17's, who have joined.
func crowd(tb testing.TB, n int) (h *hub, taken *atomic.Int64) {
	tb.Helper()
	r := New(Options{})
	r.log.reset(Extent{Epoch: "1"}, nil)
	r.log.serve()
	taken = &atomic.Int64{}
	for i := range n {
		id := Identity{UserID: int64(i + 1), Role: "cadet", CadetID: 17, HasCadet: true}
		s, err := r.Subscribe(id, taker{taken}, Start{})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(s.Close)
		for idle := false; !idle; runtime.Gosched() {
			s.mu.Lock()
			idle = !s.pumping
			s.mu.Unlock()
		}
	}
	return r.hub, taken
}

// publishAll offers events and waits until all n clients have them.
func publishAll(h *hub, events []*Event, n int, taken *atomic.Int64) {
	want := taken.Load() + int64(n*len(events))
	h.publish(events)
	for taken.Load() < want {
		runtime.Gosched()
	}
}

func batches(n, events int) [][]*Event {
	all := make([][]*Event, n)
	id := int64(0)
	for i := range all {
		for range events {
			id++
			all[i] = append(all[i], NewEvent(id, benchRow(), time.Time{}))
		}
	}
	return all
}

// TestDeliveryAllocatesNothingPerSubscriber: one of a thousand clients must not
// cost memory when an event, or several at once, are handed to it.
func TestDeliveryAllocatesNothingPerSubscriber(t *testing.T) {
	const clients, runs = 1000, 50
	h, taken := crowd(t, clients)
	for _, size := range []int{1, 20} {
		all := batches(2*runs+2, size)
		if size > 1 { // IDs go on
			all = all[len(all)/2:]
		}
		next := 0
		perRun := testing.AllocsPerRun(runs, func() {
			publishAll(h, all[next], clients, taken)
			next++
		})
		if perRun > clients/50 { // a few for the goroutines that push
			t.Errorf("%d events to %d clients allocated %g times", size, clients, perRun)
		}
	}
}

// BenchmarkWakeGroup is what handing events to a group costs the relay, without
// the writes.
func BenchmarkWakeGroup(b *testing.B) {
	for _, size := range []int{1, 20} {
		b.Run(fmt.Sprintf("clients=1000/events=%d", size), func(b *testing.B) {
			const clients = 1000
			h, taken := crowd(b, clients)
			id := int64(0)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				events := make([]*Event, size)
				for i := range events {
					id++
					events[i] = NewEvent(id, benchRow(), time.Time{})
				}
				b.StartTimer()
				publishAll(h, events, clients, taken)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients*size), "ns/delivery")
		})
	}
}

// BenchmarkLoneEvent is how long it takes, on a relay that was idle, from when an
// event is shown until its two clients have been handed it.
func BenchmarkLoneEvent(b *testing.B) {
	const clients = 2
	h, taken := crowd(b, clients)
	id, took := int64(0), time.Duration(0)
	for b.Loop() {
		id++
		events := []*Event{NewEvent(id, benchRow(), time.Time{})}
		time.Sleep(100 * time.Microsecond)
		begun := time.Now()
		publishAll(h, events, clients, taken)
		took += time.Since(begun)
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "ns/shown")
}

// BenchmarkQuietCrowd is what an event costs that is for one of many groups, none
// of which but one client's is told of it: it must not grow with the crowd.
func BenchmarkQuietCrowd(b *testing.B) {
	for _, groups := range []int{1, 1000, 100_000} {
		b.Run(fmt.Sprintf("groups=%d", groups), func(b *testing.B) {
			h, taken := crowd(b, 1)
			for i := range groups {
				if err := h.enter(&Subscriber{}, int64(i), []Group{CadetGroup(int64(100 + i))}, Moment{}); err != nil {
					b.Fatal(err)
				}
			}
			id := int64(0)
			b.ReportAllocs()
			for b.Loop() {
				id++
				publishAll(h, []*Event{NewEvent(id, benchRow(), time.Time{})}, 1, taken)
			}
		})
	}
}

// BenchmarkEncode is what encoding an event costs.
func BenchmarkEncode(b *testing.B) {
	row := benchRow()
	b.ReportAllocs()
	for b.Loop() {
		NewEvent(1, row, row.CreatedAt)
	}
}

// BenchmarkAssign is what taking in a row costs: its ID, its encoding, and its
// place in a batch.
func BenchmarkAssign(b *testing.B) {
	q := newSequencer(State{}, 0, batchLimits{4096, 8 << 20}, func(*Row) {})
	row := benchRow()
	at := LSN(0)
	b.ReportAllocs()
	for b.Loop() {
		at++
		q.Begin(Transaction{Commit: at, CommittedAt: row.CreatedAt})
		q.Row(row)
		q.End(at)
		if q.Full() != nil {
			q.take()
		}
	}
}

// BenchmarkReadRing is what reading a page of 1024 events from memory costs, when
// all events and when every hundredth is for the client.
func BenchmarkReadRing(b *testing.B) {
	for _, every := range []int64{1, 100} {
		b.Run(fmt.Sprintf("one_in=%d", every), func(b *testing.B) {
			l := newLog(nil, 1<<16, 64<<20)
			events := make([]*Event, 1<<16)
			for i := range events {
				row := benchRow()
				row.CadetID = int64(i) % every
				events[i] = NewEvent(int64(i+1), row, time.Time{})
			}
			l.reset(Extent{Epoch: "1", Head: int64(len(events))}, events)
			groups := []Group{UserGroup(5), RoleGroup("cadet"), Everyone, CadetGroup(0)}
			read := 0
			b.ReportAllocs()
			for cursor := int64(0); b.Loop(); {
				page, err := l.Read(context.Background(), cursor, groups, readLimit)
				if err != nil {
					b.Fatal(err)
				}
				read += len(page.Events)
				if cursor = page.Through; cursor >= int64(len(events)) {
					cursor = 0
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(read), "ns/event")
		})
	}
}
