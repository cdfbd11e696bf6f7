package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
)

// newBuildInfo is a metric that says in its labels what runs.
func newBuildInfo(b build) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "syncrelay_build_info", Help: "What this program was built from; always 1.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "goversion": b.Go},
	})
	g.Set(1)
	return g
}

// newConnectionsLimit is how many clients may be connected, to be seen beside how
// many are.
func newConnectionsLimit(most int) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "syncrelay_connections_limit", Help: "How many clients may be connected at once (limits.connections)."})
	g.Set(float64(most))
	return g
}

// scrapeTimeout bounds the question to the database that a scrape asks.
const scrapeTimeout = 3 * time.Second

// databaseCollector asks the database for what only it knows, when the metrics
// are asked for. A database that can't be reached leaves the gauges out, rather
// than showing old values.
type databaseCollector struct {
	monitor  *outbox.Monitor
	janitor  *outbox.Janitor
	observer relay.Observer

	lag, retained, safe, status, deleted, success *prometheus.Desc
}

func newDatabaseCollector(m *outbox.Monitor, j *outbox.Janitor, o relay.Observer) *databaseCollector {
	return &databaseCollector{
		monitor: m, janitor: j, observer: o,
		lag:      prometheus.NewDesc("syncrelay_replication_lag_bytes", "Log that was written and that the relay has not confirmed, in bytes.", nil, nil),
		retained: prometheus.NewDesc("syncrelay_slot_retained_bytes", "Log that the server keeps because of the slot, in bytes.", nil, nil),
		safe:     prometheus.NewDesc("syncrelay_slot_safe_bytes", "Log that can be written before the server gives the slot up (max_slot_wal_keep_size); absent if it never does.", nil, nil),
		status:   prometheus.NewDesc("syncrelay_slot_status", "The slot's wal_status, or missing: 1 for the present one, 0 for the others.", []string{"status"}, nil),
		deleted:  prometheus.NewDesc("syncrelay_retention_deleted_total", "Events deleted by retention.", nil, nil),
		success:  prometheus.NewDesc("syncrelay_retention_last_success_timestamp_seconds", "When retention last ran through, 0 for never.", nil, nil),
	}
}

// slotStatuses are the values of the label status: those of the view
// pg_replication_slots, in the order in which things go wrong, and that there is
// no slot.
var slotStatuses = [...]string{"reserved", "extended", "unreserved", "lost", slotMissing}

const slotMissing = "missing"

// Describe is part of prometheus.Collector.
func (c *databaseCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.lag, c.retained, c.safe, c.status, c.deleted, c.success} {
		descs <- d
	}
}

// Collect is part of prometheus.Collector.
func (c *databaseCollector) Collect(metrics chan<- prometheus.Metric) {
	work := c.janitor.Work()
	metrics <- prometheus.MustNewConstMetric(c.deleted, prometheus.CounterValue, float64(work.Deleted))
	success := 0.0
	if !work.LastSuccess.IsZero() {
		success = float64(work.LastSuccess.UnixMilli()) / 1000
	}
	metrics <- prometheus.MustNewConstMetric(c.success, prometheus.GaugeValue, success)
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	lag, err := c.monitor.Measure(ctx)
	if err != nil {
		c.observer.Failed("metrics")
		return
	}
	metrics <- prometheus.MustNewConstMetric(c.lag, prometheus.GaugeValue, float64(lag.Bytes))
	metrics <- prometheus.MustNewConstMetric(c.retained, prometheus.GaugeValue, float64(lag.Retained))
	if lag.SafeBytes >= 0 {
		metrics <- prometheus.MustNewConstMetric(c.safe, prometheus.GaugeValue, float64(lag.SafeBytes))
	}
	found := lag.Status
	if found == "" {
		found = slotMissing
	}
	for _, status := range slotStatuses {
		present := 0.0
		if status == found {
			present = 1
		}
		metrics <- prometheus.MustNewConstMetric(c.status, prometheus.GaugeValue, present, status)
	}
}
