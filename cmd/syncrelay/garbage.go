package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// plannedHeap is for what a relay keeps on its heap beside the ring, without clients, in
// bytes. "Sizing" in configs/README.md promises that twice 25 MiB are enough for that:
// 20 for the program itself, which makes no garbage, and twice this.
const plannedHeap = 15 << 20

// usualGarbage is how much garbage there may be when it is collected, in percent of
// what is kept: Go's own default. mostGarbage is what a relay is allowed that keeps
// less than was planned for.
const (
	usualGarbage = 100
	mostGarbage  = 200
)

// gcPercent is how much garbage a relay may have that keeps so many bytes where so
// many are planned for. Twice what is planned is to be there in any case.
func gcPercent(live, planned int64) int {
	if live <= 0 {
		return mostGarbage
	}
	return int(min(max(usualGarbage*(2*planned-live)/live, usualGarbage), mostGarbage))
}

// paceGarbage lets garbage use memory that is planned for and not used yet, until it is
// told to stop: most relays keep little, in many small parts, which are looked
// through each time, and half as often so. An operator who has set GOGC has the last
// word. There is one collector in a process, so one at a time may pace it.
func paceGarbage(planned int64) (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	p := &pacer{planned: planned, before: debug.SetGCPercent(usualGarbage)}
	p.await()
	return p.stop
}

// pacer sets the share of garbage anew after each collection, and so never knows
// less than the collector does.
type pacer struct {
	planned int64
	before  int // the share

	mu      sync.Mutex
	stopped bool
}

// litter is what a pacer leaves for the collector, to hear of it when it is picked up.
// The pointer is not used: small things without one share their memory, and go
// together.
type litter struct{ _ *byte }

// await has collected called after the next collection.
func (p *pacer) await() { runtime.AddCleanup(&litter{}, (*pacer).collected, p) }

func (p *pacer) collected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	debug.SetGCPercent(gcPercent(int64(live[0].Value.Uint64()), p.planned)) //nolint:gosec // no heap is that large
	p.await()
}

func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	debug.SetGCPercent(p.before)
}
