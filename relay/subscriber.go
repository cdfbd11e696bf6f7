package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Sink is a transport's end of a subscriber; it may be a [Prompt] one too. Its methods are called from one
// goroutine at a time, never from the sequencer's or the committer's, and may block
// for as long as the transport's own write deadline. Push of a [Prompt] one, which
// may not, is called from the committer's too.
type Sink interface {
	// Events writes events, oldest first. live is false for events that the
	// subscriber reads from the log because it is behind the head. The slice
	// is only valid during the call. An error ends the subscriber.
	Events(events []*Event, live bool) error
	// Control writes a control message: [Established], [ReplayComplete],
	// [Failure], or whatever the transport itself handed to
	// [Subscriber.Post]. An error ends the subscriber.
	Control(m Control) error
	// End is called once when the subscriber ends for another reason than
	// [Subscriber.Close]: with the error of Events or Control, with
	// [ErrRevoked], with [ErrNewEpoch], or with [ErrNotServing] when another
	// relay has become the owner. It must not call Close itself, but see to it that it is called.
	End(cause error)
}

// Control is a message to a client that is not an event.
type Control any

// Established is a subscriber's first control message: nothing that commits
// after it can be missed.
type Established struct {
	// LastEventID is the newest event ID assigned, 0 for none.
	LastEventID int64
	Epoch       string
}

// ReplayComplete tells that a resumed subscriber, or one that asked for a
// replay, has been sent everything up to what was the head when it asked. It is
// also how one that was so slow that retention overtook it is told so.
type ReplayComplete struct {
	Requested int64
	// Count is how many events were sent for it.
	Count int64
	// LastEventID is where the cursor now stands.
	LastEventID int64
	// Truncated: some events after Requested are past retention, or of another
	// epoch. The client must refetch its state.
	Truncated bool
	// OldestEventID is the oldest event that can still be replayed, 0 for none.
	OldestEventID int64
}

// Failure answers a request that can't be met. The subscriber goes on.
type Failure struct {
	Code    string
	Message string
}

// Codes of a [Failure].
const (
	// CodeInvalidLastEventID: the ID is not a whole number, below 0 or above
	// the newest event.
	CodeInvalidLastEventID = "invalid_last_event_id"
	// CodeEpochChanged: the ID is of an earlier epoch.
	CodeEpochChanged = "epoch_changed"
)

// Errors of a subscriber.
var (
	// ErrNotServing: the relay can't take subscribers now (it is a standby,
	// has not read the log's head yet, or is draining).
	ErrNotServing = errors.New("the relay is not serving now")
	// ErrBusy: more control messages or replays are waiting for this client
	// than are kept for one.
	ErrBusy = errors.New("too many requests are waiting for this client")
	// ErrNewEpoch ends all subscribers when event IDs of before can't be compared
	// any more. One that resumes is told so.
	ErrNewEpoch = errors.New("earlier event IDs can't be compared any more")
	// ErrRevoked ends the subscribers of a user whose session was revoked.
	ErrRevoked = errors.New("session revoked")
)

// What is kept waiting for one subscriber, at most. A queue of events that
// overflows is no loss: the cursor reads the log again.
const (
	maxQueue    = 256
	maxControls = 64
	maxReplays  = 4
)

// How much one read of the log hands over at most, in events.
const readLimit = 1024

// Start says where a new subscriber begins.
type Start struct {
	// Resume: right after event After, rather than at the head.
	Resume bool
	After  int64
	// Invalid, if not empty, says why what the client asked for as its last
	// event ID is none. It starts at the head and is told.
	Invalid string
	// Asked is when it was begun to find out who the client is; see
	// [Relay.Moment]. Without it no revocation of before counts.
	Asked Moment
	// Replays, if not nil, is kept at how many replays are under way or waiting,
	// this subscriber's together with those of others that share the counter.
	Replays *atomic.Int64
	// Pace, if not nil, is called before each page of the log, of 1024 events at
	// most, that is read from the journal for a replay, and holds it back for as
	// long as it does not return. It is called anew after what could not wait.
	Pace func(context.Context) error
}

