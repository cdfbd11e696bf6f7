package stream_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
	"github.com/syncrelay/syncrelay/stream/clienttest"
)

// anyOrigin lets the test's pages in, which come from a site of their own.
func anyOrigin(t testing.TB) worldOptions {
	t.Helper()
	origins, err := stream.NewOrigins([]string{"*"})
	if err != nil {
		t.Fatal(err)
	}
	return worldOptions{Options: stream.Options{Origins: origins}}
}

func (w *world) url() string { return "http://" + w.addr }

// inEachHost tests a client in Node and in Chromium.
func inEachHost(t *testing.T, test func(t *testing.T, w *world, h *clienttest.Host)) {
	for name, start := range map[string]func(testing.TB, string) *clienttest.Host{"node": clienttest.NewNode, "chromium": clienttest.NewPage} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, anyOrigin(t))
			test(t, w, start(t, w.url()))
		})
	}
}

// inNode tests a client in Node only: what it does depends on nothing of a
// browser's.
func inNode(t *testing.T) (*world, *clienttest.Host) {
	w := newWorld(t, anyOrigin(t))
	return w, clienttest.NewNode(t, w.url())
}

func ids(events []clienttest.Event) []int64 {
	list := make([]int64, len(events))
	for i, e := range events {
		list[i] = e.EventID
	}
	return list
}

func upTo(n int64) []int64 {
	list := make([]int64, n)
	for i := range list {
		list[i] = int64(i + 1)
	}
	return list
}

// bothTransports are those of the contract.
var bothTransports = []string{"websocket", "sse"}

func TestClientHandsOutEachEventOnceInOrderThoughItIsInterrupted(t *testing.T) {
	t.Parallel()
	inEachHost(t, func(t *testing.T, w *world, h *clienttest.Host) {
		const n = 400
		var apps []*clienttest.App
		for _, transport := range bothTransports {
			a := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), Transport: transport, MinDelay: 20, MaxDelay: 50})
			a.On("grade_update")
			if s := a.AwaitOpen(transport); s.UserID != 5 || s.Role != "cadet" || s.CadetID != 17 || s.Epoch == "" {
				t.Errorf("the state is %+v, want who we are", s)
			}
			apps = append(apps, a)
		}
		for i := range n {
			kind := "grade_update"
			if i%4 == 3 {
				kind = "a type of the application's"
			}
			w.Insert(relay.Row{Type: kind, CadetID: 17, HasCadet: true, Payload: []byte(`{}`)}, grade(18)) // every second is not for us
			if i%80 == 40 {
				for _, a := range apps {
					a.AwaitEvents(i / 2)
					a.AwaitState("back", func(s clienttest.State) bool { return s.Status == "open" && s.Reconnects == i/80 })
					a.Interrupt()
				}
			}
		}
		for _, a := range apps {
			events := a.AwaitEvents(n)
			want, typed := []int64{}, []int64{}
			for i := range int64(n) {
				want = append(want, 2*i+1)
				if i%4 != 3 {
					typed = append(typed, 2*i+1)
				}
			}
			if got := ids(events); !slices.Equal(got, want) {
				t.Errorf("handed out were %v", got)
			}
			if got := ids(a.Typed()); !slices.Equal(got, typed) {
				t.Errorf("to the listener of one type were handed %v", got)
			}
			a.AwaitState("back", func(s clienttest.State) bool { return s.Status == "open" && s.Reconnects == 5 })
			if len(a.Errors()) > 0 || len(a.Refetches()) > 0 {
				t.Errorf("errors %v, refetches %v", a.Errors(), a.Refetches())
			}
		}
	})
}

func TestClientReplaysOnRequestAndGoesOn(t *testing.T) {
	t.Parallel()
	inEachHost(t, func(t *testing.T, w *world, h *clienttest.Host) {
		for range 20 {
			w.Insert(grade(17))
		}
		relaytest.Wait(t, "20 events", func() bool { return w.Status().Head == 20 })
		for _, transport := range bothTransports {
			a := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), Transport: transport, After: clienttest.After(15)})
			a.AwaitEvents(5)
			a.AwaitOpen(transport)
			a.Replay(10)
			a.AwaitEvents(15)
			a.AwaitOpen(transport)
			a.Replay(19)
			events := a.AwaitEvents(16)
			want := slices.Concat(upTo(20)[15:], upTo(20)[10:], upTo(20)[19:])
			if got := ids(events); !slices.Equal(got, want) {
				t.Errorf("over %s were handed out %v, want %v", transport, got, want)
			}
		}
		ws := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17)})
		ws.AwaitOpen("websocket")
		ws.Replay(4711)
		if e := ws.AwaitError(1)[0]; e.Label != "invalid_last_event_id" {
			t.Errorf("a replay from the future ends in %+v", e)
		}
	})
}

