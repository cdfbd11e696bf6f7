package stream

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/syncrelay/syncrelay/relay"
)

// The public addresses.
const (
	pathWebSocket = "/ws/updates/"
	pathEvents    = "/api/events"
)

// Server is everything that a client touches. Make one with [New]; serve its
// handlers, or let Run do so; end it with Drain.
type Server struct {
	options  Options
	relay    *relay.Relay
	verifier *Verifier
	origins  *Origins
	logger   *slog.Logger
	metrics  *metrics

	upgrader     *websocket.Upgrader
	writeBuffers sync.Pool

	mu       sync.Mutex
	sessions map[*session]struct{}
	draining bool
	closed   bool           // no further connection may begin
	emptied  chan struct{}  // closed when draining and the last session has gone
	running  sync.WaitGroup // connections, those that are being refused too
}

// New makes a server.
func New(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Server{
		options: o, relay: o.Relay, verifier: o.Verifier, origins: o.Origins, logger: o.Logger,
		metrics:  newMetrics(o.Registry, o.Relay.Status),
		sessions: make(map[*session]struct{}),
		emptied:  make(chan struct{}),
	}
	s.upgrader = s.newUpgrader()
	return s, nil
}

// Handler serves the public listener.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	stream := methods(s.serveEvents, http.MethodGet, http.MethodHead, http.MethodOptions)
	handle(mux, pathWebSocket, methods(s.serveWebSocket, http.MethodGet))
	handle(mux, pathEvents, stream)
	s.health(mux)
	mux.Handle("/{$}", methods(s.options.Index.ServeHTTP, http.MethodGet, http.MethodHead))
	mux.HandleFunc("/", notFound)
	return s.guard(mux)
}

// OpsHandler serves the listener for operators.
func (s *Server) OpsHandler() http.Handler {
	mux := http.NewServeMux()
	s.health(mux)
	metrics := promhttp.HandlerFor(s.options.Registry, promhttp.HandlerOpts{})
	mux.Handle("/metrics", methods(metrics.ServeHTTP, http.MethodGet, http.MethodHead))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/", notFound)
	return s.guard(mux)
}

func (s *Server) health(mux *http.ServeMux) {
	handle(mux, "/healthz", methods(s.serveHealth, http.MethodGet, http.MethodHead))
	handle(mux, "/readyz", methods(s.serveReady, http.MethodGet, http.MethodHead))
}

// handle serves a path with and without a last slash.
func handle(mux *http.ServeMux, path string, h http.Handler) {
	path = strings.TrimSuffix(path, "/")
	mux.Handle(path, h)
	mux.Handle(path+"/{$}", h)
}

// methods refuses all others.
func methods(serve http.HandlerFunc, allowed ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, method := range allowed {
			if r.Method == method {
				serve(w, r)
				return
			}
		}
		list := strings.Join(allowed, ", ")
		w.Header().Set("Allow", list)
		writeError(w, http.StatusMethodNotAllowed, "method_not_allowed", "allowed here: "+list)
	})
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	writeError(w, http.StatusNotFound, "not_found", "nothing is served here; see / for what is")
}

// guard logs requests, by path only as a query may hold a token, and keeps a
// fault in one from becoming more than that one's.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if fault := recover(); fault != nil {
				s.failed("serve "+quote(r.URL.Path), fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
				panic(http.ErrAbortHandler) // the connection is of no more use
			}
		}()
		s.logger.Debug("request", slog.String("method", quote(r.Method)), slog.String("path", quote(r.URL.Path)))
		next.ServeHTTP(w, r)
	})
}

// failed logs and counts an error of our own, where it is handled.
func (s *Server) failed(doing string, err error) {
	s.logger.Error("error in stream", slog.String("component", "stream"), slog.String("doing", doing), slog.Any("error", err))
	if s.options.Observer != nil {
		s.options.Observer.Failed("stream")
	}
}

func (s *Server) refuseOrigin(w http.ResponseWriter, r *http.Request) {
	s.logger.Debug("origin refused", slog.String("origin", quote(r.Header.Get("Origin"))))
	w.Header().Add("Vary", "Origin")
	writeReason(w, reasonOrigin)
}

// writeReason answers a request with the reason for which it is refused.
func writeReason(w http.ResponseWriter, reason *Reason) {
	if reason.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5))) //nolint:gosec // jitter needs no secrecy
	}
	writeError(w, reason.Status, reason.Label, reason.Text)
}

// writeError answers with an error as JSON.
func writeError(w http.ResponseWriter, status int, code, message string) {
	writeJSON(w, status, errorMessage{relay.TypeError, code, message})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil { // texts and numbers only: it can't fail
		status, text = http.StatusInternalServerError, []byte("{}")
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n')) // a client that has gone needs no answer
}
