package main

import (
	"runtime"
	"runtime/metrics"
	"testing"

	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// TestGarbageKeepsToWhatIsPlannedFor: what is kept and the garbage are twice what is
// planned at most, or twice what is kept.
func TestGarbageKeepsToWhatIsPlannedFor(t *testing.T) {
	t.Parallel()
	const planned = 90 << 20
	for live := int64(0); live < 3*planned; live += 1 << 20 {
		percent := int64(gcPercent(live, planned))
		if percent < 100 || percent > 200 {
			t.Fatalf("with %d MiB kept: %d %%", live>>20, percent)
		}
		if whole := live + live*percent/100; whole > 2*max(live, planned) {
			t.Fatalf("with %d MiB kept there may be %d MiB, of %d that are planned for", live>>20, whole>>20, 2*planned>>20)
		}
	}
	for live, want := range map[int64]int{0: 200, planned / 2: 200, planned * 4 / 5: 150, planned: 100, 2 * planned: 100} {
		if got := gcPercent(live, planned); got != want {
			t.Errorf("with %d MiB kept: %d %%, want %d", live>>20, got, want)
		}
	}
}

// TestGarbageIsPacedByWhatIsKept. Not parallel: there is one collector of garbage.
func TestGarbageIsPacedByWhatIsKept(t *testing.T) {
	t.Setenv("GOGC", "")
	percent := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	before := percent()
	const planned = 256 << 20
	stop := paceGarbage(planned)
	runtime.GC()
	relaytest.Wait(t, "much garbage is allowed", func() bool { return percent() == mostGarbage })
	kept := make([]byte, planned)
	runtime.GC()
	relaytest.Wait(t, "the usual garbage is allowed", func() bool { return percent() == usualGarbage })
	runtime.KeepAlive(kept)
	stop()
	if now := percent(); now != before {
		t.Errorf("it is left at %d %%, and was at %d %% before", now, before)
	}
	t.Setenv("GOGC", "50")
	defer paceGarbage(planned)()
	runtime.GC()
	if now := percent(); now != before {
		t.Errorf("an operator's word has been overruled: %d %%, before %d %%", now, before)
	}
}
