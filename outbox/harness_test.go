package outbox_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/schema"
)

func TestMain(m *testing.M) { pgtest.Run(m) }

var admin = relay.Identity{UserID: 1, Role: "admin"}

// world is a database with the schema, and relays on it.
type world struct {
	testing.TB
	// url and pool are the superuser's, for what writers and administrators do.
	url  string
	pool *pgxpool.Pool
	// options are the relay's, which logs in as the role that migrate has made for
	// it and has no other rights than that gives.
	options outbox.Options
}

// newWorld makes a database on the shared server. Slots are the server's, so
// the slot is named after the database.
func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldAt(t, pgtest.Database(t))
}

// newWorldWith is newWorld in a database where something is there before.
func newWorldWith(t testing.TB, sql string) *world {
	t.Helper()
	databaseURL := pgtest.Database(t)
	openWorld(t, databaseURL).exec(sql)
	return newWorldAt(t, databaseURL)
}

func newWorldAt(t testing.TB, databaseURL string) *world {
	t.Helper()
	ctx := t.Context()
	if _, err := schema.Migrate(ctx, databaseURL, schema.Options{}); err != nil {
		t.Fatal(err)
	}
	w := openWorld(t, databaseURL)
	w.letRelayLogIn()
	return w
}

// relayRole is the role that migrate makes for relays.
const relayRole = "syncrelay_relay"

// logins lets one test at a time change a role, which is the whole server's.
var logins sync.Mutex

func (w *world) letRelayLogIn() {
	w.Helper()
	logins.Lock()
	defer logins.Unlock()
	if w.query(`SELECT rolcanlogin::text FROM pg_roles WHERE rolname = $1`, relayRole)[0] == "false" {
		w.exec(`ALTER ROLE ` + relayRole + ` LOGIN`)
	}
}

// as is a database's URL for another role.
func as(t testing.TB, role, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	return u.String()
}

func openWorld(t testing.TB, databaseURL string) *world {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	name := strings.TrimPrefix(u.Path, "/")
	return &world{TB: t, url: databaseURL, pool: pool, options: outbox.Options{
		URL: as(t, relayRole, databaseURL), Slot: name, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}}
}

// exec runs statements with the rights of the superuser.
func (w *world) exec(sql string, args ...any) {
	w.Helper()
	if _, err := w.pool.Exec(w.Context(), sql, args...); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
}

// query returns the first column of a query's rows as text.
func (w *world) query(sql string, args ...any) []string {
	w.Helper()
	rows, err := w.pool.Query(w.Context(), sql, args...)
	if err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	return found
}

// awaitQuery waits until a query finds something.
func (w *world) awaitQuery(sql string, args ...any) {
	w.Helper()
	relaytest.Wait(w, sql, func() bool { return len(w.query(sql, args...)) > 0 })
}

// insert writes rows in one transaction and returns their ids.
func (w *world) insert(rows ...outbox.Row) (ids []int64) {
	w.Helper()
	err := pgx.BeginFunc(w.Context(), w.pool, func(tx pgx.Tx) error {
		for _, row := range rows {
			id, err := outbox.Insert(w.Context(), tx, row)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
	return ids
}

// running is a relay on a world.
type running struct {
	*relay.Relay
	stop func()
}

// start starts a relay and waits until it streams.
func (w *world) start(o relay.Options) running {
	w.Helper()
	r := w.launch(o)
	relaytest.Wait(w, "the relay streams", func() bool { return r.Status().Phase == relay.Streaming })
	return r
}

// launch starts a relay.
func (w *world) launch(o relay.Options) running {
	w.Helper()
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		w.Fatal(err)
	}
	o.Source, o.Journal, o.Logger = outbox.NewSource(w.options), journal, w.options.Logger
	if o.Retry == nil {
		o.Retry = func(int) time.Duration { return 20 * time.Millisecond }
	}
	if o.FlushInterval == 0 {
		o.FlushInterval = 50 * time.Millisecond
	}
	r := relay.New(o)
	w.Cleanup(journal.Close)
	return running{r, relaytest.Run(w, r)}
}

// fails starts a relay that can't serve, and returns what it ends with.
func (w *world) fails() error {
	w.Helper()
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		w.Fatal(err)
	}
	defer journal.Close()
	ctx, cancel := context.WithTimeout(w.Context(), 30*time.Second)
	defer cancel()
	err = relay.New(relay.Options{Source: outbox.NewSource(w.options), Journal: journal, Logger: w.options.Logger}).Run(ctx)
	if err == nil {
		w.Fatal("the relay does not end by itself")
	}
	return err
}

// waitForFreeSlot waits until the server has noticed that a relay has gone.
func (w *world) waitForFreeSlot() {
	w.Helper()
	relaytest.Wait(w, "the slot is free", func() bool {
		return len(w.query(`SELECT slot_name::text FROM pg_replication_slots WHERE slot_name = $1 AND active`, w.options.Slot)) == 0
	})
}

// journaled returns the rows' ids in the order of their event IDs.
func (w *world) journaled() (ids []int64) {
	w.Helper()
	for _, text := range w.query(`SELECT row_id::text FROM syncrelay.journal ORDER BY event_id`) {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			w.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func grade(cadet int64) outbox.Row {
	return outbox.Row{Type: "grade_update", CadetID: &cadet, Payload: map[string]int{"merits": 3}}
}

// waitForJournal waits until that many events have been journaled.
func waitForJournal(w *world, n int) {
	w.Helper()
	relaytest.Wait(w, fmt.Sprintf("%d events are journaled", n), func() bool {
		return w.query(`SELECT count(*)::text FROM syncrelay.journal`)[0] == strconv.Itoa(n)
	})
}
