package bench

import (
	"context"
	"errors"
	"fmt"
)

// memory measures what an idle connection keeps resident, once the garbage of
// its handshake has been collected.
func (b *bench) memory(ctx context.Context, row *Row) error {
	n := b.affordable(row, b.scale.MemoryConnections)
	b.progress("memory: %d idle connections, the floor, WebSocket and SSE", n)
	f, err := b.startBare(ctx)
	if err != nil {
		return err
	}
	c := newCrowd(f.child, f.address)
	c.bare = true
	floor, err := b.perConnection(ctx, c, n, f.tidy, func(int) visitor { return visitor{after: -1} })
	err = errors.Join(err, f.stop())
	if err != nil {
		return fmt.Errorf("the floor: %w", err)
	}
	db, err := b.newDatabase(ctx)
	if err != nil {
		return err
	}
	who, err := b.visitors(n, -1, lonelyCadet)
	if err != nil {
		return err
	}
	const floorIs = "a gorilla connection with nothing around it"
	for _, transport := range []struct {
		name  string
		sse   bool
		bound float64 // KiB
	}{{"WebSocket", false, 10}, {"SSE", true, 12}} {
		d, err := b.serve(ctx, db)
		if err != nil {
			return err
		}
		c := newCrowd(d.child, d.public)
		c.sse = transport.sse
		figure, err := b.perConnection(ctx, c, n, d.tidy, who)
		err = errors.Join(err, d.stop())
		if err != nil {
			return fmt.Errorf("%s: %w", transport.name, err)
		}
		row.add(transport.name+", a connection", "KiB", figure, floor, floorIs, below(transport.bound, "KiB"))
	}
	row.note("resident memory that %d connections add, after a collection of garbage and when it has settled", n)
	return nil
}

// lonelyCadet is a cadet, in groups that nobody else is in but for the role's.
func lonelyCadet(i int) (user int64, role string, cadet int64) {
	return int64(1000 + i), "cadet", int64(1 + i)
}

// perConnection is how much memory n connections add to a server, each, in KiB.
func (b *bench) perConnection(ctx context.Context, c *crowd, n int, tidy func(context.Context) error, who func(int) visitor) (float64, error) {
	defer c.leave()
	before, err := c.target.settled(ctx, tidy)
	if err != nil {
		return 0, err
	}
	if err := c.join(ctx, n, parallelDials, who); err != nil {
		return 0, err
	}
	after, err := c.target.settled(ctx, tidy)
	if err != nil {
		return 0, err
	}
	return float64(after-before) / float64(n) / 1024, c.verifyEach(func(*client) int64 { return 0 })
}
