package relay

import (
	"fmt"
	"runtime/debug"
)

// SinkPanicError is what a subscriber ends with when its sink has panicked: one
// client's misfortune, and not the relay's end.
type SinkPanicError struct {
	Fault any
	Stack []byte
}

// Error is part of error.
func (p *SinkPanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", p.Fault, p.Stack) }

// guard makes an error of a panic.
func guard(do func() error) (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = &SinkPanicError{fault, debug.Stack()}
		}
	}()
	return do()
}

// sendEvents hands events to the sink.
func (s *Subscriber) sendEvents(events []*Event, live bool) error {
	return guard(func() error { return s.sink.Events(events, live) })
}

// pushEvents hands events to the prompt sink.
func (s *Subscriber) pushEvents(events []*Event) (left func() error, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			left, err = nil, &SinkPanicError{fault, debug.Stack()}
		}
	}()
	return s.prompt.Push(events)
}

// sendControl hands a control message to the sink.
func (s *Subscriber) sendControl(m Control) error {
	return guard(func() error { return s.sink.Control(m) })
}

// sendEnd tells the sink that the subscriber has ended. A panic of its is
// counted, as nobody is left to be told.
func (s *Subscriber) sendEnd(cause error) {
	if err := guard(func() error { s.sink.End(cause); return nil }); err != nil {
		s.relay.report("sink", err)
	}
}