func TestClientRenewsItsTokenInTime(t *testing.T) {
	t.Parallel()
	inEachHost(t, func(t *testing.T, w *world, h *clienttest.Host) {
		for _, transport := range bothTransports {
			var calls atomic.Int64
			ends := time.Now().Add(4 * time.Second)
			a := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, Tokens: func(string) (string, error) {
				switch calls.Add(1) {
				case 1:
					return sign(t, cadet17, map[string]any{"exp": ends.Unix()}), nil
				default:
					return sign(t, cadet17), nil
				}
			}})
			if wants := a.AwaitWants(2); !slices.Equal(wants, []string{"connect", "token_expiring"}) {
				t.Errorf("over %s tokens were wanted for %q", transport, wants)
			}
			outlived := time.NewTimer(time.Until(ends) + time.Second) // when the relay would have ended the connection
			<-outlived.C
			a.AwaitOpen(transport)
			w.Insert(grade(17))
			a.AwaitEvents(1)
			if s := a.State(); s.Reconnects != 0 || len(a.Wants()) != 2 || len(a.Errors()) > 0 {
				t.Errorf("over %s: %d reconnects, tokens wanted for %q, errors %v", transport, s.Reconnects, a.Wants(), a.Errors())
			}
		}
	})
}

func TestClientGetsAnotherTokenOnceWhenItIsRefusedAndThenReports(t *testing.T) {
	t.Parallel()
	w, h := inNode(t)
	for _, transport := range bothTransports {
		good := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, MinDelay: 10, Tokens: func(reason string) (string, error) {
			if reason == "invalid_token" {
				return sign(t, cadet17), nil
			}
			return "no.such.token", nil
		}})
		good.AwaitOpen(transport)
		if wants := good.Wants(); !slices.Equal(wants, []string{"connect", "invalid_token"}) {
			t.Errorf("over %s tokens were wanted for %q", transport, wants)
		}
		bad := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, MinDelay: 10, Tokens: func(string) (string, error) {
			return sign(t, cadet17, map[string]any{"is_approved": false}), nil
		}})
		s := bad.AwaitClosed()
		if s.Reason.Code != 4001 || s.Reason.Label != "not_approved" || len(bad.Wants()) != 2 || len(bad.AwaitError(1)) != 1 {
			t.Errorf("over %s: closed for %+v, tokens wanted for %q, errors %v", transport, s.Reason, bad.Wants(), bad.Errors())
		}
		fixed := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, Token: "no.such.token"})
		if s := fixed.AwaitClosed(); s.Reason.Label != "invalid_token" {
			t.Errorf("over %s: closed for %+v", transport, s.Reason)
		}
		none := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, Tokens: func(string) (string, error) { return "", nil }})
		if s := none.AwaitClosed(); s.Reason.Label != "no_token" {
			t.Errorf("over %s: closed for %+v", transport, s.Reason)
		}
		var failed atomic.Bool
		late := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, MinDelay: 10, Tokens: func(string) (string, error) {
			if failed.CompareAndSwap(false, true) {
				return "", errors.New("the application's server is away")
			}
			return sign(t, cadet17), nil
		}})
		late.AwaitOpen(transport)
		if e := late.Errors(); len(e) != 1 || e[0].Message != "no token could be got" {
			t.Errorf("over %s: errors %v", transport, e)
		}
	}
}

func TestClientIsTurnedAwayForGoodByARevokedSession(t *testing.T) {
	t.Parallel()
	w, h := inNode(t)
	var apps []*clienttest.App
	for _, transport := range bothTransports {
		a := h.Connect(clienttest.Options{URL: w.url(), Transport: transport, Token: sign(t, cadet17)})
		a.AwaitOpen(transport)
		apps = append(apps, a)
	}
	w.Insert(relay.Row{Type: "session_revoked", UserIDs: []int64{5}})
	for _, a := range apps {
		if s := a.AwaitClosed(); s.Reason.Label != "session_revoked" || s.Reason.Code != 4001 {
			t.Errorf("closed for %+v", s.Reason)
		}
	}
}

// blocker is a proxy that lets no WebSocket through while it is on, and remembers
// what it was asked for.
type blocker struct {
	on atomic.Bool

	mu   sync.Mutex
	urls []string
}

