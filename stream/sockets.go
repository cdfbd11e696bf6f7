package stream

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// sockets is a listener that lets go of connections of addresses that hold too
// many, before a byte of theirs has been read. So those who say nothing, or say
// it slowly, can't take all that the process may open, each for as long as a
// header may take. A trusted proxy is not bound by the limit of an address.
type sockets struct {
	net.Listener
	server *Server

	mu   sync.Mutex
	all  int
	byIP map[netip.Addr]int
}

func (s *Server) newSockets(l net.Listener) *sockets {
	return &sockets{Listener: l, server: s, byIP: make(map[netip.Addr]int)}
}

// spare is how many sockets more than connections there may be: for those that
// are being told that there are too many, and for requests that are no stream.
func spare(limit int) int {
	if limit < 0 {
		return NoLimit
	}
	return limit + limit/4 + 16
}

// Accept is part of [net.Listener].
func (l *sockets) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := parseHop(conn.RemoteAddr().String())
		home := household(peer)
		if !l.enter(home, l.server.options.Proxies.trusts(peer)) {
			l.server.gate.refused(refusedSocket)
			l.server.noise.count(refusedSocket)
			_ = conn.Close() // it is not served either way
			continue
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			// Where that can't be set, what is written to a dead peer fails later.
			_ = knowPeer(tcp, l.server.options.PeerTimeout)
		}
		return &socket{Conn: conn, listener: l, home: home}, nil
	}
}

func (l *sockets) enter(home netip.Addr, trusted bool) bool {
	limits := &l.server.options.Limits
	if !trusted && !l.server.gate.arrive(home) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if over(l.all, spare(limits.Connections)) || !trusted && over(l.byIP[home], spare(limits.ConnectionsPerIP)) {
		return false
	}
	l.all++
	l.byIP[home]++
	return true
}

func (l *sockets) leave(home netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	l.byIP[home]--
	if l.byIP[home] == 0 {
		delete(l.byIP, home)
	}
}

// socket is one connection of the public listener.
type socket struct {
	net.Conn
	listener *sockets
	home     netip.Addr
	asked    atomic.Bool // a whole request has come
	closed   atomic.Bool
}

// Close is part of [net.Conn].
func (c *socket) Close() error {
	if !c.closed.Swap(true) {
		c.listener.leave(c.home)
		if !c.asked.Load() {
			c.listener.server.gate.refused(refusedRequest)
			c.listener.server.noise.count(refusedRequest)
		}
	}
	return c.Conn.Close()
}

// CloseWrite lets the HTTP server say the last of what it has to say to a client
// that is still sending.
func (c *socket) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// socketKey finds a request's socket in its context.
type socketKey struct{}

// withSocket is the HTTP server's ConnContext.
func withSocket(ctx context.Context, conn net.Conn) context.Context {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	return context.WithValue(ctx, socketKey{}, conn)
}

// bound gives a request its time: what the client sends beside the header, and
// what it takes to read the answer. Streams set deadlines of their own, and what
// has to find out first who somebody is begins anew then: see knock.
func (s *Server) bound(next http.Handler) http.Handler {
	return s.boundBody(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.answerSoon(w)
		next.ServeHTTP(w, r)
	}))
}

// answerSoon gives the answer to a request its time, from now on.
func (s *Server) answerSoon(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.options.WriteTimeout)) // without it, nothing is lost
}

// boundBody gives what a client sends beside the header, which nothing here wants,
// its time.
func (s *Server) boundBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(socketKey{}).(*socket); ok {
			c.asked.Store(true)
		}
		if r.ContentLength != 0 {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.options.Limits.HeaderTimeout)) // as above
		}
		next.ServeHTTP(w, r)
	})
}