// Subscriber is one connected client: a cursor over the log. It holds no
// goroutine while there is nothing to send.
type Subscriber struct {
	relay    *Relay
	sink     Sink
	prompt   Prompt                      // the sink, if it is one
	counting *atomic.Int64               // Start.Replays
	pace     func(context.Context) error // Start.Pace

	// Guarded by the hub's lock.
	memberships []membership

	mu      sync.Mutex
	groups  []Group
	renewed []Group  // groups that the pump shall change to
	cursor  int64    // the last event that was passed: sent, or not for us
	queue   []*Event // offered by the hub and not sent yet; only while live
	owned   bool     // the queue's memory is this subscriber's, rather than the hub's
	offered int64    // the last event that the hub offered
	// live: the cursor is at the head, and the hub's offers extend the queue.
	live     bool
	controls []Control
	replays  []replay // asked for; the first is under way if replaying
	// replaying: replays[0] has begun.
	replaying bool
	pumping   bool // a pump or a pusher sees to it
	closed    bool
	idle      chan struct{} // closed when pumping becomes false; nil if nobody waits
	done      chan struct{} // closed when closed becomes true; nil if nobody waits
	nudge     chan struct{} // closed when there is something to do; nil if the pump is not held back
}

// replay is a request to send everything after an event.
type replay struct {
	after  int64
	resume bool // asked for while connecting: answered with truncated, not with an error
	target int64
	result ReplayComplete
	// journal: a part of it was read from the journal rather than the ring.
	journal bool
}

// Groups is the subscriber's present groups.
func (s *Subscriber) Groups() []Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups
}

// Post queues a control message behind those that wait already. It fails with
// [ErrBusy] if the client has let too many gather.
func (s *Subscriber) Post(m Control) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.controls) >= maxControls {
		return ErrBusy
	}
	s.controls = append(s.controls, m)
	s.wake()
	return nil
}

// Replay moves the cursor to right after event after, once the replays asked
// for before are through. The answer, [ReplayComplete] or [Failure], comes as a
// control message. It fails with [ErrBusy] if too many wait already.
func (s *Subscriber) Replay(after int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.replays) >= maxReplays {
		return ErrBusy
	}
	s.replays = append(s.replays, replay{after: after})
	s.countReplays(1)
	s.wake()
	return nil
}

// countReplays counts replays that were asked for, or have come to their end.
func (s *Subscriber) countReplays(n int) {
	s.relay.replays.Add(int64(n))
	if s.counting != nil {
		s.counting.Add(int64(n))
	}
}

// SetIdentity changes the subscriber's groups, as a renewed token asks for.
// What has not been sent yet is sent by the new groups' rule only.
func (s *Subscriber) SetIdentity(id Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewed = id.Groups(s.relay.staffRoles)
	s.wake()
}

// Close takes the subscriber off the relay and returns when its sink is not in
// use any more. A transport that wants Close to be quick makes its writes fail
// first. Closing twice is safe.
func (s *Subscriber) Close() {
	s.relay.hub.leave(s)
	s.mu.Lock()
	s.shut()
	if !s.pumping {
		s.mu.Unlock()
		return
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	<-idle // nothing starts a pump of what is closed
}

// shut marks the subscriber closed. s.mu is held.
func (s *Subscriber) shut() {
	if !s.closed {
		s.closed = true
		if s.done != nil {
			close(s.done)
		}
	}
	s.countReplays(-len(s.replays))
	s.queue, s.controls, s.replays = nil, nil, nil
	s.hurry()
}

// finish ends the subscriber from the relay's side.
func (s *Subscriber) finish(cause error) {
	s.mu.Lock()
	already := s.closed
	s.shut()
	s.mu.Unlock()
	if !already {
		go func() {
			s.relay.hub.leave(s)
			s.sendEnd(cause)
		}()
	}
}

// wake sees to it that the pump runs. s.mu is held.
func (s *Subscriber) wake() {
	s.hurry()
	if !s.pumping && !s.closed {
		s.pumping, s.owned = true, true
		go s.pump(nil)
	}
}

// offer hands over events[i], which is for one of the subscriber's groups. It
// never blocks: a subscriber that is behind will find the event in the log. It
// reports whether somebody must push to the subscriber now.
//
// Until a client is found to take its time its queue is a part of events itself,
// so that what thousands are sent at once costs none of them memory.
func (s *Subscriber) offer(events []*Event, i int) (due bool) {
	e := events[i]
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.live || s.closed || e.ID <= s.offered {
		return false // not at the head, gone, or offered already for another group
	}
	s.offered = e.ID
	n := len(s.queue)
	switch {
	case n >= maxQueue:
		s.queue, s.live = nil, false
		return false
	case !s.owned && n == 0:
		s.queue = events[i : i+1 : i+1]
	case !s.owned && i >= n && &s.queue[n-1] == &events[i-1]:
		s.queue = events[i-n : i+1 : i+1]
	default:
		s.queue = append(s.queue, e)
	}
	if s.pumping {
		return false
	}
	if s.prompt == nil {
		s.own()
		s.wake()
		return false
	}
	s.pumping = true
	return true
}

// fallBack makes the subscriber read the log again from its cursor.
func (s *Subscriber) fallBack() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live && !s.closed {
		s.queue, s.live = nil, false
		s.wake()
	}
}