func newBlocker(t testing.TB, upstream string) (*blocker, string) {
	t.Helper()
	to, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	b := &blocker{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, FlushInterval: -1}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.urls = append(b.urls, r.URL.String())
		b.mu.Unlock()
		if b.on.Load() && r.Header.Get("Upgrade") != "" {
			http.Error(w, "no upgrades here", http.StatusBadRequest)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return b, server.URL
}

func TestClientReadsTheEventStreamWhereNoWebSocketGetsThroughAndTriesAgainLater(t *testing.T) {
	t.Parallel()
	inEachHost(t, func(t *testing.T, w *world, h *clienttest.Host) {
		b, address := newBlocker(t, w.url())
		b.on.Store(true)
		a := h.Connect(clienttest.Options{URL: address, Token: sign(t, cadet17), WebSocketRetry: 300})
		a.AwaitOpen("sse")
		w.Insert(grade(17))
		a.AwaitEvents(1)
		upgrades := func() (n int) {
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, u := range b.urls {
				if strings.HasPrefix(u, "/ws/") {
					n++
				}
			}
			return n
		}
		relaytest.Wait(t, "a WebSocket is tried again", func() bool { return upgrades() >= 3 })
		if s := a.State(); s.Status != "open" || s.Reconnects != 0 {
			t.Errorf("while a WebSocket is tried the state is %+v, want the stream to go on", s)
		}
		b.on.Store(false)
		a.AwaitOpen("websocket")
		w.Insert(grade(17))
		if got := ids(a.AwaitEvents(2)); !slices.Equal(got, upTo(2)) {
			t.Errorf("handed out were %v", got)
		}
		only := h.Connect(clienttest.Options{URL: address, Token: sign(t, cadet17), Transport: "websocket"})
		only.AwaitOpen("websocket")
	})
}

func TestClientWithTicketsShowsNoTokenInAnyURL(t *testing.T) {
	t.Parallel()
	inEachHost(t, func(t *testing.T, w *world, h *clienttest.Host) {
		b, address := newBlocker(t, w.url())
		for _, tickets := range []bool{true, false} {
			for _, transport := range bothTransports {
				a := h.Connect(clienttest.Options{URL: address, Token: sign(t, cadet17), Transport: transport, Tickets: tickets, MinDelay: 10})
				a.AwaitOpen(transport)
				a.Interrupt()
				a.AwaitState("back", func(s clienttest.State) bool { return s.Status == "open" && s.Reconnects == 1 })
			}
		}
		refused := h.Connect(clienttest.Options{URL: address, Token: "no.such.token", Tickets: true})
		if s := refused.AwaitClosed(); s.Reason.Label != "invalid_token" {
			t.Errorf("closed for %+v", s.Reason)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		tickets := 0
		for _, u := range b.urls {
			if strings.Contains(u, "token") || strings.Contains(u, "eyJ") {
				t.Errorf("a token is in %s", u)
			}
			if strings.Contains(u, "ticket=") {
				tickets++
			}
		}
		if tickets != 4 {
			t.Errorf("%d tickets were used, want 4", tickets)
		}
	})
}

func TestClientSaysWhenStateMustBeFetchedAnew(t *testing.T) {
	t.Parallel()
	for _, transport := range bothTransports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			w, h := inNode(t)
			for range 10 {
				w.Insert(grade(17))
			}
			relaytest.Wait(t, "10 events", func() bool { return w.Status().Head == 10 })
			open := func(after int64) *clienttest.App {
				a := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), Transport: transport, After: clienttest.After(after), MinDelay: 10})
				a.AwaitOpen(transport)
				return a
			}
			known, ahead := open(3), open(4711)
			if got := ahead.AwaitRefetch(1); got[0] != "unknown_position" || ahead.State().Cursor != 10 {
				t.Errorf("a client that is ahead is told %q and stands at %d", got, ahead.State().Cursor)
			}
			w.Retained(6, 5)
			if got := open(3).AwaitRefetch(1); got[0] != "truncated" {
				t.Errorf("a client of before retention is told %q", got)
			}
			if got := open(5); len(got.Refetches()) > 0 {
				t.Errorf("a client that retention leaves alone is told %q", got.Refetches())
			}
			w.World.Promote()
			w.World.Depose()
			for told, a := range []*clienttest.App{known, ahead} {
				if got := a.AwaitRefetch(told + 1); got[told] != "epoch_changed" {
					t.Errorf("after a change of the epoch a client is told %q", got)
				}
			}
			w.Insert(grade(17))
			if got := ids(known.AwaitEvents(8)); !slices.Equal(got[:7], upTo(10)[3:]) || !slices.IsSorted(got) {
				t.Errorf("handed out were %v", got)
			}
		})
	}
}

