package stream

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/syncrelay/syncrelay/relay"
)

// Observer counts what a relay does. It is a [relay.Observer].
type Observer struct {
	events    *prometheus.CounterVec
	memory    prometheus.Counter
	journal   prometheus.Counter
	replayed  prometheus.Counter
	recovered prometheus.Counter
	replaced  prometheus.Counter
	epochs    prometheus.Counter
	errors    *prometheus.CounterVec

	mu    sync.RWMutex
	types map[string]prometheus.Counter
	other prometheus.Counter
}

var _ relay.Observer = (*Observer)(nil)

// maxEventTypes bounds the values of the label event_type: writers choose event
// types freely, and each is a time series.
const maxEventTypes = 100

// otherTypes counts the events of all further types together.
const otherTypes = "other"

// NewObserver makes an observer and registers its metrics.
func NewObserver(registerer prometheus.Registerer) *Observer {
	replays := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "syncrelay_replays_total", Help: "Replays and resumes completed, by where the events came from.",
	}, []string{"source"})
	o := &Observer{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "syncrelay_events_total", Help: "Events assigned an ID, by event type; types beyond the first 100 count as other.",
		}, []string{"event_type"}),
		memory:  replays.WithLabelValues("memory"),
		journal: replays.WithLabelValues("journal"),
		replayed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "syncrelay_replayed_events_total", Help: "Events sent by replays and resumes.",
		}),
		recovered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "syncrelay_recovered_rows_total", Help: "Rows read from the table because the slot did not bring them.",
		}),
		replaced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "syncrelay_slot_replacements_total", Help: "Replication slots made in the place of one that was lost or could not bring everything.",
		}),
		epochs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "syncrelay_epoch_changes_total", Help: "New epochs: clients had to refetch their state.",
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "syncrelay_errors_total", Help: "Errors met and handled, by component.",
		}, []string{"component"}),
		types: make(map[string]prometheus.Counter),
	}
	registerer.MustRegister(o.events, replays, o.replayed, o.recovered, o.replaced, o.epochs, o.errors)
	// A series that begins with its first error would hide that error from
	// increase() and rate().
	for _, component := range components {
		o.errors.WithLabelValues(component)
	}
	o.other = o.events.WithLabelValues(otherTypes)
	return o
}

// components are where errors are met and handled: the values of the label
// component of syncrelay_errors_total.
var components = [...]string{"auth", "database", "log", "metrics", "retention", "row", "sink", "stream", "tls"}

// Assigned is part of [relay.Observer].
func (o *Observer) Assigned(eventType string) {
	o.mu.RLock()
	counter, known := o.types[eventType]
	o.mu.RUnlock()
	if !known {
		counter = o.addType(eventType)
	}
	counter.Inc()
}

func (o *Observer) addType(eventType string) prometheus.Counter {
	o.mu.Lock()
	defer o.mu.Unlock()
	if counter, known := o.types[eventType]; known {
		return counter
	}
	if len(o.types) >= maxEventTypes {
		return o.other
	}
	counter, err := o.events.GetMetricWithLabelValues(eventType)
	if err != nil { // not UTF-8
		return o.other
	}
	o.types[eventType] = counter
	return counter
}

// Replayed is part of [relay.Observer].
func (o *Observer) Replayed(fromJournal bool, events int64) {
	if fromJournal {
		o.journal.Inc()
	} else {
		o.memory.Inc()
	}
	o.replayed.Add(float64(events))
}

// Recovered is part of [relay.Observer].
func (o *Observer) Recovered(rows int64) { o.recovered.Add(float64(rows)) }

// Replaced is part of [relay.Observer].
func (o *Observer) Replaced() { o.replaced.Inc() }

// NewEpoch is part of [relay.Observer].
func (o *Observer) NewEpoch() { o.epochs.Inc() }

// Failed is part of [relay.Observer].
func (o *Observer) Failed(component string) { o.errors.WithLabelValues(component).Inc() }
