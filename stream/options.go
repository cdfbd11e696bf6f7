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

	// Heartbeat is the time between the comments of an event stream, PingInterval
	// the one between pings on a WebSocket: a client that has not answered one
	// when the next is due is gone. Defaults 15 s and 25 s.
	Heartbeat, PingInterval time.Duration
	// WriteTimeout is how long a client may take nothing of what is written to
	// it; default 10 s.
	WriteTimeout time.Duration
	// MessageRate and MessageBurst bound what a client sends on a WebSocket, in
	// messages and pings a second; default 20 and 100.
	MessageRate  float64
	MessageBurst int
}

func (o *Options) complete() error {
	if o.Relay == nil || o.Verifier == nil {
		return errors.New("a stream server needs a relay and a verifier")
	}
	if o.Origins == nil {
		o.Origins = &Origins{}
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
		{&o.Heartbeat, 15 * time.Second},
		{&o.PingInterval, 25 * time.Second},
		{&o.WriteTimeout, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.otherwise
		}
	}
	if o.MessageRate <= 0 {
		o.MessageRate = 20
	}
	if o.MessageBurst <= 0 {
		o.MessageBurst = 100
	}
	return nil
}
