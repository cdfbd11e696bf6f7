package stream

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/pprof"
	"net/url"
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
	pathTicket    = "/api/ticket"
)

// Server is everything that a client touches. Make one with [New]; serve its
// handlers, or let Run do so; end it with Drain.
type Server struct {
	options  Options
	relay    *relay.Relay
	verifier *Verifier
	people   *people // nil if the tokens say who users are
	tickets  *tickets
	origins  *Origins
	logger   *slog.Logger
	metrics  *metrics
	gate     *gate
	noise    *noise
	vitals   *vitals
	clock    clock

	upgrader     *websocket.Upgrader
	deflating    *websocket.Upgrader // for clients that offer permessage-deflate; nil if none is taken up
	writeBuffers sync.Pool
	// How events stand on WebSockets, compressed or not, and in event streams on
	// HTTP/1.1 and 1.0.
	packedFrames, frames, chunks, blocks *framing

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
		tickets:  newTickets(o.MaxTickets, o.TicketsPerUser),
		metrics:  newMetrics(o.Registry, o.Relay.Status),
		gate:     newGate(o.Limits, o.Registry, o.Relay.Replays),
		vitals:   &vitals{registry: o.Registry, status: o.Relay.Status},
		sessions: make(map[*session]struct{}),
		emptied:  make(chan struct{}),
		frames:   newWebSocketFraming(), chunks: newChunkFraming(), blocks: newBlockFraming(),
	}
	s.noise = newNoise(o.Logger)
	s.metrics.webSocket.noise, s.metrics.sse.noise = s.noise, s.noise
	s.upgrader = s.newUpgrader()
	if o.Compression {
		s.packedFrames = newDeflateFraming(newDeflater(s.metrics.packed))
		s.deflating = s.newUpgrader()
		s.deflating.EnableCompression = true
	}
	if o.Directory != nil {
		s.people = newPeople(o.Directory, s.failed)
	}
	return s, nil
}

// Handler serves the public listener.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	stream := methods(s.serveEvents, http.MethodGet, http.MethodHead, http.MethodOptions)
	handle(mux, pathWebSocket, methods(s.serveWebSocket, http.MethodGet))
	handle(mux, pathEvents, stream)
	handle(mux, pathTicket, methods(s.serveTicket, http.MethodPost, http.MethodOptions))
	s.health(mux)
	mux.Handle(pathClient, newClientHandler())
	if s.options.Console != nil {
		s.console(mux)
	} else {
		mux.Handle("/{$}", methods(s.options.Index.ServeHTTP, http.MethodGet, http.MethodHead))
	}
	mux.HandleFunc("/", notFound)
	return s.guard(s.bound(mux))
}

// OpsHandler serves the listener for operators.
func (s *Server) OpsHandler() http.Handler {
	mux := http.NewServeMux()
	s.health(mux)
	metrics := promhttp.HandlerFor(s.options.Registry, promhttp.HandlerOpts{})
	mux.Handle("/metrics", methods(metrics.ServeHTTP, http.MethodGet, http.MethodHead))
	mux.HandleFunc("/", notFound)
	// A profile and a trace take as long as they are asked to.
	profiles := http.NewServeMux()
	profiles.HandleFunc("/debug/pprof/", pprof.Index)
	profiles.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)
	profiles.Handle("/", s.bound(mux))
	return s.guard(s.boundBody(profiles))
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
		makeRoom()
		defer func() {
			if fault := recover(); fault != nil {
				s.failed("serve "+logged(r.URL.Path), fmt.Errorf("panic: %v\n%s", fault, debug.Stack()))
				panic(http.ErrAbortHandler) // the connection is of no more use
			}
		}()
		if s.noise.debugging() {
			s.noise.debug("request", slog.String("method", logged(r.Method)), slog.String("path", logged(r.URL.Path)))
		}
		next.ServeHTTP(w, r)
	})
}

// room is what a handshake takes of its goroutine's stack, in bytes, and some more.
const room = 9 << 10

// makeRoom has the stack grow once, now that little is on it which must be moved. By
// itself it grows twice in the midst of a handshake, which costs ten times as much
// and together a tenth of letting a client in.
//
//go:noinline
func makeRoom() byte {
	var stack [room]byte
	return at(&stack, room/2)
}

//go:noinline
func at(stack *[room]byte, i int) byte { return stack[i] }

// failed logs and counts an error of our own, where it is handled.
func (s *Server) failed(doing string, err error) {
	s.noise.fault(slog.String("component", "stream"), slog.String("doing", doing), slog.Any("error", err))
	if s.options.Observer != nil {
		s.options.Observer.Failed("stream")
	}
}

func (s *Server) refuseOrigin(w http.ResponseWriter, r *http.Request) {
	s.noise.debug("origin refused", slog.String("origin", logged(r.Header.Get("Origin"))))
	w.Header().Add("Vary", "Origin")
	writeReason(w, r, reasonOrigin)
}

// writeReason answers a request with the reason for which it is refused.
func writeReason(w http.ResponseWriter, r *http.Request, reason *Reason) {
	writeRefusal(w, r, reason, reason.Text)
}

// writeRefusal does so with more to say.
func writeRefusal(w http.ResponseWriter, r *http.Request, reason *Reason, text string) {
	if reason.Status == http.StatusServiceUnavailable || reason.Status == http.StatusTooManyRequests {
		closeAfter(w, r)                                            // whoever comes again must knock again
		w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5))) //nolint:gosec // jitter needs no secrecy
	}
	writeError(w, reason.Status, reason.Label, text)
}

// closeAfter ends the connection of a request after the answer. On HTTP/2 it would
// end the other streams of the browser, which are no part of this.
func closeAfter(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// parseQuery reads a request's query. One that can't be read is answered: a part of
// it, which might be the token, would be missing.
func parseQuery(w http.ResponseWriter, r *http.Request) (url.Values, bool) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // whose text may hold a part of a token
		writeError(w, http.StatusBadRequest, reasonBadRequest.Label, "the query can't be read: % must begin an escape such as %2B, and & separates, not ;")
	}
	return query, err == nil
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
