package relay

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Options are a relay's settings. The zero value of each but Source and Journal
// stands for a sane default.
type Options struct {
	Source  Source
	Journal Journal
	// StaffRoles see what concerns any cadet; see [StaffRoles] for the default.
	StaffRoles []string
	// RingEvents and RingBytes bound the log's part in memory; default 65,536
	// events and 64 MiB.
	RingEvents, RingBytes int
	// BatchEvents and BatchBytes bound what may wait for the journal; default
	// 4,096 events and 8 MiB.
	BatchEvents, BatchBytes int
	// FlushInterval is how often the slot's position is moved on; default 1 s.
	FlushInterval time.Duration
	// StallTimeout is how long the stream may bring nothing while the server's
	// log grows, before the relay connects anew; default 1 min.
	StallTimeout time.Duration
	// LateAfter is how far behind its server a relay may be, in time, before its
	// status says that it has not caught up; default 10 s.
	LateAfter time.Duration
	// Grace is how long the orderly end may take once Run's context has ended;
	// default 5 s.
	Grace time.Duration
	// TellInterval is how often it is logged how far the reading of a backlog, or of
	// what was written while no relay was streaming, has come; default 5 s.
	TellInterval time.Duration
	// Retry is the backoff between tenures that failed, by how many failed in
	// a row; default 100 ms doubling up to 10 s, with jitter.
	Retry    func(failures int) time.Duration
	Logger   *slog.Logger
	Observer Observer
}

// Observer is told what is counted. Its methods must not block.
type Observer interface {
	// Assigned: an event of this type was given an ID and is shown.
	Assigned(eventType string)
	// Replayed: a replay was completed with this many events.
	Replayed(fromJournal bool, events int64)
	// Recovered: a backlog of this many rows was read from the table.
	Recovered(rows int64)
	// Replaced: a replication slot was made in the place of one that was lost, or
	// that could not bring everything.
	Replaced()
	// NewEpoch: earlier event IDs can't be compared with later ones any more.
	NewEpoch()
	// Failed: an error was met and handled in a component.
	Failed(component string)
}

type noObserver struct{}

func (noObserver) Assigned(string)      {}
func (noObserver) Replayed(bool, int64) {}
func (noObserver) Recovered(int64)      {}
func (noObserver) Replaced()            {}
func (noObserver) NewEpoch()            {}
func (noObserver) Failed(string)        {}

// Phase is what a relay is doing.
type Phase string

// Phases lists the phases of a relay.
func Phases() []Phase {
	return []Phase{Starting, Standby, Recovering, CatchingUp, Streaming, Retrying, Stopped}
}

// The phases of a relay. Only a streaming one is ready.
const (
	Starting   Phase = "starting"
	Standby    Phase = "standby"
	Recovering Phase = "recovering" // reading a backlog
	CatchingUp Phase = "catching_up"
	Streaming  Phase = "streaming"
	Retrying   Phase = "retrying"
	Stopped    Phase = "stopped"
)

// Status is a relay at a moment.
type Status struct {
	Phase Phase
	// Reason says why the relay is not ready; empty when it is.
	Reason string
	Extent
	// Journaled is the newest event ID in the journal.
	Journaled int64
	// Received is the position up to which the stream was read, and Confirmed
	// the one up to which the server was told that its log is no longer needed.
	Received, Confirmed LSN
	// Serving: subscribers are taken, although the relay may be reconnecting
	// to its database.
	Serving bool
}

// Relay is the core of the daemon. Make one with [New], start it with Run, and
// add clients with Subscribe.
type Relay struct {
	source     Source
	journal    Journal
	staffRoles []string
	logger     *slog.Logger
	observer   Observer
	retry      func(failures int) time.Duration
	retryRead  time.Duration
	flush      time.Duration
	stall      time.Duration
	lateAfter  time.Duration
	grace      time.Duration
	tellEvery  time.Duration
	batch      batchLimits

	log     *log
	hub     *hub
	settled atomic.Bool  // it has served or stood by once
	replays atomic.Int64 // under way or waiting, of all subscribers

	mu     sync.Mutex
	status Status
	pace   pace
	seen   LSN // the furthest position that any stream has brought
	// reported is when an error was last logged by report.
	reported time.Time
}

type batchLimits struct{ events, bytes int }

