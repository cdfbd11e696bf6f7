package outbox

import (
	"context"
	"fmt"
	"strconv"
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
       CASE WHEN s.safe_wal_size IS NULL THEN -1 ELSE greatest(s.safe_wal_size, 0) END, coalesce(s.wal_status, '')
  FROM (SELECT pg_catalog.pg_current_wal_lsn() AS at) w
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $1`

// Monitor measures the slot's lag. It is made for a collector of metrics: a
// measurement is kept for a second, so that several scrapers cost one query.
type Monitor struct {
	o Options

	turn chan struct{} // holds one token while somebody measures, or closes
	conn *pgx.Conn
	last Lag
}

// measureTimeout bounds a measurement: a scraper waits no longer than that, and
// nobody waits for a server that has gone without a word.
const measureTimeout = 5 * time.Second

// NewMonitor makes a monitor; it connects at the first measurement.
func NewMonitor(o Options) *Monitor {
	return &Monitor{o: o.withDefaults(), turn: make(chan struct{}, 1)}
}

// Measure returns the lag of at most a second ago.
func (m *Monitor) Measure(ctx context.Context) (Lag, error) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return Lag{}, fmt.Errorf("wait for a measurement of slot %q that is under way: %w", m.o.Slot, ctx.Err())
	}
	if time.Since(m.last.At) < time.Second {
		return m.last, nil
	}
	if m.conn == nil || m.conn.IsClosed() {
		conn, err := connect(ctx, m.o.URL, map[string]string{"statement_timeout": strconv.FormatInt(measureTimeout.Milliseconds(), 10)})
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

// Watching for the limit costs a query in each watchInterval; a warning that
// still holds is repeated after repeatWarning.
const (
	watchInterval = 10 * time.Second
	repeatWarning = 10 * time.Minute
)

// Run warns, until ctx ends, while the server keeps more log than limit bytes
// because of the slot: its disk may fill, or it may give the slot up.
func (m *Monitor) Run(ctx context.Context, limit int64) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var warned time.Time
	for {
		lag, err := m.Measure(ctx)
		switch {
		case err != nil: // the relay itself says that the database is away
		case lag.Retained > limit && time.Since(warned) >= repeatWarning:
			warned = time.Now()
			m.o.Logger.Warn("the server keeps much log for the replication slot", "slot", m.o.Slot, "retained_bytes", lag.Retained,
				"limit_bytes", limit, "unconfirmed_bytes", lag.Bytes, "bytes_until_the_slot_is_lost", lag.safe(), "wal_status", lag.Status,
				"see", "SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start")
		case lag.Retained <= limit && !warned.IsZero():
			warned = time.Time{}
			m.o.Logger.Info("the server keeps little log for the replication slot again", "slot", m.o.Slot, "retained_bytes", lag.Retained, "limit_bytes", limit)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// safe is SafeBytes for a log.
func (l Lag) safe() any {
	if l.SafeBytes < 0 {
		return "no limit (max_slot_wal_keep_size)"
	}
	return l.SafeBytes
}

// Close ends the monitor's session.
func (m *Monitor) Close() {
	m.turn <- struct{}{}
	defer func() { <-m.turn }()
	if m.conn != nil {
		closeConn(m.conn)
		m.conn = nil
	}
}

var (
	_ relay.Source  = (*Source)(nil)
	_ relay.Journal = (*Journal)(nil)
)
