package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// bareServer is the floor of fan-out, connections and memory: gorilla
// connections and a prepared frame, nothing else. It checks no token, reads
// nothing, greets nobody, and keeps no goroutine for a connection.
type bareServer struct {
	upgrader websocket.Upgrader
	mu       sync.Mutex
	conns    []*websocket.Conn
	come     sync.Cond // on mu: there is one more
	last     int64     // the newest event
}

// The read buffer of a bare connection: small, as nothing is read. With none
// given gorilla keeps the HTTP server's, of 4 KiB.
const bareReadBuffer = 128

func (s *bareServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the upgrader has answered
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, conn)
	s.come.Broadcast()
}

// broadcast sends events to all connections, one write for each, once so many
// are there: a client knows that it is connected before the server has noted it.
func (s *bareServer) broadcast(events, connections int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) < connections {
		s.come.Wait()
	}
	for range events {
		s.last++
		frame, err := websocket.NewPreparedMessage(websocket.TextMessage, bareEvent(s.last))
		if err != nil {
			return fmt.Errorf("prepare a frame: %w", err)
		}
		for _, conn := range s.conns {
			if err := conn.WritePreparedMessage(frame); err != nil {
				return fmt.Errorf("write a frame: %w", err)
			}
		}
	}
	return nil
}

// bareBase makes the floor's event IDs as long as the relay's.
const bareBase = 1_700_000_000_000_000

// bareEvent is an event as the relay writes those of the fan-out.
func bareEvent(id int64) []byte {
	b := append([]byte(`{"type":"`), fanoutType...)
	b = append(b, `","event_id":`...)
	b = strconv.AppendInt(b, id, 10)
	b = append(b, `,"data":`...)
	b = append(b, fanoutPayload...)
	b = append(b, `,"timestamp":"`...)
	b = time.Now().UTC().AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
	return append(b, `"}`...)
}

// runServer serves, and does what it is told on its input, until that ends:
// "send N M" broadcasts N events to M connections, "tidy" collects the garbage and
// answers "tidy".
func runServer(ctx context.Context, in io.Reader, out io.Writer) error {
	s := &bareServer{last: bareBase, upgrader: websocket.Upgrader{
		ReadBufferSize: bareReadBuffer, WriteBufferPool: &sync.Pool{}, CheckOrigin: func(*http.Request) bool { return true },
	}}
	s.come.L = &s.mu
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: dialTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	fmt.Fprintln(out, l.Addr())
	obeyed := make(chan error, 1)
	go func() { obeyed <- s.obey(in, out) }()
	select {
	case err = <-obeyed:
	case <-ctx.Done():
	}
	if closeErr := server.Close(); err == nil {
		err = closeErr
	}
	if serveErr := <-served; err == nil && !errors.Is(serveErr, http.ErrServerClosed) {
		err = serveErr
	}
	return err
}

func (s *bareServer) obey(in io.Reader, out io.Writer) error {
	orders := bufio.NewScanner(in)
	for orders.Scan() {
		var events, connections int
		n, _ := fmt.Sscanf(orders.Text(), "send %d %d", &events, &connections)
		switch {
		case n == 2:
			if err := s.broadcast(events, connections); err != nil {
				return err
			}
		case orders.Text() == "tidy":
			runtime.GC()
			fmt.Fprintln(out, "tidy")
		default:
			return fmt.Errorf("the order %q is not understood", orders.Text())
		}
	}
	return orders.Err()
}

// bare is a running bareServer, seen from the bench.
type bare struct {
	*child
	address string
}

func (b *bench) startBare(ctx context.Context) (*bare, error) {
	c, err := b.spawn("the floor", b.environ, false, "bench", "floor", floorServer)
	if err != nil {
		return nil, err
	}
	address, err := c.line(ctx)
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return &bare{c, address}, nil
}

// send has events sent to all of so many connections.
func (f *bare) send(events, connections int) error {
	return f.tell(fmt.Sprintf("send %d %d", events, connections))
}

// tidy has the floor collect its garbage.
func (f *bare) tidy(ctx context.Context) error {
	if err := f.tell("tidy"); err != nil {
		return err
	}
	_, err := f.line(ctx)
	return err
}
