package stream

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestOnlyOffersThatCanBeTakenUpAreTakenUp(t *testing.T) {
	t.Parallel()
	for offer, want := range map[string]bool{
		"permessage-deflate":                                                         true,
		"permessage-deflate; client_max_window_bits":                                 true, // Chrome's
		"permessage-deflate; client_max_window_bits=10":                              true,
		"permessage-deflate;server_no_context_takeover ; client_no_context_takeover": true,
		"x-webkit-deflate-frame, permessage-deflate":                                 true,
		"permessage-deflate; server_max_window_bits=10, permessage-deflate":          true,
		"permessage-deflate; server_max_window_bits=10":                              false,
		"permessage-deflate; client_max_window_bits=16":                              false,
		"permessage-deflate; client_max_window_bits=":                                false,
		"permessage-deflate; server_no_context_takeover=1":                           false,
		"permessage-deflate; client_no_context_takeover; client_no_context_takeover": false,
		"permessage-deflate; something":                                              false,
		"x-webkit-deflate-frame":                                                     false,
		"":                                                                           false,
	} {
		if got := deflates(http.Header{"Sec-Websocket-Extensions": {offer}}); got != want {
			t.Errorf("%q: %v", offer, got)
		}
	}
	if deflates(http.Header{}) {
		t.Error("what was not offered is taken up")
	}
}

// TestPackersAndWhatTheyMakeAreBounded: what gets no smaller is not kept twice, what
// is too small or too large is not tried, and however many ask at once, only as
// many packers are made as there are processors.
func TestPackersAndWhatTheyMakeAreBounded(t *testing.T) {
	t.Parallel()
	d := newDeflater(prometheus.NewCounter(prometheus.CounterOpts{}))
	if most := runtime.GOMAXPROCS(0); len(d.idle) != most {
		t.Errorf("there may be %d packers, want %d", len(d.idle), most)
	}
	random := make([]byte, 1000)
	_, _ = rand.Read(random)
	for name, c := range map[string]struct {
		payload string
		packed  bool
	}{
		"short":              {strings.Repeat("a", leastPacked-200), false},
		"of some length":     {strings.Repeat("a", leastPacked), true},
		"random":             {string(random), false},
		"random as hex":      {hex.EncodeToString(random), true},
		"as long as it may":  {strings.Repeat("a", mostPacked-200), true},
		"longer than it may": {strings.Repeat("a", mostPacked), false},
	} {
		e := pushedEvent(1, `"`+c.payload+`"`)
		var wait sync.WaitGroup
		for range 20 {
			wait.Go(func() {
				b, packed := d.payload(e)
				if packed != c.packed {
					t.Errorf("%s: packed is %v", name, packed)
				}
				if packed && (len(b) >= len(e.JSON()) || cap(b) > len(e.JSON())) {
					t.Errorf("%s: %d bytes became %d of %d", name, len(e.JSON()), len(b), cap(b))
				}
			})
		}
		wait.Wait()
	}
}

// TestALargeEventIsNotCompressedByWhoMayNotWait: a push leaves it to the pump.
func TestALargeEventIsNotCompressedByWhoMayNotWait(t *testing.T) {
	t.Parallel()
	d := newDeflater(prometheus.NewCounter(prometheus.CounterOpts{}))
	<-d.slow // so that whoever asks for it waits for ever
	near, _ := pair(t)
	w := &wire{framing: newDeflateFraming(d)}
	w.take(near)
	left, err := w.push(benchLarge(1, largeBuffer+1))
	if err != nil || left == nil {
		t.Errorf("the push of a large event left nothing: %v", err)
	}
	// Nor does one wait for those who may.
	if b, packed := d.payload(pushedEvent(2, `"`+strings.Repeat("a", leastPacked)+`"`)); !packed {
		t.Errorf("%d bytes were not compressed", len(b))
	}
}
