package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// crowd is the load generator: many clients of one server, and what they have
// received together.
type crowd struct {
	target  *child // the server's process
	address string
	// bare: the server is a floor, which wants no token and greets nobody.
	bare bool
	sse  bool
	// consecutive: each client is sent every event there is.
	consecutive bool
	// watch, if not nil, is told of every event. It is called by many goroutines.
	watch func(c *client, id int64, text []byte, at int64) error

	buffers   *chunks
	mu        sync.Mutex
	clients   []*client
	leaving   atomic.Bool
	received  atomic.Int64 // events
	goal      atomic.Int64 // as many as are waited for
	completed atomic.Int64 // replays
	tally     atomic.Pointer[tally]
	changed   chan struct{} // something that is waited for may have come
	failed    chan struct{} // closed with the first failure
	failure   error
	once      sync.Once
}

func newCrowd(target *child, address string) *crowd {
	c := &crowd{target: target, address: address, buffers: newChunks(), changed: make(chan struct{}, 1), failed: make(chan struct{})}
	c.goal.Store(math.MaxInt64)
	return c
}

// visitor is who a client is, and from where on it wants events.
type visitor struct {
	token string
	after int64 // below 0: from the head
}

// clientsPerAddress is how many clients share one loopback address: few enough
// for the ports of an address, and for what a relay allows to one.
const clientsPerAddress = 2500

// source is the address that a client comes from: 127.0.1.1 and on.
func source(index int) *net.TCPAddr {
	n := index / clientsPerAddress
	return &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+n/250), byte(1+n%250))} //nolint:gosec // of some ten thousand clients it fits
}

// join connects n clients, so many at a time, and returns when each of them has
// been let in.
func (c *crowd) join(ctx context.Context, n, parallel int, who func(index int) visitor) error {
	c.mu.Lock()
	first := len(c.clients)
	c.clients = append(c.clients, make([]*client, n)...)
	c.mu.Unlock()
	dialing, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(parallel, n) {
		dialing.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := c.dial(ctx, first+i, who(first+i)); err != nil {
					return fmt.Errorf("client %d of %d: %w", i+1, n, err)
				}
			}
		})
	}
	return dialing.Wait()
}

// dialTimeout bounds the handshake of one client.
const dialTimeout = 20 * time.Second

