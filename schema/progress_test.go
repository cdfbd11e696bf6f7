package schema_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/schema"
)

// told collects progress.
type told struct {
	mu    sync.Mutex
	lines []string
}

func (p *told) take(step schema.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, step.String())
}

func (p *told) has(part string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(strings.Join(p.lines, "\n"), part)
}

func TestMigrateTellsWhoIsInItsWay(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	c, err := pgx.ParseConfig(u)
	if err != nil {
		t.Fatal(err)
	}
	c.RuntimeParams["application_name"] = "django"
	reader, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close(context.Background()) }()
	// A million rows are adopted as they are, once the reader lets go of them.
	exec(t, reader, `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type varchar(50) NOT NULL, processed boolean NOT NULL DEFAULT false)`)
	exec(t, reader, `INSERT INTO sync_events (event_type) SELECT 'old' FROM generate_series(1, 1000000)`)
	exec(t, reader, `BEGIN`)
	exec(t, reader, `SELECT count(*) FROM sync_events`)
	var progress told
	done := make(chan error, 1)
	go func() {
		_, err := schema.Migrate(t.Context(), u, schema.Options{Progress: progress.take, ProgressInterval: 20 * time.Millisecond})
		done <- err
	}()
	want := fmt.Sprintf("waiting for process %d of postgres (django), in a transaction since ", reader.PgConn().PID())
	deadline := time.Now().Add(20 * time.Second)
	for !progress.has(want) {
		select {
		case err := <-done:
			t.Fatalf("migrate has ended with %v and told %q, want %q", err, progress.lines, want)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("it told %q, want %q", progress.lines, want)
		}
	}
	exec(t, reader, `COMMIT`)
	begun := time.Now()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("a million rows were adopted in %s", time.Since(begun))
	// Nothing was rewritten: all rows are as they were.
	if n := value(t, connect(t, u), `SELECT count(*)::text FROM sync_events WHERE event_type = 'old' AND payload = '{}'`); n != "1000000" {
		t.Errorf("%s rows are left", n)
	}
}

func TestMigrateTellsThatAnotherOneIsAtWork(t *testing.T) {
	t.Parallel()
	u := pgtest.Database(t)
	migrate(t, u)
	blocker := connect(t, u)
	exec(t, blocker, `ALTER TABLE sync_events_default OWNER TO postgres`) // so that there is something to be done
	exec(t, blocker, `BEGIN`)
	exec(t, blocker, `LOCK TABLE sync_events_default IN ACCESS SHARE MODE`)
	var progress [2]told
	done := make(chan error, 2)
	for i := range progress {
		go func() {
			_, err := schema.Migrate(t.Context(), u, schema.Options{Progress: progress[i].take, ProgressInterval: 20 * time.Millisecond})
			done <- err
		}()
	}
	deadline := time.Now().Add(20 * time.Second)
	another := func(i int) bool {
		return progress[i].has("(syncrelay migrate ") || progress[i].has("waiting for another syncrelay migrate, process ")
	}
	for !another(0) && !another(1) {
		if time.Now().After(deadline) {
			t.Fatalf("they told %q and %q", progress[0].lines, progress[1].lines)
		}
		<-time.After(5 * time.Millisecond)
	}
	exec(t, blocker, `COMMIT`)
	for range progress {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
