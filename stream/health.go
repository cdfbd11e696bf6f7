package stream

import (
	_ "embed"
	"net/http"

	"github.com/syncrelay/syncrelay/relay"
)

//go:embed index.html
var indexPage []byte

// serveHealth says that the process lives. It never depends on the database: a
// restart would not mend that.
func (s *Server) serveHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

type readiness struct {
	Status      string      `json:"status"`
	Phase       relay.Phase `json:"phase"`
	Reason      string      `json:"reason,omitempty"`
	LastEventID int64       `json:"last_event_id"`
}

// draining is the phase of a server that takes no more clients.
const draining relay.Phase = "draining"

// serveReady says whether the relay streams and is caught up, and whether it can
// let anybody in.
func (s *Server) serveReady(w http.ResponseWriter, _ *http.Request) {
	status := s.relay.Status()
	ready := readiness{"ready", status.Phase, status.Reason, status.Head}
	if s.isDraining() {
		ready.Phase, ready.Reason = draining, "the relay is shutting down"
	}
	reason := s.verifier.Ready()
	if ready.Phase == relay.Streaming && reason != "" {
		ready.Reason = reason
	}
	if ready.Phase == relay.Streaming && reason == "" {
		writeJSON(w, http.StatusOK, ready)
		return
	}
	ready.Status = "not ready"
	writeJSON(w, http.StatusServiceUnavailable, ready)
}

// serveIndex says what runs where. It holds nothing that depends on settings.
func serveIndex(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(indexPage) // a client that has gone needs no answer
}
