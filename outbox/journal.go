package outbox

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Journal is the relay's record of which row has which event ID, in the tables
// of schema syncrelay. It implements relay.Journal.
type Journal struct {
	o      Options
	logger *slog.Logger
	pool   *pgxpool.Pool // for reading back
	queue  queue         // of what is to be read back
	// session is the server process of this relay's last tenure.
	session atomic.Pointer[backend]

	mu    sync.Mutex
	table table // as last looked up; its name is nil before
}

// readSettings are those of the sessions that read events back. Every such read
// is a range scan of an index of the journal and look-ups in one of the table.
// The planner can't know how short the range is, and at the wrong guess reads
// whole tables, or all of a group's range to sort it: it is not given the choice. Nor
// does it start other processes, which takes longer than such a read.
var readSettings = map[string]string{
	"default_transaction_read_only":   "on",
	"enable_seqscan":                  "off",
	"enable_bitmapscan":               "off",
	"enable_hashjoin":                 "off",
	"enable_mergejoin":                "off",
	"jit":                             "off",
	"max_parallel_workers_per_gather": "0",
	"plan_cache_mode":                 "force_custom_plan",
}

// NewJournal makes a journal; it connects when it is first needed.
func NewJournal(o Options) (*Journal, error) {
	o = o.withDefaults()
	pool, err := newPool(o.URL, readSettings, readers)
	if err != nil {
		return nil, err
	}
	return &Journal{o: o, logger: o.Logger, pool: pool}, nil
}

// readers is how many sessions read the journal at once, at most.
const readers = 4

// Close closes the sessions that read.
func (j *Journal) Close() { j.pool.Close() }

// knownTable is the outbox table, looked up if it was not yet.
func (j *Journal) knownTable(ctx context.Context, conn *pgx.Conn) (table, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.table.name != nil {
		return j.table, nil
	}
	t, err := lookUpTable(ctx, conn)
	if err == nil {
		j.table = t
	}
	return t, err
}
