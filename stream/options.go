package stream

import (
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
)

// Options are a server's settings. Relay and Verifier are required; the zero
// value of the others stands for a sane default.
type Options struct {
	Relay    *relay.Relay
	Verifier *Verifier
	// Directory, if there is one, says who users are: of a token only the user
	// counts then, which is what the verifier must have been told.
	Directory Directory
	// IdentityRefresh is how long a connected user may go on as somebody who the
	// directory says they are no more; default 1 minute.
	IdentityRefresh time.Duration
	// Origins are the web origins whose pages may connect; see [NewOrigins].
	Origins *Origins
	Logger  *slog.Logger
	// Registry takes the metrics and is what /metrics shows; default a new one.
	Registry *prometheus.Registry
	// Observer is told of the server's own errors; default nobody.
	Observer interface{ Failed(component string) }
	// Index answers GET / on the public listener; default a page that says what
	// runs where.
	Index http.Handler
	// Console is the console page, which takes the place of Index; default none.
	Console *Console

	// Heartbeat is the time between the comments of an event stream, PingInterval
	// the one between pings on a WebSocket: a client that has not answered one
	// when the next is due is gone. Defaults 15 s and 25 s.
	Heartbeat, PingInterval time.Duration
	// WriteTimeout is how long a client may take nothing of what is written to
	// it; default 10 s.
	WriteTimeout time.Duration
	// PeerTimeout is how long a peer's system may acknowledge nothing of what was
	// sent to it; default 40 s, so that with the heartbeat before it one that is
	// dead is found within a minute.
	PeerTimeout time.Duration
	// CloseTimeout is how long a connection that ends has to take the last of what
	// was written to it, and then to answer the close frame; default 1 s.
	CloseTimeout time.Duration
	// Compression compresses events for the WebSockets that offer
	// permessage-deflate; default not.
	Compression bool
	// MaxTickets and TicketsPerUser bound the tickets that wait to be used; default
	// 50,000 and 1,000. A user who asks for more loses the oldest.
	MaxTickets, TicketsPerUser int
	// SummaryInterval is the time between the lines of the log that count what
	// strangers did; default 1 min.
	SummaryInterval time.Duration
	// Limits bound what clients can take.
	Limits Limits
	// TLS and OpsTLS make the listeners of Run speak TLS; default plain HTTP.
	TLS, OpsTLS *Certificate
	// Proxies are believed when they say whom they speak for; see [NewProxies].
	// Default nobody.
	Proxies *Proxies
}

func (o *Options) complete() error {
	if o.Relay == nil || o.Verifier == nil {
		return errors.New("a stream server needs a relay and a verifier")
	}
	if (o.Directory != nil) != o.Verifier.userOnly {
		return errors.New("who users are comes either from the tokens or from a directory: the verifier must be told which")
	}
	if o.Origins == nil {
		o.Origins = &Origins{}
	}
	if o.Proxies == nil {
		o.Proxies = &Proxies{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.Index == nil {
		o.Index = http.HandlerFunc(serveIndex)
	}
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{
		{&o.IdentityRefresh, time.Minute},
		{&o.Heartbeat, 15 * time.Second},
		{&o.PingInterval, 25 * time.Second},
		{&o.WriteTimeout, 10 * time.Second},
		{&o.PeerTimeout, 40 * time.Second},
		{&o.CloseTimeout, time.Second},
		{&o.SummaryInterval, time.Minute},
	} {
		if *d.value <= 0 {
			*d.value = d.otherwise
		}
	}
	if o.MaxTickets <= 0 {
		o.MaxTickets = 50_000
	}
	if o.TicketsPerUser <= 0 {
		o.TicketsPerUser = 1_000
	}
	o.Limits.complete()
	return nil
}
