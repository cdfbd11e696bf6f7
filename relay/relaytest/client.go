package relaytest

import (
	"slices"
	"sync"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
)

// Client is a [relay.Sink] that keeps what it is sent. Those of staff are
// prompt sinks: see [Prompt].
type Client struct {
	*relay.Subscriber

	mu       sync.Mutex
	events   []int64
	live     int
	controls []relay.Control
	ended    error
	gate     chan struct{} // closed while writes go through
}

// Connect subscribes a client.
func Connect(t testing.TB, r *relay.Relay, id relay.Identity, start relay.Start) *Client {
	t.Helper()
	c := &Client{gate: make(chan struct{})}
	close(c.gate)
	var sink relay.Sink = c
	if !id.HasCadet {
		sink = Prompt{c}
	}
	sub, err := r.Subscribe(id, sink, start)
	if err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	c.Subscriber = sub
	t.Cleanup(func() { c.Unblock(); sub.Close() })
	return c
}

// Block makes the client's writes wait, as those to a client that does not read.
func (c *Client) Block() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gate = make(chan struct{})
}

// Unblock lets writes go through again.
func (c *Client) Unblock() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.gate:
	default:
		close(c.gate)
	}
}

func (c *Client) pass() {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	<-gate
}

// Events is part of [relay.Sink].
func (c *Client) Events(events []*relay.Event, live bool) error {
	c.pass()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range events {
		c.events = append(c.events, e.ID)
	}
	if live {
		c.live += len(events)
	}
	return nil
}

// Control is part of [relay.Sink].
func (c *Client) Control(m relay.Control) error {
	c.pass()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.controls = append(c.controls, m)
	return nil
}

// End is part of [relay.Sink].
func (c *Client) End(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = cause
}

// Got is the IDs of the events that were sent, in the order of sending.
func (c *Client) Got() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.events)
}

// Live is how many of them came through the queue rather than from the log.
func (c *Client) Live() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

// Controls is the control messages that were sent.
func (c *Client) Controls() []relay.Control {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.controls)
}

// Ended is the cause with which the relay ended the subscriber.
func (c *Client) Ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// Last is the last control message of a type.
func Last[T relay.Control](c *Client) (last T, ok bool) {
	for _, m := range c.Controls() {
		if is, match := m.(T); match {
			last, ok = is, true
		}
	}
	return last, ok
}

// Prompt makes a sink a prompt one: of several events it takes the first at once,
// and leaves the others. A [Client] that is blocked takes none.
type Prompt struct{ relay.Sink }

// Push is part of [relay.Prompt].
func (p Prompt) Push(events []*relay.Event) (left func() error, err error) {
	n := 1
	if c, ok := p.Sink.(*Client); ok && c.blocked() {
		n = 0
	}
	if n > 0 {
		if err := p.Events(events[:n], true); err != nil {
			return nil, err
		}
	}
	if later := slices.Clone(events[n:]); len(later) > 0 {
		left = func() error { return p.Events(later, true) }
	}
	return left, nil
}

func (c *Client) blocked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.gate:
		return false
	default:
		return true
	}
}
