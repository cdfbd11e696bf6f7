package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"github.com/syncrelay/syncrelay/relay"
)

// proxy stands between two parts and does to their connections what networks do.
type proxy struct {
	testing.TB
	*toxiproxy.Proxy
}

func newProxy(t testing.TB, name, upstream string) *proxy {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // some of its parts have loggers of their own
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{t, toxiproxy.NewProxy(server, name, "127.0.0.1:0", upstream)}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// poison gives every connection, those there are too, a fault in one direction
// or both.
func (p *proxy) poison(toxic string, directions ...string) {
	p.Helper()
	for _, d := range directions {
		json := fmt.Sprintf(`{"name": %q, "stream": %q, %s}`, d, d, toxic)
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(json)); err != nil {
			p.Fatal(err)
		}
	}
}

func (p *proxy) heal() { p.Toxics.ResetToxics(context.Background()) }

// cut closes all connections, and takes no more until restore.
func (p *proxy) cut() { p.Stop() }

func (p *proxy) restore() {
	p.Helper()
	if err := p.Start(); err != nil {
		p.Fatal(err)
	}
}

const (
	upstream   = "upstream"
	downstream = "downstream"
)

// ailments are what happens to a connection, for as long as it is left so.
var ailments = []struct {
	name  string
	begin func(p *proxy)
	end   func(p *proxy)
}{
	{"latency", func(p *proxy) {
		p.poison(`"type": "latency", "attributes": {"latency": 60, "jitter": 50}`, upstream, downstream)
	}, (*proxy).heal},
	{"slow", func(p *proxy) { p.poison(`"type": "bandwidth", "attributes": {"rate": 40}`, upstream, downstream) }, (*proxy).heal},
	{"in slices", func(p *proxy) {
		p.poison(`"type": "slicer", "attributes": {"average_size": 7, "size_variation": 6, "delay": 20}`, upstream, downstream)
	}, (*proxy).heal},
	{"cut", (*proxy).cut, (*proxy).restore},
	{"cut in the middle of a message", func(p *proxy) {
		p.poison(`"type": "limit_data", "attributes": {"bytes": 4099}`, upstream, downstream)
	}, (*proxy).heal},
	{"reset", func(p *proxy) { p.poison(`"type": "reset_peer", "attributes": {"timeout": 10}`, upstream, downstream) }, (*proxy).heal},
	{"half open: nothing comes", func(p *proxy) { p.poison(`"type": "timeout", "attributes": {"timeout": 0}`, downstream) }, (*proxy).heal},
	{"half open: nothing goes", func(p *proxy) { p.poison(`"type": "timeout", "attributes": {"timeout": 0}`, upstream) }, (*proxy).heal},
}

// networked is a product whose connections to the database and to the clients
// pass proxies.
type networked struct {
	*chaos
	database, public *proxy
}

func newNetworked(t *testing.T) *networked {
	t.Helper()
	p := newDatabase(t)
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	n := &networked{chaos: &chaos{product: p}, database: newProxy(t, "database", u.Host)}
	u.Host, u.User = n.database.Listen, url.User("syncrelay_relay")
	p.start("SYNCRELAY_DATABASE_URL="+u.String(), "SYNCRELAY_DATABASE_OWNER_TIMEOUT=2s")
	n.public = newProxy(t, "public", p.address())
	n.address = n.public.Listen
	return n
}

// Whatever the network does between the relay and its database, or its clients,
// each client has each row once, in commit order, when it is over.
func TestNetworkFaultsLoseNothingAndRepeatNothing(t *testing.T) {
	t.Parallel()
	for _, ailment := range ailments {
		t.Run(ailment.name, func(t *testing.T) {
			t.Parallel()
			n := newNetworked(t)
			ctx, calm := context.WithCancel(t.Context())
			defer calm()
			var writers, clients sync.WaitGroup
			for w := range 2 {
				writers.Go(func() { n.keepWriting(ctx, fmt.Sprint("writer ", w), uint64(w)) })
			}
			end, finish := context.WithCancel(t.Context())
			defer finish()
			got := make([]*comer, 4)
			for i := range got {
				got[i] = &comer{cadet: int64(i % 2), transport: []string{overWebSocket, overSSE}[i/2]}
				clients.Go(func() { got[i].keepComing(end, n.chaos) })
			}
			for _, p := range []*proxy{n.database, n.public} {
				before := got[0].count()
				eventually(t, "events flow", func() bool { return got[0].count() > before+20 })
				ailment.begin(p)
				held := time.NewTimer(3 * time.Second) // longer than database.owner_timeout
				<-held.C
				ailment.end(p)
				eventually(t, "the relay streams again", func() bool { return n.daemon.relay.Status().Phase == relay.Streaming })
			}
			calm()
			writers.Wait()
			for _, g := range got {
				want := n.expected(g.cadet)
				eventually(t, fmt.Sprintf("a client of cadet %d over %s has its %d rows, it has %d", g.cadet, g.transport, len(want), g.count()), func() bool { return g.count() >= len(want) })
			}
			finish()
			clients.Wait()
			for i, g := range got {
				check(t, fmt.Sprintf("client %d of cadet %d over %s", i, g.cadet, g.transport), g.events, n.expected(g.cadet))
			}
			t.Logf("%d rows", len(n.expected(0)))
		})
	}
}
