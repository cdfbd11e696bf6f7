package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// idleTimeout is how long a connection may wait for its next request.
const idleTimeout = time.Minute

// shutdownTimeout is how long requests other than streams may take to end.
const shutdownTimeout = 5 * time.Second

// Run serves the two listeners, of which ops may be nil, until ctx ends. Then it
// ends what connections are left, without spreading that (Drain before does),
// and returns nil once all have gone. It closes the listeners.
func (s *Server) Run(ctx context.Context, public, ops net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	serve := func(l net.Listener, certificate *Certificate, h http.Handler, before func()) {
		server := &http.Server{
			Handler:           h,
			ReadHeaderTimeout: s.options.Limits.HeaderTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    s.options.Limits.HeaderBytes,
			ConnContext:       withSocket,
			HTTP2: &http.HTTP2Config{
				// A peer that has gone is found as one on HTTP/1.1 is: by what it
				// does not take, or does not answer.
				SendPingTimeout:  s.options.PingInterval,
				PingTimeout:      s.options.WriteTimeout,
				WriteByteTimeout: s.options.WriteTimeout,
				// Nothing that is sent to us is long.
				MaxReceiveBufferPerConnection: 64 << 10,
				MaxReceiveBufferPerStream:     64 << 10,
			},
			ErrorLog: s.noise.errorLog(),
		}
		listen := server.Serve
		if certificate != nil {
			server.TLSConfig = certificate.config()
			listen = func(l net.Listener) error { return server.ServeTLS(l, "", "") } // HTTP/2 too
			group.Go(func() error { return certificate.Run(ctx) })
		}
		group.Go(func() error {
			if err := listen(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
		group.Go(func() error {
			<-ctx.Done()
			before()
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
			defer cancel()
			if server.Shutdown(end) != nil {
				_ = server.Close() // what is left has had its time
			}
			return nil
		})
	}
	group.Go(func() error { return s.noise.run(ctx, s.options.SummaryInterval) })
	serve(s.newSockets(public), s.options.TLS, s.Handler(), s.Close)
	if ops != nil {
		serve(ops, s.options.OpsTLS, s.OpsHandler(), func() {})
	}
	if s.people != nil {
		group.Go(func() error { s.recheck(ctx); return nil })
	}
	return group.Wait()
}

// Close ends all connections with the reason that the relay is restarting, and
// returns when they have gone. Connections that come later are refused. Closing
// twice is safe.
func (s *Server) Close() {
	for _, c := range s.startDraining() {
		go c.dismiss(reasonRestarting)
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.running.Wait()
	if s.people != nil {
		s.people.close()
	}
}

// spread is how much of the time until a drain's deadline is used for closing
// connections; the rest is for the last of them to go.
const spread = 0.8

// Drain ends the server's life in good order: from now on /readyz fails and who
// connects is told that the relay is restarting; the connections that are there
// are closed with the same reason one after the other, evenly over the time that
// ctx's deadline leaves (at once without one), so that their clients don't all
// reconnect at the same moment. Events go on being delivered to those that are
// left. It returns when all have gone, or with the error of ctx.
func (s *Server) Drain(ctx context.Context) error {
	sessions := s.startDraining()
	var each time.Duration
	if end, ok := ctx.Deadline(); ok && len(sessions) > 0 {
		each = time.Duration(spread*float64(time.Until(end))) / time.Duration(len(sessions))
	}
	s.logger.Info("draining", "connections", len(sessions))
	next := time.NewTimer(0)
	defer next.Stop()
	for begun, i := time.Now(), 0; i < len(sessions); {
		select {
		case <-next.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		// A timer may be late; what is due by now goes together.
		for ; i < len(sessions) && time.Since(begun) >= time.Duration(i)*each; i++ {
			go sessions[i].dismiss(reasonRestarting)
		}
		next.Reset(time.Until(begun.Add(time.Duration(i) * each)))
	}
	select {
	case <-s.emptied:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startDraining takes no more clients and lists those that are there.
func (s *Server) startDraining() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.draining {
		s.draining = true
		s.checkEmptied()
	}
	list := make([]*session, 0, len(s.sessions))
	for c := range s.sessions {
		list = append(list, c)
	}
	return list
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// checkEmptied notices that the last session has gone. s.mu is held.
func (s *Server) checkEmptied() {
	if s.draining && len(s.sessions) == 0 {
		select {
		case <-s.emptied:
		default:
			close(s.emptied)
		}
	}
}

// enter counts a connection in, from before its handshake until leave. It
// reports whether the server still takes any.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

func (s *Server) leave() { s.running.Done() }

// admit takes a session in, unless the server is draining.
func (s *Server) admit(c *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return false
	}
	s.sessions[c] = struct{}{}
	return true
}

func (s *Server) forget(c *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, c)
	s.checkEmptied()
}
