package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Goals of the storm: seconds for a million deliveries.
const (
	stormFromMemory  = 1.6
	stormFromJournal = 3.0
	stormQueries     = 100
)

// storm measures what it takes until all clients that come back at once have
// what they missed: of a relay that went on meanwhile, of one that was just
// restarted, and of one whose memory holds nothing of it.
func (b *bench) storm(ctx context.Context, row *Row) error {
	clients, events := b.scale.StormClients, b.scale.StormEvents
	b.progress("storm: %d clients come back, each has missed %d events", clients, events)
	millions := float64(clients) * float64(events) / 1e6
	floor, err := b.stormFloor(ctx, clients)
	if err != nil {
		return fmt.Errorf("the floor: %w", err)
	}
	floor *= millions
	db, err := b.newDatabase(ctx)
	if err != nil {
		return err
	}
	d, err := b.serve(ctx, db)
	if err != nil {
		return err
	}
	base, err := b.miss(ctx, db, d, events)
	var u usage
	if err == nil {
		u, err = b.comeBack(ctx, row, d, base)
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		return fmt.Errorf("from memory: %w", err)
	}
	const floorIs = "CPU of as many deliveries at the fan-out floor"
	report := func(name string, u usage, bound float64) {
		row.add(name+": time", "s", u.wall.Seconds(), floor, floorIs, below(bound*millions, "s"))
		row.add(name+": CPU", "s", u.target.Seconds(), floor, floorIs, atMost(1))
	}
	report("from memory", u, stormFromMemory)

	// Statistics are complete when the sessions have ended, the bench's own too.
	db.pool.Close()
	if _, _, err := b.stormRestarted(ctx, row, db, base, false); err != nil {
		return err
	}
	idle, _, err := b.stormRestarted(ctx, row, db, base, false, ringOfOne)
	if err != nil {
		return err
	}
	_, u, err = b.stormRestarted(ctx, row, db, base, true)
	if err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	report("after a restart", u, stormFromJournal)
	queries, u, err := b.stormRestarted(ctx, row, db, base, true, ringOfOne)
	if err != nil {
		return fmt.Errorf("from the journal: %w", err)
	}
	report("from the journal", u, stormFromJournal)
	row.add("from the journal: queries", "", float64(max(0, queries-idle)), float64((events+stormPage-1)/stormPage), "the pages that one client reads", below(stormQueries, ""))
	row.note("%d clients, each has missed the same %d events; from the first dial to the last replay_complete", clients, events)
	row.note("from the journal: memory.ring_events is 1, so that memory holds nothing of it; queries are the transactions of the database, less those of a start without clients")
	return nil
}

// ringOfOne leaves the relay nothing to replay from but the journal.
const ringOfOne = "SYNCRELAY_MEMORY_RING_EVENTS=1"

// stormPage is how many events a client is read at once at most.
const stormPage = 1024

// stormFloor is what a million deliveries cost to so many clients, in CPU-seconds.
func (b *bench) stormFloor(ctx context.Context, clients int) (float64, error) {
	server, err := b.startBare(ctx)
	if err != nil {
		return 0, err
	}
	var d deliveries
	err = b.deliverFloor(ctx, &Row{}, server, clients, max(1, b.scale.FanoutDeliveries/clients), 1, &d)
	return median(d.cost), errors.Join(err, server.stop())
}

// miss writes the events, and returns the one before them.
func (b *bench) miss(ctx context.Context, db *database, d *daemon, events int) (base int64, err error) {
	c, err := b.stormCrowd(ctx, d, 1, -1)
	if err != nil {
		return 0, err
	}
	defer c.leave()
	if err := db.exec(ctx, writeFanout, 1); err != nil {
		return 0, err
	}
	if err := c.await(ctx, 1); err != nil {
		return 0, err
	}
	base = c.clients[0].last
	for written := 0; written < events; written += ingestEach {
		if err := db.exec(ctx, writeFanout, min(ingestEach, events-written)); err != nil {
			return 0, err
		}
	}
	if err := c.await(ctx, int64(1+events)); err != nil {
		return 0, err
	}
	return base, c.verifyEach(func(*client) int64 { return int64(1 + events) })
}

// stormCrowd connects clients that missed what came after an event.
func (b *bench) stormCrowd(ctx context.Context, d *daemon, clients int, after int64) (*crowd, error) {
	who, err := b.visitors(clients, after, func(i int) (user int64, role string, cadet int64) { return int64(1 + i), fanoutRole, 0 })
	if err != nil {
		return nil, err
	}
	c := newCrowd(d.child, d.public)
	c.consecutive = true
	if err := c.join(ctx, clients, dialsAtOnce, who); err != nil {
		c.leave()
		return nil, err
	}
	return c, nil
}

// comeBack measures the storm.
func (b *bench) comeBack(ctx context.Context, row *Row, d *daemon, base int64) (u usage, err error) {
	clients, events := b.scale.StormClients, b.scale.StormEvents
	meter, err := b.begin(d.child)
	if err != nil {
		return u, err
	}
	c, err := b.stormCrowd(ctx, d, clients, base)
	if err != nil {
		return u, err
	}
	defer c.leave()
	if err := c.wait(ctx, "all clients to catch up", func() bool { return c.completed.Load() == int64(clients) }); err != nil {
		return u, err
	}
	if u, err = meter.end(); err != nil {
		return u, err
	}
	row.limit("the relay", u)
	for _, cl := range c.clients {
		if cl.replayed != int64(events) {
			return u, fmt.Errorf("client %d: replay_complete counts %d events of %d", cl.index+1, cl.replayed, events)
		}
	}
	return u, c.verifyEach(func(*client) int64 { return int64(events) })
}

// stormRestarted starts a relay, lets the clients come back or not, stops it, and
// returns how many transactions that took, and what the storm cost.
func (b *bench) stormRestarted(ctx context.Context, row *Row, db *database, base int64, storm bool, settings ...string) (transactions int64, u usage, err error) {
	before, err := db.transactions(ctx)
	if err != nil {
		return 0, u, err
	}
	d, err := b.serve(ctx, db, settings...)
	if err != nil {
		return 0, u, err
	}
	if storm {
		u, err = b.comeBack(ctx, row, d, base)
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		return 0, u, err
	}
	after, err := db.transactions(ctx)
	return after - before, u, err
}

// transactions is how many transactions the database has seen, once all of its
// sessions have ended: only then have all of them been counted.
func (db *database) transactions(ctx context.Context) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = db.server.administer(ctx, func(conn *pgx.Conn) error {
		for {
			var sessions int
			err := conn.QueryRow(ctx, `SELECT s.xact_commit, (SELECT count(*) FROM pg_stat_activity a WHERE a.datname = s.datname AND a.backend_type IN ('client backend', 'walsender'))
  FROM pg_stat_database s WHERE s.datname = $1`, db.name).Scan(&n, &sessions)
			if err != nil {
				return fmt.Errorf("count the transactions of database %s: %w", db.name, err)
			}
			if sessions == 0 {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for %d sessions of database %s to end: %w", sessions, db.name, context.Cause(ctx))
			case <-time.After(readyPause):
			}
		}
	})
	return n, err
}
