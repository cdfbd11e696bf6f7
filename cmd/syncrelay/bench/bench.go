package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Options of a run.
type Options struct {
	// Program is this program's own file, which is run as the relay and as floors.
	Program string
	// Environ is the environment of what is run. The relay's settings are left out
	// of it: the bench gives its own.
	Environ []string
	// Scale is how large the measurements are.
	Scale Scale
	// Rows are the rows of the table to measure, by name; empty is all.
	Rows []string
	// DatabaseURL is a Postgres to measure on, as a role that may create databases
	// and roles and start replication; if it is empty one is started for the run.
	DatabaseURL string
	// PostgresBin holds the programs of the Postgres that is started; if it is
	// empty they are looked for.
	PostgresBin string
	// Sign makes a token of a user (cadet 0: not a cadet) under a secret.
	Sign func(secret string, user int64, role string, cadet int64) (string, error)
	// Progress is told what is being done; nil for nobody.
	Progress io.Writer
}

// kind is a row of the table and what measures it.
type kind struct {
	name, title string
	measure     func(*bench, context.Context, *Row) error
}

// kinds are the rows in the order of the table.
func kinds() []kind {
	return []kind{
		{"latency", "commit to client, one subscriber and cadets in their own groups", (*bench).latency},
		{"ingest", "rows of several writers to one subscriber who gets all", (*bench).ingest},
		{"fanout", "fan-out to one group, one event at a time", (*bench).fanout},
		{"bursts", "fan-out to one group, in bursts", (*bench).bursts},
		{"memory", "resident memory of an idle authenticated connection", (*bench).memory},
		{"storm", "replay storm: all clients come back at once", (*bench).storm},
		{"archive", "replay of one cadet's events out of a long log", (*bench).archive},
		{"connect", "clients that connect as fast as they can, with tokens", (*bench).connect},
		{"cost", "cost of an event as the work grows", (*bench).cost},
	}
}

// Names are the names of the table's rows.
func Names() (names []string) {
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// bench is a run.
type bench struct {
	o         Options
	environ   []string
	scale     Scale
	begun     time.Time
	server    *server
	databases []*database
	archived  *database // the one with a long log, once it is made
	files     int       // that a process may have open
}

// Run measures. If clients have received what they should not have, or a
// measurement has failed, that is in the row and does not stop the others; the
// error is for what lets nothing be measured. When it returns nothing that it has
// started runs any more, and nothing that it has made is left.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	if err := supported(); err != nil {
		return nil, err
	}
	chosen, err := choose(o.Rows)
	if err != nil {
		return nil, err
	}
	b := &bench{o: o, scale: o.Scale, begun: time.Now(), environ: withoutSettings(o.Environ)}
	files, err := raiseFiles()
	if err != nil {
		return nil, err
	}
	b.files = int(min(files, 1<<30)) // which bounds it
	if b.server, err = b.startServer(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.stop(ctx)) }()
	report = &Report{Scale: o.Scale.Name, Started: b.begun, Machine: b.machine()}
	if report.Machine.Busy, err = b.busyBefore(ctx); err != nil {
		return nil, err
	}
	for _, k := range chosen {
		row := &Row{Name: k.name, Title: k.title}
		at := time.Now()
		if err := b.measure(ctx, k, row); err != nil && ctx.Err() == nil {
			row.Error = err.Error()
		}
		err := errors.Join(b.dropDatabases(ctx, b.archived), ctx.Err())
		if err != nil {
			return nil, err
		}
		row.Seconds = time.Since(at).Seconds()
		report.Rows = append(report.Rows, row)
	}
	report.Seconds = time.Since(b.begun).Seconds()
	return report, nil
}

// rowTimeout bounds the measurement of one row of the table, whatever may hang.
const rowTimeout = 15 * time.Minute

func (b *bench) measure(ctx context.Context, k kind, row *Row) error {
	ctx, cancel := context.WithTimeoutCause(ctx, rowTimeout, fmt.Errorf("the measurement took longer than %s", rowTimeout))
	defer cancel()
	return k.measure(b, ctx, row)
}

// choose finds the rows of the names.
func choose(names []string) (chosen []kind, err error) {
	for _, name := range names {
		if !slices.Contains(Names(), name) {
			return nil, fmt.Errorf("there is no row %q; the rows are %s", name, strings.Join(Names(), ", "))
		}
	}
	for _, k := range kinds() {
		if len(names) == 0 || slices.Contains(names, k.name) {
			chosen = append(chosen, k)
		}
	}
	return chosen, nil
}

func withoutSettings(environ []string) (kept []string) {
	for _, entry := range environ {
		if !strings.HasPrefix(entry, "SYNCRELAY_") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// dropDatabases drops what the bench has made, but for one.
func (b *bench) dropDatabases(ctx context.Context, but *database) (err error) {
	for _, db := range b.databases {
		if db != but {
			err = errors.Join(err, db.drop(ctx))
		}
	}
	return err
}

func (b *bench) stop(ctx context.Context) error {
	return errors.Join(b.dropDatabases(ctx, nil), b.server.stop(ctx))
}

// progress tells what is being done.
func (b *bench) progress(format string, args ...any) {
	if b.o.Progress != nil {
		fmt.Fprintf(b.o.Progress, "[%5.1fs] %s\n", time.Since(b.begun).Seconds(), fmt.Sprintf(format, args...))
	}
}

// token signs a token of a client.
func (b *bench) token(user int64, role string, cadet int64) (string, error) {
	return b.o.Sign(secret, user, role, cadet)
}

// visitors signs tokens for clients, before anything is measured.
func (b *bench) visitors(n int, after int64, who func(i int) (user int64, role string, cadet int64)) (func(index int) visitor, error) {
	tokens := make([]string, n)
	for i := range tokens {
		user, role, cadet := who(i)
		var err error
		if tokens[i], err = b.token(user, role, cadet); err != nil {
			return nil, err
		}
	}
	return func(i int) visitor { return visitor{tokens[i], after} }, nil
}

// spare is how many files a process has open besides its connections.
const spare = 200

// affordable is how many connections of those wanted can be had, and a note if
// that is fewer.
func (b *bench) affordable(row *Row, wanted int) int {
	most := b.files - spare
	if wanted <= most {
		return wanted
	}
	row.note("%d connections rather than %d, because a process may open %d files here: raise the hard limit (ulimit -Hn) to %d", most, wanted, b.files, wanted+spare)
	return most
}
