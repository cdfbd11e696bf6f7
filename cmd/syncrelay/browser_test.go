package main

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/syncrelay/syncrelay/stream/clienttest"
)

// anyOrigin lets the tests' pages in, which come from a site of their own.
const anyOrigin = "SYNCRELAY_ORIGINS_ALLOWED=*"

// endured is a product whose relay, a process, clients reach through a proxy, and
// to which everything happens that happens in production.
type endured struct {
	*chaos
	proxy *proxy
	relay *program
}

func newEndured(t *testing.T) *endured {
	t.Helper()
	p := newDatabase(t)
	e := &endured{chaos: &chaos{product: p, address: freeAddress(t)}}
	e.begin()
	e.proxy = newProxy(t, "public", e.address)
	return e
}

func (e *endured) begin() {
	e.Helper()
	e.relay = launch(e, append(e.settings(), "SYNCRELAY_LISTEN_ADDRESS="+e.address, "SYNCRELAY_LOG_LEVEL=warn", "SYNCRELAY_DRAIN_TIMEOUT=2s", anyOrigin), "serve")
	e.relay.ready(e.address)
}

// kill ends the relay with no time to say anything.
func (e *endured) kill() {
	_ = e.relay.cmd.Process.Kill()
	<-e.relay.ended
}

// drain ends it as an upgrade does.
func (e *endured) drain() {
	e.Helper()
	if err := e.relay.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		e.Fatal(err)
	}
	if code := e.relay.wait(); code != 0 {
		e.Errorf("the relay drained with exit code %d: %s", code, e.relay.err)
	}
}

// The browser client, in Node and in Chromium, over both transports, with tokens
// and with tickets, while the relay is killed, cut off and drained: each client
// hands out each row once, in commit order.
func TestBrowserClientMissesNothingWhileTheRelayIsKilledCutOffAndDrained(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB, string) *clienttest.Host{"node": clienttest.NewNode, "chromium": clienttest.NewPage} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEndured(t)
			address := "http://" + e.proxy.Listen
			h := start(t, address)
			ctx, calm := context.WithCancel(t.Context())
			var writers sync.WaitGroup
			defer writers.Wait()
			defer calm()
			writers.Go(func() { e.keepWriting(ctx, "writer", 1) })
			type client struct {
				*clienttest.App
				name  string
				cadet int64
			}
			var clients []client
			for _, cadet := range []int64{0, 1} {
				token := staffToken(t)
				if cadet > 0 {
					token = cadetToken(t, cadet)
				}
				for _, transport := range []string{"auto", "websocket", "sse"} {
					for _, tickets := range []bool{false, true} {
						app := h.Connect(clienttest.Options{
							URL: address, Token: token, Transport: transport, Tickets: tickets, After: clienttest.After(0),
							MinDelay: 50, MaxDelay: 400, PingInterval: 500, PongTimeout: 1000, ConnectTimeout: 3000, WebSocketRetry: 1000,
						})
						clients = append(clients, client{app, fmt.Sprintf("a client of cadet %d over %s, tickets %t", cadet, transport, tickets), cadet})
					}
				}
			}
			strikes := 0
			for range 2 {
				for _, strike := range []func(){
					func() { e.kill(); e.begin() },
					func() { e.proxy.cut(); e.proxy.restore() },
					func() { e.drain(); e.begin() },
					func() { e.proxy.cut(); e.kill(); e.begin(); e.proxy.restore() },
				} {
					for _, c := range clients {
						// What it hands out now may have come before the last strike.
						c.AwaitState("connected again", func(s clienttest.State) bool { return s.Status == "open" && s.Reconnects >= strikes })
						c.AwaitEvents(len(c.Events()) + 10)
					}
					strike()
					strikes++
				}
			}
			calm()
			writers.Wait()
			for _, c := range clients {
				want := e.expected(c.cadet)
				var got []message
				for _, event := range c.AwaitEvents(len(want)) {
					got = append(got, message{Type: event.Type, EventID: event.EventID, CadetID: &event.CadetID, Data: event.Data})
				}
				check(t, c.name, got, want)
				s := c.AwaitState("connected", func(s clienttest.State) bool { return s.Status == "open" })
				if s.Reconnects < strikes || len(c.Refetches()) > 0 {
					t.Errorf("%s came back %d times, want %d or more; it was told to refetch for %q", c.name, s.Reconnects, strikes, c.Refetches())
				}
			}
			t.Logf("%d rows", len(e.expected(0)))
		})
	}
}
