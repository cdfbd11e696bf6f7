package stream

import (
	"context"
	"net/http"
	"time"
)

// WatchKeys watches a verifier's file of keys more often than Run does.
func WatchKeys(v *Verifier, interval time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); v.watch(ctx, interval) }()
	return func() { cancel(); <-done }
}

// FetchKeys fetches a key set once.
func FetchKeys(address string, transport http.RoundTripper) error {
	o := VerifierOptions{JWKSURL: address}
	o.complete()
	s := newKeySet(&o)
	defer s.end()
	s.client.Transport = boundedTransport{transport}
	s.fetch(context.Background(), atOnce)
	return s.problem()
}

// Waiting is how many requests wait for a question that was not asked yet.
func Waiting(s *Server) (n int) {
	s.people.mu.Lock()
	defer s.people.mu.Unlock()
	for _, q := range s.people.waiting {
		n += q.askers
	}
	return n
}
