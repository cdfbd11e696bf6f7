package relay

import (
	"slices"
	"sync"
)

// Prompt is what a [Sink] may be too: one whose client mostly takes what is
// written at once, as a socket with room in its buffer does.
//
// Live events then need no goroutine for each of thousands of clients: a few
// goroutines go from one to the next.
type Prompt interface {
	// Push is as Events with live set, and never blocks. If not all was taken, it
	// returns rest, which completes the write and may block as Events may. The
	// relay calls rest, on a goroutine of its own and before anything else of this
	// sink. The slice is only valid during the call of Push.
	Push(events []*Event) (rest func() error, err error)
}

// pushers hand subscribers what the hub has offered them: to those whose sink is
// prompt, one after the other from few goroutines, to others each from a
// goroutine of its own. There is no goroutine while there is nothing to do.
type pushers struct {
	most int // goroutines at once

	mu      sync.Mutex
	due     []*Subscriber // waiting, from first on
	first   int
	running int
}

// pushBatch is how many subscribers a goroutine takes at a time.
const pushBatch = 32

// add sees to it that subscribers, which it copies, are pushed to.
func (p *pushers) add(due []*Subscriber) {
	if len(due) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first > len(p.due)/2 && len(p.due)+len(due) > cap(p.due) {
		// Under a load that never lets the list become empty it would grow for ever.
		n := copy(p.due, p.due[p.first:])
		clear(p.due[n:])
		p.due, p.first = p.due[:n], 0
	}
	p.due = append(p.due, due...)
	wanted := (len(p.due) - p.first + pushBatch - 1) / pushBatch
	for p.running < min(wanted, p.most) {
		p.running++
		go p.run()
	}
}

// run pushes until nothing is due.
func (p *pushers) run() {
	var batch [pushBatch]*Subscriber
	for {
		n := p.take(batch[:])
		if n == 0 {
			return
		}
		for _, s := range batch[:n] {
			s.push()
		}
	}
}

// take moves subscribers that are due into batch. When there are none, the
// goroutine that asks has ended.
func (p *pushers) take(batch []*Subscriber) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := copy(batch, p.due[p.first:])
	clear(p.due[p.first : p.first+n])
	p.first += n
	if p.first == len(p.due) {
		p.due, p.first = p.due[:0], 0
	}
	if n == 0 {
		p.running--
	}
	return n
}

// push hands the queue to the prompt sink. What would block, and whatever else
// there is to do, is left to a pump.
func (s *Subscriber) push() {
	var left func() error
	s.mu.Lock()
	for left == nil && s.onlyQueue() {
		events := s.queue
		s.queue = nil
		s.cursor = events[len(events)-1].ID
		s.mu.Unlock()
		var err error
		if left, err = s.pushEvents(events); err != nil {
			left = func() error { return err }
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if left == nil && s.idling() {
		s.rest()
		return
	}
	s.own()
	go s.pump(left)
}

// onlyQueue reports whether there are events to send and nothing else to do.
// s.mu is held.
func (s *Subscriber) onlyQueue() bool {
	return len(s.queue) > 0 && s.live && s.renewed == nil && len(s.controls) == 0 && !s.closed
}

// idling reports whether there is nothing to do. s.mu is held.
func (s *Subscriber) idling() bool {
	return s.closed || s.live && len(s.queue) == 0 && s.renewed == nil && len(s.controls) == 0 && len(s.replays) == 0
}

// own makes the queue the subscriber's own, so that a client which takes its time
// keeps no more in memory than what is for it. s.mu is held.
func (s *Subscriber) own() {
	s.queue = slices.Clone(s.queue)
	s.owned = true
}
