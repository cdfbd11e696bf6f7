package stream

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
)

// metrics are the server's own (CONTRACT, section 8). What the relay counts is
// in [Observer].
type metrics struct {
	webSocket, sse *transport
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
	registerer.MustRegister(connections, connects, disconnects, deliveries, latency, newLogCollector(status))
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
		t.connects.WithLabelValues(accepted)
		return t
	}
	return &metrics{webSocket: children("websocket", "WebSocket"), sse: children("sse", "SSE")}
}

// connect counts an attempt to connect.
func (t *transport) connect(outcome string) { t.connects.WithLabelValues(outcome).Inc() }

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

// logCollector reads where the log stands when it is asked.
type logCollector struct {
	status          func() relay.Status
	last, journaled *prometheus.Desc
}

func newLogCollector(status func() relay.Status) *logCollector {
	return &logCollector{
		status:    status,
		last:      prometheus.NewDesc("syncrelay_last_event_id", "The newest event ID assigned.", nil, nil),
		journaled: prometheus.NewDesc("syncrelay_journaled_event_id", "The newest event ID in the journal.", nil, nil),
	}
}

// Describe is part of [prometheus.Collector].
func (c *logCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.last
	descs <- c.journaled
}

// Collect is part of [prometheus.Collector].
func (c *logCollector) Collect(metrics chan<- prometheus.Metric) {
	s := c.status()
	metrics <- prometheus.MustNewConstMetric(c.last, prometheus.GaugeValue, float64(s.Head))
	metrics <- prometheus.MustNewConstMetric(c.journaled, prometheus.GaugeValue, float64(s.Journaled))
}
