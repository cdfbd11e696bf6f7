package relay

import "testing"

// TestTheListOfThoseWhoAreDueIsBounded: under a load that lets it never become
// empty, each being due again as soon as it was pushed to.
func TestTheListOfThoseWhoAreDueIsBounded(t *testing.T) {
	t.Parallel()
	p := pushers{} // no goroutines: the test is the pusher
	due := make([]*Subscriber, pushBatch)
	for i := range due {
		due[i] = &Subscriber{}
	}
	p.add(due)
	for range 10_000 {
		p.add(due)
		var batch [pushBatch]*Subscriber
		if n := p.take(batch[:]); n != pushBatch || [pushBatch]*Subscriber(due) != batch {
			t.Fatalf("%d were due, want the %d in their order", n, pushBatch)
		}
	}
	if n := cap(p.due); n > 16*pushBatch {
		t.Errorf("the list of %d that are due takes %d places", 2*pushBatch, n)
	}
}

// TestAFewAreHandedTheirEventsByWhoShowsThem: no other goroutine is needed for
// that, and many are left to others.
func TestAFewAreHandedTheirEventsByWhoShowsThem(t *testing.T) {
	t.Parallel()
	h, taken := crowd(t, fewDue)
	for _, events := range batches(20, 3) {
		before := taken.Load()
		h.publish(events)
		if got := taken.Load() - before; got != int64(fewDue*len(events)) {
			t.Fatalf("%d deliveries were made when %d events were shown to %d clients", got, len(events), fewDue)
		}
	}
	h, taken = crowd(t, fewDue+1)
	h.pushers.most = 0 // nobody does what is left
	h.publish(batches(1, 1)[0])
	if got := taken.Load(); got != 0 || len(h.pushers.due) != fewDue+1 {
		t.Errorf("%d of %d clients were handed an event, %d are due", got, fewDue+1, len(h.pushers.due))
	}
	h.pushers.running++
	h.pushers.run()
	if got := taken.Load(); got != fewDue+1 {
		t.Errorf("%d of %d clients were handed an event after all", got, fewDue+1)
	}
}
