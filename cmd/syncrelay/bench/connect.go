package bench

import (
	"context"
	"errors"
	"fmt"
)

// dialsAtOnce is how many clients connect at a time when it is measured how fast
// they can: enough for a server to be always busy, and few enough for its queue
// of new connections.
const dialsAtOnce = 64

// connect measures how many clients a second are let in.
func (b *bench) connect(ctx context.Context, row *Row) error {
	n := b.affordable(row, b.scale.Connects)
	who, err := b.visitors(n, -1, lonelyCadet)
	if err != nil {
		return err
	}
	db, err := b.newDatabase(ctx)
	if err != nil {
		return err
	}
	var floor, relay deliveries
	for round := range b.scale.Rounds {
		b.progress("connect, round %d of %d: %d clients, the floor and then the relay", round+1, b.scale.Rounds, n)
		f, err := b.startBare(ctx)
		if err != nil {
			return err
		}
		c := newCrowd(f.child, f.address)
		c.bare = true
		err = b.arrive(ctx, row, "the floor", c, n, &floor, func(int) visitor { return visitor{after: -1} })
		err = errors.Join(err, f.stop())
		if err != nil {
			return fmt.Errorf("the floor: %w", err)
		}
		d, err := b.serve(ctx, db)
		if err != nil {
			return err
		}
		err = b.arrive(ctx, row, "the relay", newCrowd(d.child, d.public), n, &relay, who)
		err = errors.Join(err, d.stop())
		if err != nil {
			return err
		}
	}
	const floorIs = "gorilla's upgrade, no token"
	row.add("connections/s", "", median(relay.rate), median(floor.rate), floorIs, atLeast(0.7))
	row.add("CPU-s a million", "s", median(relay.cost), median(floor.cost), floorIs, noGoal())
	row.note("%d clients, %d at a time, with HS256 tokens, each until connection_established; the floor's until the upgrade", n, dialsAtOnce)
	return nil
}

// arrive measures the coming of a crowd.
func (b *bench) arrive(ctx context.Context, row *Row, name string, c *crowd, n int, into *deliveries, who func(int) visitor) error {
	defer c.leave()
	meter, err := b.begin(c.target)
	if err != nil {
		return err
	}
	if err := c.join(ctx, n, dialsAtOnce, who); err != nil {
		return err
	}
	u, err := meter.end()
	if err != nil {
		return err
	}
	into.add(n, u)
	row.limit(name, u)
	return c.verifyEach(func(*client) int64 { return 0 })
}