// pump sends what there is to send, after what a pusher has left of its write,
// and returns when there is nothing more.
func (s *Subscriber) pump(left func() error) {
	var err error
	if left != nil {
		err = guard(left)
	}
	if err == nil {
		err = s.send()
	}
	if err == nil {
		return
	}
	s.mu.Lock()
	ended := !s.closed
	s.shut()
	s.mu.Unlock()
	if ended {
		s.relay.hub.leave(s)
		s.sendEnd(err)
	}
	s.mu.Lock()
	s.rest()
	s.mu.Unlock()
}

// rest ends the pump, under the same lock under which it was found that there
// is nothing more to send, so that whatever comes next starts a new one.
func (s *Subscriber) rest() {
	s.pumping, s.owned = false, false
	s.queue = nil
	if s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// send is the pump's loop: one thing at a time, in the order of the cases. It
// returns nil after rest, and an error if the sink failed.
func (s *Subscriber) send() error {
	var spare []*Event // the queue's memory of the last round
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.rest()
			s.mu.Unlock()
			return nil
		case s.renewed != nil:
			groups := s.renewed
			s.renewed = nil
			s.mu.Unlock()
			s.relay.hub.move(s, groups)
		case len(s.controls) > 0:
			m := s.controls[0]
			s.controls = s.controls[1:]
			s.mu.Unlock()
			if err := s.sendControl(m); err != nil {
				return err
			}
		case len(s.queue) > 0:
			events := s.queue
			s.queue = spare[:0]
			s.cursor = events[len(events)-1].ID
			s.mu.Unlock()
			if err := s.sendEvents(events, true); err != nil {
				return err
			}
			clear(events)
			spare = events
		case len(s.replays) > 0 && !s.replaying:
			answer := s.begin(s.relay.log.Extent())
			s.mu.Unlock()
			if answer != nil {
				if err := s.sendControl(answer); err != nil {
					return err
				}
			}
		case !s.live:
			cursor, groups := s.cursor, s.groups
			s.mu.Unlock()
			if err := s.catchUp(cursor, groups); err != nil {
				return err
			}
		default:
			s.rest()
			s.mu.Unlock()
			return nil
		}
	}
}

// begin starts the first replay that waits: moves the cursor, or answers why
// not. s.mu is held.
func (s *Subscriber) begin(log Extent) Control {
	r := &s.replays[0]
	answer := r.check(log)
	if answer != nil {
		s.replays = s.replays[1:]
		s.countReplays(-1)
		return answer
	}
	r.target = log.last
	r.result = ReplayComplete{Requested: r.after, OldestEventID: log.Oldest, Truncated: log.truncates(r.after)}
	s.cursor, s.queue, s.live = r.after, nil, false
	s.replaying = true
	return nil
}

// check answers a replay that can't be begun.
func (r *replay) check(log Extent) Control {
	switch {
	case r.after < 0:
		return Failure{CodeInvalidLastEventID, fmt.Sprintf("last_event_id is %d; allowed are whole numbers from 0 to the newest event, %d", r.after, log.Head)}
	case r.after > log.Head:
		return Failure{CodeInvalidLastEventID, fmt.Sprintf("last_event_id %d is above the newest event, %d: refetch your state and go on from there", r.after, log.Head)}
	case !r.resume && r.after > 0 && r.after < log.EpochAfter:
		return Failure{CodeEpochChanged, fmt.Sprintf("event %d is of an earlier epoch than %s and can't be compared: refetch your state and go on from event %d", r.after, log.Epoch, log.Head)}
	}
	return nil
}

