package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// flat is what the cost of an event may become as the work grows: within what
// two runs of the same differ by.
const flat = 1.2

// costFew is how many connections there are where they are few.
const costFew = 10

// groupsPerClient is how many groups a client of the many groups is in that
// nobody else is in: its user's, its role's and its cadet's.
const groupsPerClient = 3

// cost measures what one event costs the relay, in CPU, where there is little
// besides, and where there is much of one thing: connections that don't receive
// it, groups, events in the journal.
func (b *bench) cost(ctx context.Context, row *Row) error {
	db, err := b.newDatabase(ctx)
	if err != nil {
		return err
	}
	connections := b.affordable(row, b.scale.CostConnections)
	grouped := b.affordable(row, (b.scale.CostGroups+groupsPerClient-1)/groupsPerClient)
	sameCadet := func(i int) (user int64, role string, cadet int64) { return int64(1000 + i), "cadet", bystander }
	ownGroups := func(i int) (user int64, role string, cadet int64) {
		return int64(1000 + i), fmt.Sprintf("role_%d", i), int64(bystander + 1 + i)
	}
	var few, many, groups, journal []float64
	for round := range b.scale.Rounds {
		b.progress("cost, round %d of %d: an event's CPU with %d and %d connections, with %d groups, and with a journal of %d", round+1, b.scale.Rounds, costFew, connections, grouped*groupsPerClient, b.scale.ArchiveEvents)
		for _, m := range []struct {
			into *[]float64
			n    int
			who  func(int) (user int64, role string, cadet int64)
		}{{&few, costFew, sameCadet}, {&many, connections, sameCadet}, {&groups, grouped, ownGroups}} {
			figure, err := b.costAmong(ctx, row, db, m.n, m.who)
			if err != nil {
				return fmt.Errorf("with %d connections: %w", m.n, err)
			}
			*m.into = append(*m.into, figure)
		}
		archive, err := b.theArchive(ctx)
		if err != nil {
			return err
		}
		figure, err := b.costAmong(ctx, row, archive, costFew, sameCadet)
		if err != nil {
			return fmt.Errorf("with a long journal: %w", err)
		}
		journal = append(journal, figure)
	}
	floor, floorIs := median(few), fmt.Sprintf("%d connections, 1 group, an empty journal", costFew)
	row.add(fmt.Sprintf("an event among %d connections", connections), "µs", median(many), floor, floorIs, atMost(flat))
	row.add(fmt.Sprintf("an event among %d groups", grouped*groupsPerClient), "µs", median(groups), floor, floorIs, atMost(flat))
	row.add(fmt.Sprintf("an event after %d others", b.scale.ArchiveEvents), "µs", median(journal), floor, floorIs, atMost(flat))
	row.note("CPU of the relay for each of %d rows/s, each in its own transaction, to one client, less what it uses without rows before and after", b.scale.LatencyRate)
	return nil
}

// bystander is a cadet of whom nothing is written.
const bystander = 1_000_000

// costAmong is what an event costs that one client receives, in µs, while others
// are connected that don't.
func (b *bench) costAmong(ctx context.Context, row *Row, db *database, others int, who func(int) (user int64, role string, cadet int64)) (figure float64, err error) {
	d, err := b.serve(ctx, db, keepArchive)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	visitors, err := b.visitors(others, -1, who)
	if err != nil {
		return 0, err
	}
	idle := newCrowd(d.child, d.public)
	defer idle.leave()
	if err := idle.join(ctx, others, parallelDials, visitors); err != nil {
		return 0, err
	}
	one, err := b.subscribe(ctx, d, -1)
	if err != nil {
		return 0, err
	}
	defer one.leave()
	if err := d.tidy(ctx); err != nil {
		return 0, err
	}
	before, err := b.backgroundCPU(ctx, d)
	if err != nil {
		return 0, err
	}
	meter, err := b.begin(d.child)
	if err != nil {
		return 0, err
	}
	load := b.newLoad(1, b.scale.CostTime)
	if err := load.run(ctx, db, latencyWriters); err != nil {
		return 0, err
	}
	if err := one.await(ctx, int64(len(load.committed))); err != nil {
		return 0, err
	}
	u, err := meter.end()
	if err != nil {
		return 0, err
	}
	row.limit("the relay", u)
	if err := one.verifyEach(func(*client) int64 { return int64(len(load.committed)) }); err != nil {
		return 0, err
	}
	if err := idle.verifyEach(func(*client) int64 { return 0 }); err != nil {
		return 0, err
	}
	// Clients who came together begin to be pinged together, perhaps only by now.
	after, err := b.backgroundCPU(ctx, d)
	if err != nil {
		return 0, err
	}
	used := u.target.Seconds() - (before+after)/2*u.wall.Seconds()
	return used / float64(len(load.committed)) * 1e6, nil
}

// backgroundTime is how long at a time it is looked at what the relay does without
// rows, and calm the share of a core below which it is at work on nothing: after its
// start on a long journal it reads the newest events into memory.
const (
	backgroundTime = time.Second
	calm           = 0.2
)

// backgroundCPU waits until the relay is calm, and is the share of a core that it uses
// then.
func (b *bench) backgroundCPU(ctx context.Context, d *daemon) (share float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		meter, err := b.begin(d.child)
		if err != nil {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the relay is busy with %.0f %% of a core although nobody writes: %w", 100*share, ctx.Err())
		case <-time.After(backgroundTime):
		}
		u, err := meter.end()
		if err != nil {
			return 0, err
		}
		if share = u.target.Seconds() / u.wall.Seconds(); share < calm {
			return share, nil
		}
	}
}
