package bench

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// meter measures what something costs: the server under measurement, this
// process, Postgres if it is the bench's own, and the machine.
type meter struct {
	b      *bench
	target *child
	begun  time.Time
	before costs
}

// costs are CPU times since processes began, and the machine's since it booted.
type costs struct {
	target, load, postgres time.Duration
	busy, all              time.Duration // of all cores together
}

// usage is what something has cost.
type usage struct {
	wall time.Duration
	costs
}

// begin starts measuring.
func (b *bench) begin(target *child) (*meter, error) {
	before, err := b.costs(target)
	return &meter{b: b, target: target, begun: time.Now(), before: before}, err
}

// end stops measuring. It may be called more than once.
func (m *meter) end() (usage, error) {
	u := usage{wall: time.Since(m.begun)}
	now, err := m.b.costs(m.target)
	if err != nil {
		return u, err
	}
	u.costs = costs{
		target: now.target - m.before.target, load: now.load - m.before.load, postgres: now.postgres - m.before.postgres,
		busy: now.busy - m.before.busy, all: now.all - m.before.all,
	}
	return u, nil
}

func (b *bench) costs(target *child) (c costs, err error) {
	if c.target, err = target.cpu(); err != nil {
		return c, err
	}
	if c.load, err = cpuTime(os.Getpid()); err != nil {
		return c, err
	}
	if b.server.own != nil {
		if c.postgres, err = postgresTime(b.server.own.DataDir()); err != nil {
			return c, err
		}
	}
	c.busy, c.all, err = machineTime()
	return c, err
}

// busyBefore is what of the machine is used before anything is measured, in
// percent.
func (b *bench) busyBefore(ctx context.Context) (float64, error) {
	busy, all, err := machineTime()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(busyTime):
	}
	busyThen, allThen, err := machineTime()
	if err != nil || allThen == all {
		return 0, err
	}
	return 100 * float64(busyThen-busy) / float64(allThen-all), nil
}

// busyTime is how long that is looked at.
const busyTime = 500 * time.Millisecond

// userTick is the unit of times below /proc (proc(5), sysconf _SC_CLK_TCK),
// which is the same on all architectures that Go knows.
const userTick = 10 * time.Millisecond

// machineTime reads the first line of /proc/stat: how long all cores were busy
// since the machine booted, and how long that is in all. The time that a virtual
// machine did not get counts as busy: it was not there to be used.
func machineTime() (busy, all time.Duration, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read the machine's load: %w", err)
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	const idle, ioWait, guest = 3, 4, 8
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read the machine's load in %q: %w", line, err)
		}
		if i >= guest {
			break // it is in the user's time already
		}
		all += time.Duration(n) * userTick
		if i != idle && i != ioWait {
			busy += time.Duration(n) * userTick
		}
	}
	return busy, all, nil
}

// postgresTime is the CPU time of a server's processes, those that have ended
// included.
func postgresTime(dataDir string) (sum time.Duration, err error) {
	pidFile, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid")) //nolint:gosec // the bench's own directory
	if err != nil {
		return 0, fmt.Errorf("find the process of Postgres: %w", err)
	}
	first, _, _ := strings.Cut(string(pidFile), "\n")
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path) //nolint:gosec // below /proc
		if err != nil {
			continue // it has ended
		}
		// The name may have any character in it; what is behind it has none of ")".
		at := strings.LastIndex(string(stat), ") ")
		fields := strings.Fields(string(stat)[at+2:])
		const parent, user, system, childUser, childSystem = 1, 11, 12, 13, 14
		if len(fields) <= childSystem {
			continue
		}
		counted := []int{user, system}
		switch first {
		case fields[parent]:
		case filepath.Base(filepath.Dir(path)):
			counted = append(counted, childUser, childSystem)
		default:
			continue
		}
		for _, i := range counted {
			n, err := strconv.ParseInt(fields[i], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", path, err)
			}
			sum += time.Duration(n) * userTick
		}
	}
	return sum, nil
}

// share is a part of what all cores could have done.
func (u usage) share(part time.Duration) float64 {
	return 100 * part.Seconds() / (u.wall.Seconds() * float64(runtime.NumCPU()))
}

// From which share on the machine counts as the limit of what was measured, and
// other programs as in the way of it, in percent of all cores.
const (
	saturated = 95
	disturbed = 10
)

// shortest is how long something must last for the machine's load to be told.
const shortest = 200 * time.Millisecond

// limit says whether the machine was the limit rather than the server that was
// measured, and who used it. It is empty if it was not.
func (u usage) limit(who string) string {
	if u.wall < shortest || u.all <= 0 {
		return ""
	}
	busy := 100 * u.busy.Seconds() / u.all.Seconds()
	others := max(0, busy-u.share(u.target)-u.share(u.load)-u.share(u.postgres))
	var found []string
	if busy >= saturated {
		found = append(found, fmt.Sprintf("all %d cores were busy", runtime.NumCPU()))
	}
	if others >= disturbed {
		found = append(found, "other programs were in the way")
	}
	// One core's worth of a single goroutine's work is no limit of the machine's,
	// but if the clients have used as much as the server, they set the pace.
	if u.share(u.load) > u.share(u.target) && busy >= saturated {
		found = append(found, "the load generator used more than what it measured")
	}
	if found == nil {
		return ""
	}
	return fmt.Sprintf("%s: %s (%s %.0f %%, load generator %.0f %%, Postgres %.0f %%, others %.0f %% of the machine)",
		who, strings.Join(found, ", "), who, u.share(u.target), u.share(u.load), u.share(u.postgres), others)
}

// memorySteady is how long, and within which share, a process's memory must stay
// as it is to count as settled; settleTimeout bounds the wait for that.
const (
	memorySteady  = time.Second
	memoryStep    = 200 * time.Millisecond
	memoryShare   = 0.003
	settleTimeout = 15 * time.Second
)

// settled is a process's resident memory, in bytes, once it no longer changes.
func (c *child) settled(ctx context.Context, tidy func(context.Context) error) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for range 2 { // the first makes free what the second gives back
		if err := tidy(ctx); err != nil {
			return 0, err
		}
	}
	var seen []int64
	for {
		n, err := c.memory("VmRSS")
		if err != nil {
			return 0, err
		}
		seen = append(seen, n)
		if steps := int(memorySteady / memoryStep); len(seen) > steps {
			last := seen[len(seen)-steps:]
			if float64(slices.Max(last)-slices.Min(last)) <= memoryShare*float64(n) {
				return n, nil
			}
		}
		select {
		case <-ctx.Done():
			return n, nil // it is what it is
		case <-c.ended:
			return 0, c.failure()
		case <-time.After(memoryStep):
		}
	}
}

// median of some figures; 0 of none.
func median(of []float64) float64 { return quantile(of, 0.5) }

// quantile of some figures.
func quantile(of []float64, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[int(math.Round(q*float64(len(sorted)-1)))]
}
