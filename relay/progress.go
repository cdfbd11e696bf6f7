package relay

import (
	"fmt"
	"time"
)

// every calls tell every so often, with the time since the beginning, until the
// function that it returns is called; that returns when tell does not run any more.
func every(interval time.Duration, tell func(since time.Duration)) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	begun := time.Now()
	go func() {
		defer close(ended)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case now := <-tick.C:
				tell(now.Sub(begun))
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// backlogReason is what the status says while a backlog is read.
const backlogReason = "reading the rows that were there before the replication slot"

// tellBacklog tells how many rows of a backlog have been read.
func (r *Relay) tellBacklog(rows int64, since time.Duration) {
	if rows == 0 {
		r.logger.Info("reading a backlog: the database is sorting it", "for", since.Round(time.Second))
		return
	}
	r.phase(Recovering, fmt.Sprintf("%s: %d so far", backlogReason, rows))
	r.logger.Info("reading a backlog", "rows", rows, "rows_per_second", int64(float64(rows)/since.Seconds()), "for", since.Round(time.Second))
}

// catchUpTeller tells now and then how far a relay still has to read, until it has
// caught up.
type catchUpTeller struct {
	interval   time.Duration
	begun      time.Time
	last       time.Time
	from, goal LSN
}

// look tells, if it is time to.
func (c *catchUpTeller) look(r *Relay, received LSN, now time.Time) {
	if c.begun.IsZero() {
		c.begun, c.last, c.from = now, now, received
	}
	if now.Sub(c.last) < c.interval || received >= c.goal {
		return
	}
	c.last = now
	r.logger.Info("catching up", "bytes_left", uint64(c.goal-received),
		"bytes_per_second", int64(float64(received-c.from)/now.Sub(c.begun).Seconds()), "for", now.Sub(c.begun).Round(time.Second))
}
