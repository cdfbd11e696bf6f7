package clienttest

import (
	"fmt"
	"slices"
)

// Options are some of the client's own, as client.d.ts describes them. A zero is
// left out.
type Options struct {
	URL            string `json:"url,omitempty"`
	Token          string `json:"token,omitempty"`
	After          *int64 `json:"after,omitempty"`
	Transport      string `json:"transport,omitempty"`
	Tickets        bool   `json:"tickets,omitempty"`
	StorageKey     string `json:"storageKey,omitempty"`
	MinDelay       int    `json:"minDelay,omitempty"` // in ms, as the others
	MaxDelay       int    `json:"maxDelay,omitempty"`
	ConnectTimeout int    `json:"connectTimeout,omitempty"`
	PingInterval   int    `json:"pingInterval,omitempty"`
	PongTimeout    int    `json:"pongTimeout,omitempty"`
	Silence        int    `json:"silence,omitempty"`
	WebSocketRetry int    `json:"webSocketRetry,omitempty"`

	// Tokens answers, if there is one, when the client asks for a token, and why;
	// an error makes the application's function fail.
	Tokens func(reason string) (string, error) `json:"-"`
	// Keep keeps the position in the page's sessionStorage.
	Keep bool `json:"-"`
}

// App is an application with one client, in a host.
type App struct {
	host   *Host
	name   string
	tokens func(reason string) (string, error)

	// guarded by host.mu
	events    []Event
	typed     []Event
	states    []State
	wants     []string
	refetches []string
	errors    []Error
}

// After is a place to begin.
func After(id int64) *int64 { return &id }

// Connect makes a client.
func (h *Host) Connect(o Options) *App {
	h.Helper()
	h.mu.Lock()
	a := &App{host: h, name: fmt.Sprint("app ", len(h.apps)+1), tokens: o.Tokens}
	h.apps[a.name] = a
	h.mu.Unlock()
	h.do(map[string]any{"do": "connect", "name": a.name, "options": o, "ownToken": o.Tokens == nil, "keep": o.Keep})
	return a
}

// hear takes what was said of this client. host.mu is held.
func (a *App) hear(s *said) {
	switch {
	case s.Event != nil:
		a.events = append(a.events, *s.Event)
	case s.Typed != nil:
		a.typed = append(a.typed, *s.Typed)
	case s.State != nil:
		s.State.At, s.State.Cursor, s.State.Counts = s.At, s.Cursor, s.Counts
		a.states = append(a.states, *s.State)
	case s.Refetch != "":
		a.refetches = append(a.refetches, s.Refetch)
	case s.Error != nil:
		a.errors = append(a.errors, *s.Error)
	case s.Wants != "":
		a.wants = append(a.wants, s.Wants)
		go a.answer(s.Wants)
	}
}

func (a *App) answer(reason string) {
	token, err := a.tokens(reason)
	command := map[string]any{"do": "token", "name": a.name, "token": token}
	if err != nil {
		command["fails"] = err.Error()
	}
	a.host.do(command)
}

// Events is what the client has handed out so far.
func (a *App) Events() []Event { return read(a, &a.events) }

// Typed is what it has handed to listeners of one type.
func (a *App) Typed() []Event { return read(a, &a.typed) }

// States is the states that it was in.
func (a *App) States() []State { return read(a, &a.states) }

// Wants is why it asked for tokens.
func (a *App) Wants() []string { return read(a, &a.wants) }

// Refetches is why state was to be fetched anew.
func (a *App) Refetches() []string { return read(a, &a.refetches) }

// Errors is what has gone wrong.
func (a *App) Errors() []Error { return read(a, &a.errors) }

// State is the present state.
func (a *App) State() State {
	states := a.States()
	if len(states) == 0 {
		return State{}
	}
	return states[len(states)-1]
}

func read[T any](a *App, list *[]T) []T {
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	return slices.Clone(*list)
}

// AwaitState waits until the present state is as it should be.
func (a *App) AwaitState(what string, is func(State) bool) State {
	a.host.Helper()
	var found State
	a.host.await(a.name+" is "+what, func() bool {
		if len(a.states) > 0 {
			found = a.states[len(a.states)-1]
		}
		return len(a.states) > 0 && is(found)
	})
	return found
}

// AwaitReached waits until it has been in such a state, which it may have left since:
// for states that can be over before anybody looks.
func (a *App) AwaitReached(what string, is func(State) bool) State {
	a.host.Helper()
	var found State
	a.host.await(a.name+" was "+what, func() bool {
		at := slices.IndexFunc(a.states, is)
		if at >= 0 {
			found = a.states[at]
		}
		return at >= 0
	})
	return found
}

// AwaitOpen waits until the client is connected over a transport, and has caught up.
func (a *App) AwaitOpen(transport string) State {
	a.host.Helper()
	return a.AwaitState("connected over "+transport, func(s State) bool {
		return s.Status == "open" && s.Transport == transport && !s.CatchingUp
	})
}

// AwaitClosed waits until the client has given up.
func (a *App) AwaitClosed() State {
	a.host.Helper()
	return a.AwaitState("closed", func(s State) bool { return s.Status == "closed" })
}

// AwaitEvents waits until so many events have been handed out.
func (a *App) AwaitEvents(n int) []Event {
	a.host.Helper()
	a.host.await(fmt.Sprintf("%d events", n), func() bool { return len(a.events) >= n })
	return a.Events()
}

// AwaitRefetch waits until the state was to be fetched anew so many times.
func (a *App) AwaitRefetch(n int) []string {
	a.host.Helper()
	a.host.await(fmt.Sprintf("%d notices to refetch", n), func() bool { return len(a.refetches) >= n })
	return a.Refetches()
}

// AwaitError waits until so many things have gone wrong.
func (a *App) AwaitError(n int) []Error {
	a.host.Helper()
	a.host.await(fmt.Sprintf("%d errors", n), func() bool { return len(a.errors) >= n })
	return a.Errors()
}

// AwaitWants waits until a token was asked for so many times.
func (a *App) AwaitWants(n int) []string {
	a.host.Helper()
	a.host.await(fmt.Sprintf("%d questions for a token", n), func() bool { return len(a.wants) >= n })
	return a.Wants()
}

// Replay has everything after an event handed out again.
func (a *App) Replay(after int64) {
	a.host.Helper()
	a.host.do(map[string]any{"do": "replay", "name": a.name, "after": after})
}

// Interrupt breaks the connection.
func (a *App) Interrupt() {
	a.host.Helper()
	a.host.do(map[string]any{"do": "interrupt", "name": a.name})
}

// Close ends the client.
func (a *App) Close() { a.host.Helper(); a.host.do(map[string]any{"do": "close", "name": a.name}) }

// On listens for a type.
func (a *App) On(kind string) {
	a.host.Helper()
	a.host.do(map[string]any{"do": "on", "name": a.name, "type": kind})
}

// Throwing adds a listener that throws.
func (a *App) Throwing() {
	a.host.Helper()
	a.host.do(map[string]any{"do": "throwing", "name": a.name})
}
