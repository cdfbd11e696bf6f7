package relay

import "sort"

// ring is the newest part of the log in memory: every event above its floor, up
// to the head. It forgets the oldest first, by count and by bytes.
type ring struct {
	buf       []*Event // circular
	first     int      // index of the oldest
	count     int
	bytes     int
	floor     int64 // everything above it and up to the head is here
	maxEvents int
	maxBytes  int
}

func (r *ring) at(i int) *Event { return r.buf[(r.first+i)%len(r.buf)] }

// reset empties the ring; what follows it is numbered above floor.
func (r *ring) reset(floor int64) {
	clear(r.buf)
	r.first, r.count, r.bytes, r.floor = 0, 0, 0, floor
}

// append adds the next event. One event always fits, however large.
func (r *ring) append(e *Event) {
	for r.count > 0 && (r.count >= r.maxEvents || r.bytes+e.Size() > r.maxBytes) {
		r.dropOldest()
	}
	if r.count == len(r.buf) {
		r.grow()
	}
	r.buf[(r.first+r.count)%len(r.buf)] = e
	r.count++
	r.bytes += e.Size()
}

// prepend puts events before the oldest, as far as there is room: the newest of
// them. The ring's floor is right behind the last of those that it lacks.
func (r *ring) prepend(older []*Event) {
	n, bytes := len(older), r.bytes
	for n > 0 && r.count+len(older)-n < r.maxEvents && bytes+older[n-1].Size() <= r.maxBytes {
		n--
		bytes += older[n].Size()
	}
	older = older[n:]
	if len(older) == 0 {
		return
	}
	all := append(make([]*Event, 0, len(older)+r.count), older...)
	for i := range r.count {
		all = append(all, r.at(i))
	}
	r.buf, r.first, r.count, r.bytes, r.floor = all, 0, len(all), bytes, older[0].ID-1
}

func (r *ring) dropOldest() {
	oldest := r.buf[r.first]
	r.buf[r.first] = nil
	r.first = (r.first + 1) % len(r.buf)
	r.count--
	r.bytes -= oldest.Size()
	r.floor = oldest.ID
}

// grow doubles the memory for pointers, so that a quiet relay stays small.
func (r *ring) grow() {
	next := make([]*Event, min(max(2*len(r.buf), 64), r.maxEvents))
	for i := range r.count {
		next[i] = r.at(i)
	}
	r.buf, r.first = next, 0
}

// after is the position of the first event with an ID above id.
func (r *ring) after(id int64) int {
	return sort.Search(r.count, func(i int) bool { return r.at(i).ID > id })
}