// dial connects one client.
func (c *crowd) dial(ctx context.Context, index int, who visitor) error {
	dialer := net.Dialer{LocalAddr: source(index), KeepAlive: -1}
	socket, err := dialer.DialContext(ctx, "tcp", c.address)
	if err != nil {
		return err
	}
	conn := socket.(*net.TCPConn) //nolint:forcetypeassert // of the network tcp it is one
	// A client that leaves resets its connection: tens of thousands of ports that
	// wait out their minute would be missing for the next measurement.
	_ = conn.SetLinger(0)
	cl := &client{crowd: c, index: index, conn: conn, ended: make(chan struct{})}
	cl.consecutive = c.consecutive
	if who.after >= 0 {
		cl.from(who.after)
	}
	_ = conn.SetDeadline(time.Now().Add(dialTimeout))
	if c.sse {
		err = cl.openEvents(who)
	} else {
		err = cl.openWebSocket(who)
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	c.mu.Lock()
	c.clients[index] = cl
	c.mu.Unlock()
	return nil
}

// openWebSocket makes the handshake, waits for the greeting, and reads on in a
// goroutine.
func (c *client) openWebSocket(who visitor) error {
	request := make([]byte, 0, 1024)
	request = append(request, "GET /ws/updates/"...)
	request = appendResume(request, who)
	request = append(request, " HTTP/1.1\r\nHost: "...)
	request = append(request, c.crowd.address...)
	request = append(request, "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"...)
	request = appendToken(request, who)
	if _, err := c.conn.Write(append(request, "\r\n"...)); err != nil {
		return err
	}
	buffer := make([]byte, 4096)
	answer := 0
	for {
		n, err := c.conn.Read(buffer[answer:])
		if err != nil {
			return fmt.Errorf("read the answer to the handshake: %w", err)
		}
		answer += n
		if end := bytes.Index(buffer[:answer], []byte("\r\n\r\n")); end >= 0 {
			if !bytes.HasPrefix(buffer, []byte("HTTP/1.1 101 ")) {
				return fmt.Errorf("the handshake is answered with %.200q", buffer[:answer])
			}
			if err := c.feed(buffer[end+4 : answer]); err != nil {
				return err
			}
			break
		}
		if answer == len(buffer) {
			return errors.New("the answer to the handshake has no end")
		}
	}
	for !c.established && !c.crowd.bare {
		n, err := c.conn.Read(buffer)
		if err == nil {
			err = c.feed(buffer[:n])
		}
		if err != nil {
			return fmt.Errorf("wait for connection_established: %w", err)
		}
	}
	_ = c.conn.SetDeadline(time.Time{})
	go func() {
		defer close(c.ended)
		c.crowd.lost(c, pull(c.conn, c.crowd.buffers, c.feed))
	}()
	return nil
}

func appendResume(request []byte, who visitor) []byte {
	if who.after < 0 {
		return request
	}
	return strconv.AppendInt(append(request, "?last_event_id="...), who.after, 10)
}

func appendToken(request []byte, who visitor) []byte {
	if who.token == "" {
		return request
	}
	return append(append(append(request, "Authorization: Bearer "...), who.token...), "\r\n"...)
}

// lost is told that a client's connection has ended.
func (c *crowd) lost(cl *client, err error) {
	if !c.leaving.Load() {
		c.fail(fmt.Errorf("client %d: %w", cl.index+1, err))
	}
}

func (c *crowd) fail(err error) {
	c.once.Do(func() {
		c.failure = err
		close(c.failed)
	})
}

// leave closes all connections and waits until nothing more is read.
func (c *crowd) leave() {
	c.leaving.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cl := range c.clients {
		if cl != nil {
			_ = cl.conn.Close()
		}
	}
	for _, cl := range c.clients {
		if cl != nil {
			<-cl.ended
		}
	}
	c.clients = nil
}

// observe is told of each event that a client has received.
func (c *crowd) observe(cl *client, id int64, text []byte, at int64) error {
	if t := c.tally.Load(); t != nil {
		whole, err := t.add(id)
		if err != nil {
			return err
		}
		if whole {
			c.notify()
		}
	}
	if c.watch != nil {
		return c.watch(cl, id, text, at)
	}
	return nil
}

// count adds events that were received.
func (c *crowd) count(events int64) {
	if events > 0 && c.received.Add(events) >= c.goal.Load() {
		c.notify()
	}
}

func (c *crowd) notify() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// patience is how long nothing may come while something is waited for.
const patience = 60 * time.Second

// wait waits until something holds of what the clients have received.
func (c *crowd) wait(ctx context.Context, what string, holds func() bool) error {
	if holds() {
		return nil
	}
	look := time.NewTicker(patience / 60)
	defer look.Stop()
	seen, since := c.received.Load(), time.Now()
	for !holds() {
		select {
		case <-look.C:
			if now := c.received.Load(); now != seen {
				seen, since = now, time.Now()
			} else if time.Since(since) > patience {
				return fmt.Errorf("nothing came for %s while waiting for %s, after %d events", patience, what, now)
			}
		case <-c.changed:
		case <-c.failed:
			return c.failure
		case <-c.target.ended:
			return fmt.Errorf("the server has ended: %w", c.target.failure())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}

// await waits until the clients have received so many events together.
func (c *crowd) await(ctx context.Context, total int64) error {
	c.goal.Store(total)
	return c.wait(ctx, fmt.Sprintf("%d events", total), func() bool { return c.received.Load() >= total })
}

// verifyEach checks that each client has received as many events as it should
// have, and no more meanwhile.
func (c *crowd) verifyEach(want func(*client) int64) error {
	clients := c.clients
	c.leave() // from here on nobody writes to what is looked at
	for _, cl := range clients {
		if err := cl.checker.complete(want(cl)); err != nil {
			return fmt.Errorf("client %d: %w", cl.index+1, err)
		}
	}
	select {
	case <-c.failed:
		return c.failure
	default:
		return nil
	}
}

// tally counts of each event how many clients have it.
type tally struct {
	base    int64 // the event before the first
	clients int32
	of      []atomic.Int32
	whole   atomic.Int64 // events that all clients have
}

func (t *tally) add(id int64) (whole bool, err error) {
	at := id - t.base - 1
	if at < 0 || at >= int64(len(t.of)) {
		return false, fmt.Errorf("event %d is none of the %d after event %d", id, len(t.of), t.base)
	}
	if t.of[at].Add(1) == t.clients {
		t.whole.Add(1)
		return true, nil
	}
	return false, nil
}

// drive has events sent to all clients, in bursts, and keeps so many bursts on
// their way: the next is published as soon as all clients have the one that many
// before it. It returns when all clients have all events.
func (c *crowd) drive(ctx context.Context, after int64, bursts, burst, window int, publish func(ctx context.Context) error) error {
	t := &tally{base: after, clients: int32(len(c.clients)), of: make([]atomic.Int32, bursts*burst)} //nolint:gosec // some thousand clients
	c.tally.Store(t)
	defer c.tally.Store(nil)
	for n := range bursts {
		err := c.wait(ctx, "all clients to receive an event", func() bool { return int(t.whole.Load()) > (n-window)*burst || n < window })
		if err == nil {
			err = publish(ctx)
		}
		if err != nil {
			return err
		}
	}
	return c.wait(ctx, "all clients to receive the last event", func() bool { return int(t.whole.Load()) == bursts*burst })
}
