package bench

import (
	"context"
	"errors"
	"fmt"
)

// The events of the fan-out: their type, and their payload as jsonb writes it.
const (
	fanoutType    = "parade"
	fanoutPayload = `{"at": "2026-02-01T09:00:00Z", "place": "the north field"}`
	fanoutRole    = "cadet"
)

const writeFanout = `INSERT INTO sync_events (event_type, roles, payload)
SELECT '` + fanoutType + `', '{` + fanoutRole + `}', '` + fanoutPayload + `' FROM generate_series(1, $1::int)`

// fanoutWindow is how many events, or bursts of them, are on their way at a time:
// one that is being written to the last clients and one that follows it, so that
// nothing waits for a writer's round trip to Postgres, which latency measures.
const fanoutWindow = 2

// parallelDials is how many clients connect at a time where that is not what is
// measured.
const parallelDials = 16

// fanout measures how many deliveries a second reach a group of each size, and
// what they cost, if each event comes alone.
func (b *bench) fanout(ctx context.Context, row *Row) error {
	for _, size := range b.scale.FanoutSizes {
		size = b.affordable(row, size)
		floor, relay, err := b.deliver(ctx, row, size, 1, b.scale.FanoutDeliveries)
		if err != nil {
			return fmt.Errorf("a group of %d: %w", size, err)
		}
		const floorIs = "gorilla connections and a prepared frame"
		row.add(fmt.Sprintf("group of %d: deliveries/s", size), "", median(relay.rate), median(floor.rate), floorIs, atLeast(0.95))
		row.add(fmt.Sprintf("group of %d: CPU-s a million", size), "s", median(relay.cost), median(floor.cost), floorIs, atMost(1.1))
	}
	row.note("each client is in the one group; %d events are on their way at a time", fanoutWindow)
	return nil
}

// bursts measures the same with events that come together.
func (b *bench) bursts(ctx context.Context, row *Row) error {
	for _, size := range b.scale.FanoutSizes {
		size = b.affordable(row, size)
		floor, relay, err := b.deliver(ctx, row, size, b.scale.Burst, b.scale.BurstDeliveries)
		if err != nil {
			return fmt.Errorf("a group of %d: %w", size, err)
		}
		const floorIs = "the same, one write a frame"
		row.add(fmt.Sprintf("group of %d: deliveries/s", size), "", median(relay.rate), median(floor.rate), floorIs, atLeast(2))
		row.add(fmt.Sprintf("group of %d: CPU-s a million", size), "s", median(relay.cost), median(floor.cost), floorIs, atMost(1))
	}
	row.note("%d events a transaction, %d transactions on their way at a time", b.scale.Burst, fanoutWindow)
	return nil
}

// deliveries are the figures of each round.
type deliveries struct {
	rate []float64 // deliveries a second
	cost []float64 // CPU-seconds of the server a million deliveries
}

func (d *deliveries) add(n int, u usage) {
	d.rate = append(d.rate, float64(n)/u.wall.Seconds())
	d.cost = append(d.cost, u.target.Seconds()/float64(n)*1e6)
}

// deliver measures the fan-out to a group, of the floor and of the relay.
func (b *bench) deliver(ctx context.Context, row *Row, size, burst, total int) (floor, relay deliveries, err error) {
	rounds := max(1, total/size/burst)
	b.progress("fan-out to %d clients, %d × %d events: the floor and then the relay", size, rounds, burst)
	server, err := b.startBare(ctx)
	if err != nil {
		return floor, relay, err
	}
	err = b.deliverFloor(ctx, row, server, size, rounds, burst, &floor)
	err = errors.Join(err, server.stop())
	if err != nil {
		return floor, relay, fmt.Errorf("the floor: %w", err)
	}
	db, err := b.newDatabase(ctx)
	if err != nil {
		return floor, relay, err
	}
	d, err := b.serve(ctx, db)
	if err != nil {
		return floor, relay, err
	}
	err = b.deliverRelay(ctx, row, db, d, size, rounds, burst, &relay)
	return floor, relay, errors.Join(err, d.stop())
}

func (b *bench) deliverFloor(ctx context.Context, row *Row, server *bare, size, rounds, burst int, into *deliveries) error {
	c := newCrowd(server.child, server.address)
	c.bare, c.consecutive = true, true
	defer c.leave()
	if err := c.join(ctx, size, parallelDials, func(int) visitor { return visitor{after: -1} }); err != nil {
		return err
	}
	return b.deliverTo(ctx, row, "the floor", c, rounds, burst, into, func(_ context.Context, n int) error { return server.send(n, size) })
}

func (b *bench) deliverRelay(ctx context.Context, row *Row, db *database, d *daemon, size, rounds, burst int, into *deliveries) error {
	who, err := b.visitors(size, -1, func(i int) (user int64, role string, cadet int64) { return int64(i + 1), fanoutRole, 0 })
	if err != nil {
		return err
	}
	c := newCrowd(d.child, d.public)
	c.consecutive = true
	defer c.leave()
	if err := c.join(ctx, size, parallelDials, who); err != nil {
		return err
	}
	return b.deliverTo(ctx, row, "the relay", c, rounds, burst, into, func(ctx context.Context, n int) error {
		return db.exec(ctx, writeFanout, n)
	})
}

// deliverTo measures the rounds of one crowd. A first event for everybody tells
// from where on IDs are counted.
func (b *bench) deliverTo(ctx context.Context, row *Row, name string, c *crowd, rounds, burst int, into *deliveries, publish func(ctx context.Context, n int) error) error {
	if err := publish(ctx, 1); err != nil {
		return err
	}
	if err := c.await(ctx, int64(len(c.clients))); err != nil {
		return err
	}
	events := int64(1)
	for range b.scale.Rounds {
		meter, err := b.begin(c.target)
		if err != nil {
			return err
		}
		err = c.drive(ctx, c.clients[0].last, rounds, burst, fanoutWindow, func(ctx context.Context) error { return publish(ctx, burst) })
		if err != nil {
			return err
		}
		u, err := meter.end()
		if err != nil {
			return err
		}
		into.add(rounds*burst*len(c.clients), u)
		row.limit(name, u)
		events += int64(rounds * burst)
	}
	return c.verifyEach(func(*client) int64 { return events })
}
