package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/syncrelay/syncrelay/stream/clienttest"
)

//go:embed testdata/seed.html
var seedPage []byte

// seedGot is what the code of before says it has got.
type seedGot struct {
	Events, Streamed           []string
	Pongs                      []float64
	Closes                     []int
	Replays, Connected, Opened int
	Streams                    bool // it has an EventSource
}

// seedInPage runs that code in a page of Chromium.
func seedInPage(t *testing.T, query string) (look func() seedGot) {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(seedPage)
	}))
	t.Cleanup(site.Close)
	tab := clienttest.NewTab(t)
	if err := chromedp.Do(tab, chromedp.Navigate(site.URL+"/"+query)); err != nil {
		t.Fatal(err)
	}
	return func() (g seedGot) {
		t.Helper()
		text, err := chromedp.Run(tab, chromedp.Evaluate[string](`JSON.stringify({...got, opened: source.readyState, streams: true})`))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), &g); err != nil {
			t.Fatal(err)
		}
		return g
	}
}

// seedInNode runs it in Node, whose EventSource is there from version 22 on.
func seedInNode(t *testing.T, query string) (look func() seedGot) {
	t.Helper()
	node := clienttest.Program(t, "node")
	flags := []string{"--no-warnings"}
	for _, flag := range []string{"--experimental-websocket", "--experimental-eventsource"} {
		if exec.CommandContext(t.Context(), node, flag, "--eval", "").Run() == nil {
			flags = append(flags, flag)
		}
	}
	cmd := exec.CommandContext(t.Context(), node, append(flags, "testdata/seed.mjs", "testdata/seed.html", query)...)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close() // which ends it
		_ = cmd.Wait()
	})
	answers := json.NewDecoder(bufio.NewReader(out))
	return func() (g seedGot) {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if err := answers.Decode(&g); err != nil {
			t.Fatal(err)
		}
		return g
	}
}

// The code that talked to the system before: a WebSocket with ?token=, which asks
// for a replay when it comes back and pings with a time, and an EventSource with
// ?token=. It works as it is, in a real browser and in Node, while the relay is
// drained, killed and cut off.
func TestClientsOfTheSystemBeforeWorkAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T, query string) func() seedGot{"chromium": seedInPage, "node": seedInNode} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEndured(t)
			look := start(t, fmt.Sprintf("?host=%s&token=%s", e.proxy.Listen, cadetToken(t, 1)))
			eventually(t, "both are connected", func() bool { r := look(); return r.Connected == 1 && r.Opened == 1 })
			ctx, calm := context.WithCancel(t.Context())
			var writers sync.WaitGroup
			defer writers.Wait()
			defer calm()
			writers.Go(func() { e.keepWriting(ctx, "writer", 1) })
			for i, strike := range []func(){
				func() { e.drain(); e.begin() },
				func() { e.kill(); e.begin() },
				func() { e.proxy.cut(); e.proxy.restore() },
			} {
				before := look()
				eventually(t, "events flow", func() bool {
					r := look()
					return r.Replays == i && len(r.Events) > len(before.Events)+10 && (len(r.Streamed) > len(before.Streamed)+10 || !r.Streams) && len(r.Pongs) > len(before.Pongs)
				})
				strike()
				eventually(t, "it has come back", func() bool { return look().Replays == i+1 })
			}
			calm()
			writers.Wait()
			want := e.expected(1)
			eventually(t, "everything is there", func() bool {
				r := look()
				return (len(r.Streamed) >= len(want) || !r.Streams) && len(r.Events) >= len(want)
			})
			r := look()
			if r.Streams && !slices.Equal(r.Streamed, want) {
				t.Errorf("the EventSource got %d events, want %d, each once and in order", len(r.Streamed), len(want))
			}
			// What came between the connection and the replay comes again with it: that is
			// what this code asks for.
			seen := make(map[string]bool)
			for _, n := range r.Events {
				seen[n] = true
			}
			for _, n := range want {
				if !seen[n] {
					t.Errorf("the WebSocket missed %s", n)
				}
			}
			if r.Closes[0] != 1012 {
				t.Errorf("the WebSocket was closed with %v, want 1012 of the drain first", r.Closes)
			}
			if slices.Max(r.Pongs) > 60_000 || slices.Min(r.Pongs) < 0 {
				t.Errorf("the pongs carried another time than the pings: they took %v ms", r.Pongs)
			}
		})
	}
}
