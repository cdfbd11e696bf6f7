package bench

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// latencyWriters write rows one by one, each its share of the rate: a commit
// that waits for the disk must not hold up the others.
const latencyWriters = 4

// warmup is the share of rows that are written and not counted: connections are
// new, and caches cold.
const warmup = 0.1

// latency measures how long after its commit a row's event reaches a client. The
// time of the commit is the writer's: when its COMMIT has returned, by the
// machine's clock, for the relay as for the floor. Either may be earlier, as the
// server answers the writer and the slot at the same time; that counts as 0.
func (b *bench) latency(ctx context.Context, row *Row) error {
	s := b.scale
	db, err := b.newDatabase(ctx)
	if err != nil {
		return err
	}
	var floors, figures latencies
	for round := range s.Rounds {
		b.progress("latency, round %d of %d: %d rows/s for %s, the floor and then the relay", round+1, s.Rounds, s.LatencyRate, s.LatencyTime)
		if err := b.latencyFloor(ctx, db, &floors); err != nil {
			return fmt.Errorf("the floor: %w", err)
		}
		if err := b.latencyRelay(ctx, db, row, &figures); err != nil {
			return err
		}
	}
	const floorIs = "a bare pglogrepl reader has decoded the commit"
	row.add("median", "ms", figures.at(0.5), floors.at(0.5), floorIs, within(0.25, "ms"))
	row.add("99 %", "ms", figures.at(0.99), floors.at(0.99), floorIs, atMost(3))
	row.note("%d deliveries of %d rows at %d rows/s (%.0f reached) to 1 subscriber and %d cadets, from the return of the writer's COMMIT", figures.count(), figures.rows, s.LatencyRate, figures.rate(), s.LatencyCadets)
	return nil
}

// latencies of all rounds.
type latencies struct {
	median, slow []float64 // of each round
	of           []float64 // of the round
	all, rows    int
	took         time.Duration
}

// take ends a round.
func (l *latencies) take(load *paced) {
	l.median, l.slow = append(l.median, quantile(l.of, 0.5)), append(l.slow, quantile(l.of, 0.99))
	l.all, l.rows, l.took = l.all+len(l.of), l.rows+len(load.committed), l.took+load.took
	l.of = nil
}

func (l *latencies) at(q float64) float64 {
	if q == 0.5 {
		return median(l.median)
	}
	return median(l.slow)
}

func (l *latencies) count() int { return l.all }

func (l *latencies) rate() float64 { return float64(l.rows) / l.took.Seconds() }

// add adds a latency, unless it is of the warm-up.
func (l *latencies) add(load *paced, n, at int64) {
	if float64(n) >= warmup*float64(len(load.committed)) {
		l.of = append(l.of, max(0, float64(at-load.committed[n])/1e6))
	}
}

// newLoad is rows about so many cadets in turn.
func (b *bench) newLoad(cadets int, lasting time.Duration) *paced {
	rate := b.scale.LatencyRate
	return &paced{
		rate: rate, committed: make([]int64, int(float64(rate)*lasting.Seconds())),
		sql:       `INSERT INTO sync_events (event_type, cadet_id, payload) VALUES ('grade_update', $1, jsonb_build_object('n', $2::bigint, 'merits', 3))`,
		arguments: func(n int) []any { return []any{1 + n%cadets, n} },
	}
}

func (b *bench) latencyFloor(ctx context.Context, db *database, floors *latencies) (err error) {
	load := b.newLoad(b.scale.LatencyCadets, b.scale.LatencyTime)
	slot, err := db.newSlot(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	reader, err := b.startReader(ctx, db, slot, len(load.committed), true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.stop()) }()
	if err := load.run(ctx, db, latencyWriters); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	result, err := reader.result(ctx)
	if err != nil {
		return err
	}
	for n, at := range result.Times {
		floors.add(load, n, at)
	}
	floors.take(load)
	return nil
}

func (b *bench) latencyRelay(ctx context.Context, db *database, row *Row, figures *latencies) (err error) {
	s, load := b.scale, b.newLoad(b.scale.LatencyCadets, b.scale.LatencyTime)
	d, err := b.serve(ctx, db)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	who, err := b.visitors(1+s.LatencyCadets, -1, func(i int) (user int64, role string, cadet int64) {
		if i == 0 {
			return 1, "admin", 0
		}
		return int64(100 + i), "cadet", int64(i)
	})
	if err != nil {
		return err
	}
	c := newCrowd(d.child, d.public)
	defer c.leave()
	received := make([]stamp, 2*len(load.committed))
	var next atomic.Int64
	c.watch = func(cl *client, id int64, text []byte, at int64) error {
		n, ok := number(text, rowKey)
		if !ok || n >= int64(len(load.committed)) {
			return fmt.Errorf("event %d is none of the bench's: %s", id, text)
		}
		if cl.index > 0 && 1+int(n)%s.LatencyCadets != cl.index {
			return fmt.Errorf("event %d is not this cadet's: %s", id, text)
		}
		i := next.Add(1) - 1
		if i >= int64(len(received)) {
			return errors.New("more events come than were written")
		}
		received[i] = stamp{n, at}
		return nil
	}
	if err := c.join(ctx, 1+s.LatencyCadets, 4, who); err != nil {
		return err
	}
	meter, err := b.begin(d.child)
	if err != nil {
		return err
	}
	if err := load.run(ctx, db, latencyWriters); err != nil {
		return err
	}
	u, err := meter.end()
	if err != nil {
		return err
	}
	row.limit("the relay", u)
	if err := c.await(ctx, int64(len(received))); err != nil {
		return err
	}
	if err := c.verifyEach(func(cl *client) int64 {
		if cl.index == 0 {
			return int64(len(load.committed))
		}
		return int64((len(load.committed) + s.LatencyCadets - cl.index) / s.LatencyCadets)
	}); err != nil {
		return err
	}
	for _, r := range received {
		figures.add(load, r.n, r.at)
	}
	figures.take(load)
	return nil
}

// stamp is when a client has received a row's event.
type stamp struct{ n, at int64 }