// New makes a relay.
func New(o Options) *Relay {
	r := &Relay{
		source: o.Source, journal: o.Journal,
		staffRoles: StaffRoles(o.StaffRoles),
		logger:     o.Logger, observer: o.Observer,
		retry: o.Retry, retryRead: 500 * time.Millisecond,
		flush: orDefault(o.FlushInterval, time.Second),
		stall: orDefault(o.StallTimeout, time.Minute), lateAfter: orDefault(o.LateAfter, 10*time.Second),
		grace: orDefault(o.Grace, 5*time.Second), tellEvery: orDefault(o.TellInterval, 5*time.Second),
		batch:  batchLimits{orDefault(o.BatchEvents, 4096), orDefault(o.BatchBytes, 8<<20)},
		log:    newLog(o.Journal, orDefault(o.RingEvents, 1<<16), orDefault(o.RingBytes, 64<<20)),
		hub:    newHub(),
		status: Status{Phase: Starting, Reason: "the relay is starting"},
	}
	if r.logger == nil {
		r.logger = slog.New(slog.DiscardHandler)
	}
	if r.observer == nil {
		r.observer = noObserver{}
	}
	if r.retry == nil {
		r.retry = backoff
	}
	return r
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// backoff is the default of Options.Retry.
func backoff(failures int) time.Duration {
	d := min(100*time.Millisecond<<min(failures, 10), 10*time.Second)
	return d/2 + rand.N(d/2) //nolint:gosec // jitter needs no secrecy
}

// Subscribe adds a client. Its sink is told [Established] first. It fails with
// [ErrNotServing] while the relay can't say where the log's head is, or whether
// an event above it has been shown, and with [ErrRevoked] if the user's session
// was revoked since Start.Asked.
func (r *Relay) Subscribe(id Identity, sink Sink, start Start) (*Subscriber, error) {
	if !r.log.serving() {
		return nil, ErrNotServing
	}
	if start.Resume && start.After > r.log.Extent().Head && r.present() != Streaming {
		// Another relay may be the owner meanwhile, and have shown more.
		return nil, ErrNotServing
	}
	s := &Subscriber{
		relay: r, sink: sink, groups: id.Groups(r.staffRoles),
		counting: start.Replays, pace: start.Pace,
	}
	s.prompt, _ = sink.(Prompt)
	if err := r.hub.enter(s, id.UserID, s.groups, start.Asked); err != nil {
		return nil, err
	}
	if !r.log.serving() { // all others may have been dismissed meanwhile
		r.hub.leave(s)
		return nil, ErrNotServing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	x := r.log.Extent()
	s.cursor = x.Head
	s.controls = append(s.controls, Established{LastEventID: x.Head, Epoch: x.Epoch})
	switch {
	case start.Invalid != "":
		s.controls = append(s.controls, Failure{CodeInvalidLastEventID, start.Invalid})
	case start.Resume:
		s.replays = append(s.replays, replay{after: start.After, resume: true})
		s.countReplays(1)
	}
	s.wake()
	return s, nil
}

// Moment is now, as far as revocations go. Take it before it is found out who a
// client is, for Start.Asked.
func (r *Relay) Moment() Moment { return r.hub.moment() }

// Replays is how many replays and resumes are under way or waiting.
func (r *Relay) Replays() int { return int(r.replays.Load()) }

// Remembers reports whether what came after an event is all in memory, so that a
// replay of it costs the database nothing.
func (r *Relay) Remembers(after int64) bool { return r.log.remembers(after) }

// present is the phase that the relay is in, however far behind.
func (r *Relay) present() Phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Phase
}

// Status is the relay's present state. One that streams and is far behind its
// server has not caught up.
func (r *Relay) Status() Status {
	r.mu.Lock()
	s := r.status
	behind := r.pace.behind(time.Now())
	r.mu.Unlock()
	if s.Phase == Streaming && behind > r.lateAfter {
		s.Phase, s.Reason = CatchingUp, fmt.Sprintf("what was written in the last %s has not been shown yet", behind.Round(time.Second))
	}
	s.Extent = r.log.Extent()
	s.Serving = r.log.serving()
	return s
}

// reportInterval keeps a fault that many subscribers meet at once from
// becoming as many lines of the log. All are counted.
const reportInterval = time.Second

// report logs and counts an error where it is handled.
func (r *Relay) report(component string, err error) {
	r.observer.Failed(component)
	r.mu.Lock()
	due := time.Since(r.reported) >= reportInterval
	if due {
		r.reported = time.Now()
	}
	r.mu.Unlock()
	if due {
		r.logger.Error("error in "+component, "component", component, "error", err)
	}
}

// Retained tells the relay what retention has left of the log: the oldest event,
// 0 for none, and the newest that was deleted. Cursors before that are told that
// they are truncated.
func (r *Relay) Retained(oldest, deleted int64) { r.log.retain(oldest, deleted) }
