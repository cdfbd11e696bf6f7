package stream

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
)

// metrics are the server's own (CONTRACT, section 8). What the relay counts is
// in [Observer].
type metrics struct {
	webSocket, sse *transport
	tickets        *prometheus.CounterVec // by outcome
	packed         prometheus.Counter
}

// transport is what is counted for one of the two transports. Its children are
// looked up once, not for every event.
type transport struct {
	name        string // in messages
	connections prometheus.Gauge
	connects    *prometheus.CounterVec // by outcome
	disconnects *prometheus.CounterVec // by reason
	deliveries  prometheus.Counter
	latency     prometheus.Observer
	noise       *noise
}

// latencyBuckets reach from what a commit costs on loopback to what a person
// would call broken, in seconds.
var latencyBuckets = []float64{.0005, .001, .002, .003, .005, .0075, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

func newMetrics(registerer prometheus.Registerer, status func() relay.Status) *metrics {
	connections := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "syncrelay_connections", Help: "Clients connected and subscribed.",
	}, []string{"transport"})
	connects := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "syncrelay_connects_total", Help: "Attempts to connect, by outcome: accepted, or why not.",
	}, []string{"transport", "outcome"})
	disconnects := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "syncrelay_disconnects_total", Help: "Connections that ended, by reason.",
	}, []string{"transport", "reason"})
	deliveries := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "syncrelay_deliveries_total", Help: "Events written to clients.",
	}, []string{"transport"})
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "syncrelay_delivery_latency_seconds", Help: "Time from the commit in Postgres to the socket write, of live events.",
		Buckets: latencyBuckets,
	}, []string{"transport"})
	tickets := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "syncrelay_tickets_total", Help: "Requests for a ticket, by outcome: issued, or why not.",
	}, []string{"outcome"})
	packed := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "syncrelay_compressed_events_total", Help: "Events compressed, each once for all clients that want it.",
	})
	tickets.WithLabelValues(issued)
	refusals, ends := refusals(), ends()
	for _, r := range refusals {
		tickets.WithLabelValues(r.Label)
	}
	registerer.MustRegister(packed, tickets, connections, connects, disconnects, deliveries, latency, newLogCollector(status))
	children := func(label, name string) *transport {
		by := prometheus.Labels{"transport": label}
		t := &transport{
			name:        name,
			connections: connections.With(by),
			connects:    connects.MustCurryWith(by),
			disconnects: disconnects.MustCurryWith(by),
			deliveries:  deliveries.With(by),
			latency:     latency.With(by),
		}
		// A series that begins with its first count would hide that one from
		// increase() and rate().
		t.connects.WithLabelValues(accepted)
		for _, r := range refusals {
			t.connects.WithLabelValues(r.Label)
		}
		for _, r := range ends {
			t.disconnects.WithLabelValues(r.Label)
		}
		return t
	}
	return &metrics{webSocket: children("websocket", "WebSocket"), sse: children("sse", "SSE"), tickets: tickets, packed: packed}
}

// connect counts an attempt to connect.
func (t *transport) connect(outcome string) {
	t.connects.WithLabelValues(outcome).Inc()
	if outcome != accepted {
		t.noise.count(outcome)
	}
}

// disconnect counts a connection that has ended.
func (t *transport) disconnect(reason *Reason) {
	t.disconnects.WithLabelValues(reason.Label).Inc()
	switch reason.Code { // the client did something that it should not
	case 1002, 1007, 1008, 1009:
		t.noise.count(reason.Label)
	}
}

// delivered counts events that have just been written.
func (t *transport) delivered(events []*relay.Event, live bool) {
	t.deliveries.Add(float64(len(events)))
	if !live {
		return
	}
	now := time.Now()
	for _, e := range events {
		if !e.CommittedAt.IsZero() {
			// Two clocks are compared when the database is elsewhere.
			t.latency.Observe(max(0, now.Sub(e.CommittedAt).Seconds()))
		}
	}
}

// pushed counts events of which a push may have left a part for later: those have
// been written once left has returned.
func (t *transport) pushed(events []*relay.Event, left func() error, err error) (func() error, error) {
	switch {
	case err != nil:
		return nil, err
	case left == nil:
		t.delivered(events, true)
		return nil, nil
	}
	events = slices.Clone(events)
	return func() error {
		if err := left(); err != nil {
			return err
		}
		t.delivered(events, true)
		return nil
	}, nil
}

// logCollector reads what the relay does and where the log stands when it is asked.
type logCollector struct {
	status                 func() relay.Status
	last, journaled, phase *prometheus.Desc
}

func newLogCollector(status func() relay.Status) *logCollector {
	return &logCollector{
		status:    status,
		last:      prometheus.NewDesc("syncrelay_last_event_id", "The newest event ID assigned.", nil, nil),
		journaled: prometheus.NewDesc("syncrelay_journaled_event_id", "The newest event ID in the journal.", nil, nil),
		phase:     prometheus.NewDesc("syncrelay_phase", "What the relay does: 1 for its present phase, 0 for the others.", []string{"phase"}, nil),
	}
}

// Describe is part of [prometheus.Collector].
func (c *logCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.last
	descs <- c.journaled
	descs <- c.phase
}

// Collect is part of [prometheus.Collector].
func (c *logCollector) Collect(metrics chan<- prometheus.Metric) {
	s := c.status()
	metrics <- prometheus.MustNewConstMetric(c.last, prometheus.GaugeValue, float64(s.Head))
	metrics <- prometheus.MustNewConstMetric(c.journaled, prometheus.GaugeValue, float64(s.Journaled))
	for _, phase := range relay.Phases() {
		present := 0.0
		if phase == s.Phase {
			present = 1
		}
		metrics <- prometheus.MustNewConstMetric(c.phase, prometheus.GaugeValue, present, string(phase))
	}
}
