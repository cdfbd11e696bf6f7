package outbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// Lag is how far the slot is behind the server's log.
type Lag struct {
	// Bytes of log that were written and that the relay has not confirmed.
	Bytes int64
	// Retained is how many bytes of log the server keeps because of the slot.
	Retained int64
	// SafeBytes is how many more bytes may be written before the server gives
	// the slot up (max_slot_wal_keep_size); below 0 if there is no limit.
	SafeBytes int64
	// Status is the slot's wal_status, empty if there is no slot.
	Status string
	// At is when it was measured.
	At time.Time
}

const measureLag = `
SELECT coalesce(pg_catalog.pg_wal_lsn_diff(w.at, s.confirmed_flush_lsn), 0)::bigint,
       coalesce(pg_catalog.pg_wal_lsn_diff(w.at, s.restart_lsn), 0)::bigint,
       coalesce(s.safe_wal_size, -1), coalesce(s.wal_status, '')
  FROM (SELECT pg_catalog.pg_current_wal_lsn() AS at) w
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1`

// Monitor measures the slot's lag. It is made for a collector of metrics: a
// measurement is kept for a second, so that several scrapers cost one query.
type Monitor struct {
	o Options

	mu   sync.Mutex
	conn *pgx.Conn
	last Lag
}

// NewMonitor makes a monitor; it connects at the first measurement.
func NewMonitor(o Options) *Monitor { return &Monitor{o: o.withDefaults()} }

// Measure returns the lag of at most a second ago.
func (m *Monitor) Measure(ctx context.Context) (Lag, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.last.At) < time.Second {
		return m.last, nil
	}
	if m.conn == nil || m.conn.IsClosed() {
		conn, err := connect(ctx, m.o.URL, map[string]string{"statement_timeout": "5000"})
		if err != nil {
			return Lag{}, err
		}
		m.conn = conn
	}
	lag := Lag{At: time.Now()}
	err := m.conn.QueryRow(ctx, measureLag, m.o.Slot).Scan(&lag.Bytes, &lag.Retained, &lag.SafeBytes, &lag.Status)
	if err != nil {
		return Lag{}, fmt.Errorf("measure the lag of slot %q: %w", m.o.Slot, explain(err, m.conn.Config()))
	}
	m.last = lag
	return lag, nil
}

// Close ends the monitor's session.
func (m *Monitor) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		closeConn(m.conn)
		m.conn = nil
	}
}

var (
	_ relay.Source  = (*Source)(nil)
	_ relay.Journal = (*Journal)(nil)
)
