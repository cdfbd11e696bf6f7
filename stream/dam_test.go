package stream_test

import (
	"net"
	"sync"
	"testing"
)

// dam is a way to the relay on which, while it is closed, connections stay open
// and nothing moves.
type dam struct {
	addr string

	mu    sync.Mutex
	gate  chan struct{} // closed while bytes go through
	conns []net.Conn
}

func newDam(t testing.TB, upstream string) *dam {
	t.Helper()
	l := listen(t)
	d := &dam{addr: l.Addr().String(), gate: make(chan struct{})}
	close(d.gate)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = from.Close()
				continue
			}
			d.mu.Lock()
			d.conns = append(d.conns, from, to)
			d.mu.Unlock()
			running.Go(func() { d.flow(from, to) })
			running.Go(func() { d.flow(to, from) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		d.open()
		d.mu.Lock()
		for _, c := range d.conns {
			_ = c.Close()
		}
		d.mu.Unlock()
		running.Wait()
	})
	return d
}

func (d *dam) flow(from, to net.Conn) {
	defer func() { _, _ = from.Close(), to.Close() }()
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		d.mu.Lock()
		gate := d.gate
		d.mu.Unlock()
		<-gate
		if _, failed := to.Write(buffer[:n]); failed != nil || err != nil {
			return
		}
	}
}

func (d *dam) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gate = make(chan struct{})
}

func (d *dam) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.gate:
	default:
		close(d.gate)
	}
}