func TestClientWaitsForARandomTimeOutOfAnIntervalThatDoubles(t *testing.T) {
	t.Parallel()
	w, h := inNode(t)
	w.stop() // nobody answers
	var apps []*clienttest.App
	for range 40 {
		apps = append(apps, h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), MinDelay: 200, MaxDelay: 1600}))
	}
	low, high := make([]int, 5), make([]int, 5)
	for _, a := range apps {
		a.AwaitReached("at its fifth attempt", func(s clienttest.State) bool { return s.Attempt >= 5 && s.Status == "waiting" })
		for _, s := range a.States() {
			if s.Status != "waiting" || s.Attempt > 5 {
				continue
			}
			longest := min(1600, 200*float64(int(1)<<(s.Attempt-1)))
			wait := s.RetryAt - s.At
			if wait > longest+1 {
				t.Errorf("after %d failures it waits %.0f ms, want %.0f at most", s.Attempt, wait, longest)
			}
			if wait < longest/2 {
				low[s.Attempt-1]++
			} else {
				high[s.Attempt-1]++
			}
		}
	}
	for i := range 3 { // of 40 each half has fewer than 5 once in ten million times
		if low[i] < 5 || high[i] < 5 {
			t.Errorf("after %d failures %d waits are in the lower half and %d in the upper: that is no jitter", i+1, low[i], high[i])
		}
	}
}

func TestClientNoticesARelayThatHasFallenSilent(t *testing.T) {
	t.Parallel()
	w, h := inNode(t)
	for _, transport := range bothTransports {
		d := newDam(t, w.addr)
		a := h.Connect(clienttest.Options{
			URL: "http://" + d.addr, Token: sign(t, cadet17), Transport: transport, MinDelay: 10, MaxDelay: 100,
			PingInterval: 200, PongTimeout: 200, Silence: 500, ConnectTimeout: 500,
		})
		a.AwaitOpen(transport)
		d.close()
		a.AwaitReached("waiting", func(s clienttest.State) bool { return s.Status == "waiting" && s.Reason.Label == "silent" })
		w.Insert(grade(17))
		d.open()
		a.AwaitOpen(transport)
		a.AwaitEvents(1)
	}
}

func TestAFaultOfAListenerKeepsNothingFromTheOthers(t *testing.T) {
	t.Parallel()
	w, h := inNode(t)
	a := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17)})
	a.Throwing()
	a.AwaitOpen("websocket")
	w.Insert(grade(17))
	w.Insert(grade(17))
	a.AwaitEvents(2)
	relaytest.Wait(t, "the faults are reported", func() bool { return len(h.Reported()) == 2 })
}

func TestClientKeepsItsPositionInTheSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t, anyOrigin(t))
	h := clienttest.NewPage(t, w.url())
	one := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), Keep: true})
	one.AwaitOpen("websocket")
	w.Insert(grade(17))
	one.AwaitEvents(1)
	one.Close()
	w.Insert(grade(17))
	relaytest.Wait(t, "2 events", func() bool { return w.Status().Head == 2 })
	other := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), Keep: true})
	if got := ids(other.AwaitEvents(1)); !slices.Equal(got, []int64{2}) {
		t.Errorf("after a reload were handed out %v, want what was missed", got)
	}
	stranger := h.Connect(clienttest.Options{URL: w.url(), Token: sign(t, cadet17), Keep: true, StorageKey: "another"})
	stranger.AwaitOpen("websocket")
	if len(stranger.Events()) != 0 {
		t.Errorf("under another key were handed out %v", ids(stranger.Events()))
	}
}

func TestClientKnowsEveryReasonAsItIs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("client/client.js")
	if err != nil {
		t.Fatal(err)
	}
	table, _, _ := strings.Cut(string(text), "\n});")
	known := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^ {2}(\w+): \[(\d+), "([^"]*)"\],$`).FindAllStringSubmatch(table, -1) {
		known[m[1]] = m[2] + " " + m[3]
	}
	for _, r := range stream.Reasons() {
		if r.Code == 0 && r.Status == 0 {
			continue // the client is not told
		}
		if want := fmt.Sprint(r.Code, " ", r.Text); known[r.Label] != want {
			t.Errorf("the client knows %q as %q, want %q", r.Label, known[r.Label], want)
		}
		delete(known, r.Label)
	}
	if len(known) > 0 {
		t.Errorf("the client knows %v, which the relay does not", known)
	}
}

func TestClientIsServedToAllAndAgainOnlyWhenItHasChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	first := w.get(t, "/client.js", http.Header{"Origin": {"https://elsewhere.example.org"}})
	body, err := io.ReadAll(first.Body)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Content-Type": "text/javascript; charset=utf-8", "Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*", "X-Content-Type-Options": "nosniff",
	} {
		if got := first.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	file, err := os.ReadFile("client/client.js")
	if err != nil || !bytes.Equal(body, file) || first.StatusCode != http.StatusOK {
		t.Errorf("%s with %d bytes, want the file of %d (%v)", first.Status, len(body), len(file), err)
	}
	again := w.get(t, "/client.js", http.Header{"If-None-Match": {first.Header.Get("ETag")}})
	if again.StatusCode != http.StatusNotModified {
		t.Errorf("with the ETag it answers %s, want 304", again.Status)
	}
	if other := w.do(t, http.MethodPost, w.url()+"/client.js", nil); other.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST is answered %s", other.Status)
	}
}