// catchUp reads the log once from the cursor, sends what is for the subscriber,
// and joins the hub when the head is reached.
func (s *Subscriber) catchUp(cursor int64, groups []Group) error {
	page, _, ok := s.relay.log.recent(cursor, groups, readLimit)
	if !ok {
		if !s.heldBack() {
			return nil
		}
		var err error
		if page, err = s.relay.log.Read(s.ctx(), cursor, groups, readLimit); err != nil {
			return s.waitForLog(err)
		}
	}
	s.mu.Lock()
	if s.closed { // perhaps because what was read is of another epoch
		s.mu.Unlock()
		return nil
	}
	s.cursor = page.Through
	s.mu.Unlock()
	if len(page.Events) > 0 {
		if err := s.sendEvents(page.Events, false); err != nil {
			return err
		}
	}
	s.mu.Lock()
	complete := s.progress(cursor, page)
	s.mu.Unlock()
	if complete != nil {
		if err := s.sendControl(*complete); err != nil {
			return err
		}
	}
	s.relay.hub.join(s, page.Through)
	return nil
}

// heldBack waits for as long as Start.Pace holds a replay back. It returns false
// when something must be done before: what the client is to be told at once, a
// change of its groups, or its end.
func (s *Subscriber) heldBack() bool {
	if s.pace == nil {
		return true
	}
	s.mu.Lock()
	switch {
	case !s.replaying:
		s.mu.Unlock()
		return true
	case s.closed || s.renewed != nil || len(s.controls) > 0:
		s.mu.Unlock()
		return false
	}
	nudge := make(chan struct{})
	s.nudge = nudge
	s.mu.Unlock()
	err := s.pace(subscriberContext{context.Background(), nudge})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nudge = nil
	return err == nil
}

// hurry lets a pump that is held back see what there is to do. s.mu is held.
func (s *Subscriber) hurry() {
	if s.nudge != nil {
		close(s.nudge)
		s.nudge = nil
	}
}

// progress counts a page that was sent for the replay under way and returns
// what to say when that is complete. A client that fell behind by itself is told
// of what retention took before it was sent, as if it had asked. s.mu is held.
func (s *Subscriber) progress(cursor int64, page Page) *ReplayComplete {
	if !s.replaying || len(s.replays) == 0 {
		if !page.Gap {
			return nil
		}
		return &ReplayComplete{
			Requested: cursor, Count: int64(len(page.Events)), LastEventID: page.Through,
			Truncated: true, OldestEventID: s.relay.log.Extent().Oldest,
		}
	}
	r := &s.replays[0]
	r.result.Count += int64(len(page.Events))
	r.result.Truncated = r.result.Truncated || page.Gap // retention has come between
	r.journal = r.journal || page.FromJournal
	if page.Through < r.target {
		return nil
	}
	r.result.LastEventID = page.Through
	result, fromJournal := r.result, r.journal
	s.replays, s.replaying = s.replays[1:], false
	s.countReplays(-1)
	s.relay.observer.Replayed(fromJournal, result.Count)
	return &result
}

// waitForLog waits a little when the log can't be read, which heals by itself:
// the journal's database is away. The client stays connected meanwhile.
func (s *Subscriber) waitForLog(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	s.relay.report("log", err)
	timer := time.NewTimer(s.relay.retryRead)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx().Done():
	}
	return nil
}

// subscriberContext is a context that ends with its subscriber. A context of
// its own for each of many thousand idle subscribers would cost memory for
// nothing.
type subscriberContext struct {
	context.Context
	done <-chan struct{}
}

func (c subscriberContext) Done() <-chan struct{} { return c.done }

func (c subscriberContext) Err() error {
	select {
	case <-c.done:
		return context.Canceled
	default:
		return nil
	}
}

func (s *Subscriber) ctx() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done == nil {
		s.done = make(chan struct{})
		if s.closed {
			close(s.done)
		}
	}
	return subscriberContext{context.Background(), s.done}
}
