package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ingest measures how many rows a second pass through, beside their writers and
// from a backlog that was written while nobody was reading, to one subscriber who
// gets all. For the relay that is with its journal.
func (b *bench) ingest(ctx context.Context, row *Row) error {
	var floor, relay ingested
	for round := range b.scale.Rounds {
		b.progress("ingest, round %d of %d: %d rows live and from a backlog, the floor and then the relay", round+1, b.scale.Rounds, b.scale.IngestRows)
		db, err := b.newDatabase(ctx)
		if err != nil {
			return err
		}
		if err := b.ingestFloor(ctx, db, &floor); err != nil {
			return fmt.Errorf("the floor: %w", err)
		}
		if err := b.ingestRelay(ctx, db, row, &relay); err != nil {
			return err
		}
		if err := db.drop(ctx); err != nil {
			return err
		}
	}
	const floorIs = "a bare pglogrepl reader"
	row.add("live, rows/s", "", median(relay.live), median(floor.live), floorIs, atLeast(0.6))
	row.add("from a backlog, rows/s", "", median(relay.backlog), median(floor.backlog), floorIs, atLeast(0.6))
	row.add("live, behind the last COMMIT", "s", median(relay.behind), median(floor.behind), floorIs, noGoal())
	row.add("memory at most", "MiB", median(relay.peak), median(floor.peak), floorIs, below(ingestMemory, "MiB"))
	row.note("%d rows by %d writers, %d a transaction, every one of them received once and in order; a backlog counts from the start of the process, until one client has it all, which resumes as soon as it is let in", b.scale.IngestRows, ingestWriters, ingestEach)
	return nil
}

// Who writes, and how many rows in each transaction.
const (
	ingestWriters = 4
	ingestEach    = 100
)

// ingestMemory is what a relay with a full ring of 64 MiB may have resident, in
// MiB, however many rows pass through it.
const ingestMemory = 256

// ingested are the figures of each round.
type ingested struct{ live, backlog, behind, peak []float64 }

func (in *ingested) addLive(load *bulk, last int64) {
	in.live = append(in.live, float64(load.rows)/seconds(last-load.first))
	in.behind = append(in.behind, max(0, seconds(last-load.last)))
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }

const mib = 1 << 20

func (b *bench) newBulk() *bulk { return &bulk{rows: b.scale.IngestRows, each: ingestEach} }

func (b *bench) ingestFloor(ctx context.Context, db *database, into *ingested) (err error) {
	slot, err := db.newSlot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	load := b.newBulk()
	r, err := b.startReader(ctx, db, slot, load.rows, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := load.run(ctx, db); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	result, err := r.result(ctx)
	if err != nil {
		return err
	}
	into.addLive(load, result.Last)
	into.peak = append(into.peak, float64(r.peak)/mib)

	// A slot of its own, as the reader confirms nothing.
	if err := db.dropSlot(ctx, slot); err != nil {
		return err
	}
	if slot, err = db.newSlot(ctx); err != nil {
		return err
	}
	if err := load.run(ctx, db); err != nil {
		return err
	}
	begun := time.Now()
	again, err := b.startReader(ctx, db, slot, load.rows, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, again.stop()) }()
	if result, err = again.result(ctx); err != nil {
		return err
	}
	into.backlog = append(into.backlog, float64(load.rows)/seconds(result.Last-begun.UnixNano()))
	return nil
}

func (b *bench) ingestRelay(ctx context.Context, db *database, row *Row, into *ingested) error {
	d, err := b.serve(ctx, db)
	if err != nil {
		return err
	}
	last, err := b.ingestLive(ctx, db, d, row, into)
	var peak int64
	if err == nil {
		peak, err = d.memory("VmHWM")
	}
	if err == nil {
		err = db.settleSlot(ctx)
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		return fmt.Errorf("live: %w", err)
	}
	load := b.newBulk()
	if err := load.run(ctx, db); err != nil {
		return err
	}
	begun := time.Now()
	if d, err = b.launch(ctx, db); err != nil {
		return err
	}
	at, err := b.ingestBacklog(ctx, d, load, last)
	if err == nil {
		var second int64
		second, err = d.memory("VmHWM")
		peak = max(peak, second)
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		return fmt.Errorf("from a backlog: %w", err)
	}
	into.backlog = append(into.backlog, float64(load.rows)/at.Sub(begun).Seconds())
	into.peak = append(into.peak, float64(peak)/mib)
	return nil
}

// ingestLive returns the last event of what was written.
func (b *bench) ingestLive(ctx context.Context, db *database, d *daemon, row *Row, into *ingested) (last int64, err error) {
	c, err := b.subscribe(ctx, d, -1)
	if err != nil {
		return 0, err
	}
	defer c.leave()
	load := b.newBulk()
	meter, err := b.begin(d.child)
	if err != nil {
		return 0, err
	}
	if err := load.run(ctx, db); err != nil {
		return 0, err
	}
	if err := c.await(ctx, int64(load.rows)); err != nil {
		return 0, err
	}
	into.addLive(load, time.Now().UnixNano())
	u, err := meter.end()
	if err != nil {
		return 0, err
	}
	row.limit("the relay", u)
	one := c.clients[0]
	err = c.verifyEach(func(*client) int64 { return int64(load.rows) })
	return one.last, err
}

// ingestBacklog returns when the client had everything.
func (b *bench) ingestBacklog(ctx context.Context, d *daemon, load *bulk, after int64) (at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := b.comeAgain(ctx, d, after)
	if err != nil {
		return at, err
	}
	defer c.leave()
	if err := c.await(ctx, int64(load.rows)); err != nil {
		return at, err
	}
	at = time.Now()
	return at, c.verifyEach(func(*client) int64 { return int64(load.rows) })
}

// comeAgain connects a client that tries again and again until it is let in, as
// clients do while a relay starts.
func (b *bench) comeAgain(ctx context.Context, d *daemon, after int64) (*crowd, error) {
	for {
		c, err := b.subscribe(ctx, d, after)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait to be let in: %w", err)
		case <-d.ended:
			return nil, d.failure()
		case <-time.After(readyPause):
		}
	}
}

// subscribe connects one client that is sent everything there is.
func (b *bench) subscribe(ctx context.Context, d *daemon, after int64) (*crowd, error) {
	who, err := b.visitors(1, after, func(int) (user int64, role string, cadet int64) { return 1, "admin", 0 })
	if err != nil {
		return nil, err
	}
	c := newCrowd(d.child, d.public)
	c.consecutive = true
	if err := c.join(ctx, 1, 1, who); err != nil {
		c.leave()
		return nil, err
	}
	return c, nil
}
