package bench

import (
	"bytes"
	"fmt"
)

// checker holds one client's stream to what it was promised: every event once,
// in ascending order.
type checker struct {
	// consecutive: the client is sent every event there is, so that none may be
	// missing between two.
	consecutive bool
	last        int64 // the newest event received, or the one after which the stream began
	known       bool  // last is an event, and the next one can be held to it
	count       int64
}

// from says that the stream begins right after an event.
func (k *checker) from(id int64) { k.last, k.known = id, true }

// event checks the next event.
func (k *checker) event(id int64) error {
	switch {
	case id == k.last:
		return fmt.Errorf("event %d was sent twice", id)
	case id < k.last:
		return fmt.Errorf("event %d came after event %d: repeated, or out of order", id, k.last)
	case k.consecutive && k.known && id != k.last+1:
		return fmt.Errorf("%d events were lost between %d and %d", id-k.last-1, k.last, id)
	}
	k.last, k.known = id, true
	k.count++
	return nil
}

// complete checks, at the end, that as many events came as were meant for the
// client. They were ascending, so that none of them was another twice.
func (k *checker) complete(want int64) error {
	switch {
	case k.count < want:
		return fmt.Errorf("%d of %d events were lost; the last that came is %d", want-k.count, want, k.last)
	case k.count > want:
		return fmt.Errorf("%d events came that were not meant for the client, which should have had %d", k.count-want, want)
	}
	return nil
}

// Where the numbers stand in what is received. Decoding all of it would make the
// clients the bottleneck.
var (
	eventIDKey     = []byte(`"event_id":`)
	lastEventIDKey = []byte(`"last_event_id":`)
	countKey       = []byte(`"count":`)
	rowKey         = []byte(`"n": `) // as jsonb writes it
)

// head is how far into an event its ID stands at most.
const head = 160

// number finds the whole number behind a key, which may be preceded by a blank.
func number(text, key []byte) (n int64, ok bool) {
	at := bytes.Index(text, key)
	if at < 0 {
		return 0, false
	}
	for _, c := range text[at+len(key):] {
		if c < '0' || c > '9' {
			break
		}
		n, ok = n*10+int64(c-'0'), true
	}
	return n, ok
}
