package clienttest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// RequireVariable is the environment variable that lists, separated by commas,
// which of "node", "chromium", "npm" and "tsc" must be there: a test that misses one
// of these fails, where it is skipped otherwise.
const RequireVariable = "SYNCRELAY_TEST_REQUIRE"

// patience is how long a test waits for what must come.
const patience = time.Minute

// missing ends a test that can't run here.
func missing(t testing.TB, program, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv(RequireVariable), ","), program) {
		t.Fatalf("%s is required by %s: %s", program, RequireVariable, why)
	}
	t.Skipf("without %s this is not tested: %s", program, why)
}

// Program finds a program that a test needs.
func Program(t testing.TB, name string) (path string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name, err.Error())
	}
	return path
}

// Host is a place where the client's code runs.
type Host struct {
	testing.TB
	tell func(command []byte) error

	mu       sync.Mutex
	changed  chan struct{} // closed when something was said
	ready    bool
	apps     map[string]*App
	reported []string // faults of listeners
	broken   error
}

func newHost(t testing.TB) *Host {
	return &Host{TB: t, apps: make(map[string]*App), changed: make(chan struct{})}
}

// Event is an event as the client hands it out.
type Event struct {
	Type      string          `json:"type"`
	EventID   int64           `json:"event_id"`
	CadetID   int64           `json:"cadet_id"`
	Data      json.RawMessage `json:"data"`
	Timestamp string          `json:"timestamp"`
}

// Reason is why there is no connection.
type Reason struct {
	Code  int    `json:"code"`
	Label string `json:"label"`
	Text  string `json:"text"`
}

// State is a state of the connection.
type State struct {
	Status     string  `json:"status"`
	Transport  string  `json:"transport"`
	Attempt    int     `json:"attempt"`
	RetryAt    float64 `json:"retryAt"` // in ms since 1970
	Reason     *Reason `json:"reason"`
	CatchingUp bool    `json:"catchingUp"`
	UserID     int64   `json:"userId"`
	Role       string  `json:"role"`
	CadetID    int64   `json:"cadetId"`
	Epoch      string  `json:"epoch"`
	Reconnects int     `json:"reconnects"`
	RoundTrip  float64 `json:"roundTrip"` // in ms
	At         float64 // when the client said so, in ms since 1970
	Cursor     int64
	Counts     Counts
}

// Counts is what a client has counted.
type Counts struct {
	Received   int `json:"received"`
	Duplicates int `json:"duplicates"`
	Replayed   int `json:"replayed"`
}

// Error is what went wrong.
type Error struct {
	Message string `json:"message"`
	Code    int    `json:"code"`
	Label   string `json:"label"`
}

// said is what the driver says: one of these.
type said struct {
	Ready    bool    `json:"ready"`
	Reported string  `json:"reported"`
	Name     string  `json:"name"`
	Event    *Event  `json:"event"`
	Typed    *Event  `json:"typed"`
	State    *State  `json:"state"`
	At       float64 `json:"at"`
	Cursor   int64   `json:"cursor"`
	Counts   Counts  `json:"counts"`
	Wants    string  `json:"wants"`
	Refetch  string  `json:"refetch"`
	Error    *Error  `json:"error"`
}

// hear takes what the driver says.
func (h *Host) hear(text []byte) {
	var s said
	err := json.Unmarshal(text, &s)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.broken = fmt.Errorf("the driver said %q: %w", text, err)
	}
	h.ready = h.ready || s.Ready
	if s.Reported != "" {
		h.reported = append(h.reported, s.Reported)
	}
	if a := h.apps[s.Name]; a != nil {
		a.hear(&s)
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// fail makes every wait for something end.
func (h *Host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.broken == nil {
		h.broken = err
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// await waits until something holds, of which it is asked with h.mu held.
func (h *Host) await(what string, holds func() bool) {
	h.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		h.mu.Lock()
		broken, holding, changed := h.broken, holds(), h.changed
		h.mu.Unlock()
		switch {
		case holding:
			return
		case broken != nil:
			h.Fatalf("waited for %s: %v", what, broken)
		}
		select {
		case <-changed:
		case <-deadline.C:
			h.Fatalf("waited %s in vain for %s; %s", patience, what, h.describe())
		}
	}
}

func (h *Host) describe() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for name, a := range h.apps {
		line := fmt.Sprintf("%s has %d events, wanted tokens for %q, was to refetch for %q, errors %v", name, len(a.events), a.wants, a.refetches, a.errors)
		if len(a.states) > 0 {
			line += fmt.Sprintf(", state %+v", a.states[len(a.states)-1])
		}
		all = append(all, line)
	}
	return strings.Join(append(all, h.reported...), "; ")
}

// Reported is what listeners have thrown.
func (h *Host) Reported() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.reported)
}

func (h *Host) do(command map[string]any) {
	h.Helper()
	text, err := json.Marshal(command)
	if err != nil {
		h.Fatal(err)
	}
	if err := h.tell(text); err != nil {
		h.Fatalf("tell the driver: %v", err)
	}
}
