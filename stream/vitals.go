package stream

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/syncrelay/syncrelay/relay"
)

// vitals are the relay's metrics in JSON, for the console. What is gathered is
// kept for a moment, so that many who look cost no more than one.
type vitals struct {
	registry *prometheus.Registry
	status   func() relay.Status

	mu   sync.Mutex
	last *vitalsMessage
	at   time.Time
}

// vitalsLife is how long what was gathered is good for: less than the time
// between two looks of a console.
const vitalsLife = 900 * time.Millisecond

// vitalsMessage is what a console is sent.
type vitalsMessage struct {
	At          int64       `json:"at"` // in milliseconds since 1970
	Phase       relay.Phase `json:"phase"`
	Reason      string      `json:"reason,omitempty"`
	LastEventID int64       `json:"last_event_id"`
	Journaled   int64       `json:"journaled_event_id"`
	Oldest      int64       `json:"oldest_event_id"`
	Epoch       string      `json:"epoch"`
	// Metrics are by name, as in README.md.
	Metrics map[string][]sample `json:"metrics"`
}

// sample is one time series of a metric.
type sample struct {
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"` // of a histogram, the sum
	// Count and Buckets are a histogram's; of a bucket the upper bound, and how
	// many were at or below it. The last bucket has no bound and is left out.
	Count   uint64       `json:"count,omitempty"`
	Buckets [][2]float64 `json:"buckets,omitempty"`
}

// report gathers the metrics, or returns those of just now.
func (v *vitals) report() (*vitalsMessage, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.last != nil && time.Since(v.at) < vitalsLife {
		return v.last, nil
	}
	families, err := v.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("gather the metrics: %w", err)
	}
	s := v.status()
	m := &vitalsMessage{
		At: time.Now().UnixMilli(), Phase: s.Phase, Reason: s.Reason, LastEventID: s.Head, Journaled: s.Journaled, Oldest: s.Oldest, Epoch: s.Epoch,
		Metrics: make(map[string][]sample),
	}
	for _, f := range families {
		if name := f.GetName(); strings.HasPrefix(name, "syncrelay_") || name == "process_resident_memory_bytes" || name == "process_start_time_seconds" || name == "go_goroutines" {
			for _, metric := range f.GetMetric() {
				m.Metrics[name] = append(m.Metrics[name], newSample(metric))
			}
		}
	}
	v.last, v.at = m, time.Now()
	return m, nil
}

func newSample(m *dto.Metric) sample {
	s := sample{Value: m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()}
	for _, pair := range m.GetLabel() {
		if s.Labels == nil {
			s.Labels = make(map[string]string)
		}
		s.Labels[pair.GetName()] = pair.GetValue()
	}
	if h := m.GetHistogram(); h != nil {
		s.Value, s.Count = h.GetSampleSum(), h.GetSampleCount()
		for _, b := range h.GetBucket() {
			if !math.IsInf(b.GetUpperBound(), 1) {
				s.Buckets = append(s.Buckets, [2]float64{b.GetUpperBound(), float64(b.GetCumulativeCount())})
			}
		}
	}
	if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) { // which JSON can't say
		s.Value = 0
	}
	return s
}
