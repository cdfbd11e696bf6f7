package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
)

// scrapeTimeout bounds the question to the database that a scrape asks.
const scrapeTimeout = 3 * time.Second

// databaseCollector asks the database for what only it knows, when the metrics
// are asked for. A database that can't be reached leaves the gauges out, rather
// than showing old values.
type databaseCollector struct {
	monitor  *outbox.Monitor
	janitor  *outbox.Janitor
	observer relay.Observer

	lag, retained, deleted, success *prometheus.Desc
}

func newDatabaseCollector(m *outbox.Monitor, j *outbox.Janitor, o relay.Observer) *databaseCollector {
	return &databaseCollector{
		monitor: m, janitor: j, observer: o,
		lag:      prometheus.NewDesc("syncrelay_replication_lag_bytes", "Log that was written and that the relay has not confirmed, in bytes.", nil, nil),
		retained: prometheus.NewDesc("syncrelay_slot_retained_bytes", "Log that the server keeps because of the slot, in bytes.", nil, nil),
		deleted:  prometheus.NewDesc("syncrelay_retention_deleted_total", "Events deleted by retention.", nil, nil),
		success:  prometheus.NewDesc("syncrelay_retention_last_success_timestamp_seconds", "When retention last ran through, 0 for never.", nil, nil),
	}
}

// Describe is part of prometheus.Collector.
func (c *databaseCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.lag, c.retained, c.deleted, c.success} {
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
}
