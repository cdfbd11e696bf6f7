package outbox_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/schema"
)

// newDirectory makes a directory that asks with the relay's rights.
func (w *world) newDirectory(query string) *outbox.Directory {
	w.Helper()
	d, err := outbox.NewDirectory(outbox.Options{URL: w.options.URL}, query)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(d.Close)
	return d
}

// demoQuery is the default of auth.identity_query.
func demoQuery(t testing.TB) string {
	t.Helper()
	s, err := configs.Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.Auth.IdentityQuery
}

func TestTheDefaultQueryFitsTheDemoWithTheRelaysRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := schema.MigrateDemo(t.Context(), w.url, schema.Options{}); err != nil {
		t.Fatal(err)
	}
	w.exec(`UPDATE demo.users SET is_approved = false WHERE id = 103`)
	d := w.newDirectory(demoQuery(t))
	got, err := d.People(t.Context(), []int64{1, 101, 103, 999, 1 << 62})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b relay.Person) int { return int(a.UserID - b.UserID) })
	want := []relay.Person{
		{Identity: relay.Identity{UserID: 1, Role: "admin"}, Approved: true},
		{Identity: relay.Identity{UserID: 101, Role: "cadet", CadetID: 1, HasCadet: true}, Approved: true},
		{Identity: relay.Identity{UserID: 103, Role: "cadet", CadetID: 3, HasCadet: true}},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, err := d.People(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("nobody: got %+v, %v", got, err)
	}
}

func TestTheQueryMayReadColumnsOfSmallerTypesAndNulls(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, `CREATE TABLE people (id integer, role varchar(20), cadet smallint, ok boolean);
		INSERT INTO people VALUES (1, 'admin', NULL, true), (2, NULL, 7, NULL), (NULL, 'admin', NULL, true)`)
	w.exec(`GRANT SELECT ON people TO syncrelay_relay`)
	d := w.newDirectory(`SELECT id, role, cadet, ok FROM people WHERE id = ANY ($1) OR id IS NULL;`)
	// A number that no integer column can hold must not spoil the question for others.
	got, err := d.People(t.Context(), []int64{1, 2, 1 << 40})
	want := []relay.Person{
		{Identity: relay.Identity{UserID: 1, Role: "admin"}, Approved: true},
		{Identity: relay.Identity{UserID: 2, CadetID: 7, HasCadet: true}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	many := make([]int64, 10_000)
	for i := range many {
		many[i] = int64(i) + 1
	}
	if got, err := d.People(t.Context(), many); err != nil || len(got) != 2 {
		t.Errorf("of many: got %+v, %v", got, err)
	}
}

func TestABadQuerySaysWhatMendsIt(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, `CREATE TABLE people (id bigint, role text, cadet bigint, ok boolean); INSERT INTO people VALUES (1, 'admin', NULL, true);
		CREATE TABLE private AS TABLE people`)
	w.exec(`GRANT SELECT, DELETE ON people TO syncrelay_relay`)
	for name, c := range map[string]struct{ query, want string }{
		"no rights":         {`SELECT id, role, cadet, ok FROM private WHERE id = ANY ($1)`, `permission denied for table private; to mend it: GRANT SELECT ON what it reads TO "syncrelay_relay"`},
		"no such table":     {`SELECT * FROM nobody WHERE id = ANY ($1)`, `relation "nobody" does not exist; to mend it: correct it`},
		"no such column":    {`SELECT id, name, cadet, ok FROM people WHERE id = ANY ($1)`, `column "name" does not exist; to mend it: correct it`},
		"no SQL":            {`users of $1`, `syntax error at or near "users"; to mend it: correct it`},
		"two statements":    {`SELECT 1 WHERE 1 = ANY ($1); SELECT 2`, `cannot insert multiple commands`},
		"too few columns":   {`SELECT id, role, ok FROM people WHERE id = ANY ($1)`, `gives 3 columns, and not 4`},
		"columns exchanged": {`SELECT role, id, cadet, ok FROM people WHERE id = ANY ($1)`, `gives columns of other types`},
		"a query to write":  {`WITH gone AS (DELETE FROM people WHERE id = ANY ($1) RETURNING *) SELECT * FROM gone`, `read-only transaction`},
	} {
		_, err := w.newDirectory(c.query).People(t.Context(), []int64{1})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if n := w.query(`SELECT count(*)::text FROM people`)[0]; n != "1" {
		t.Errorf("%s rows are left, want 1", n)
	}
}

func TestADirectoryThatIsAwaySaysSoInTime(t *testing.T) {
	t.Parallel()
	d, err := outbox.NewDirectory(outbox.Options{URL: "postgres://nobody@127.0.0.1:1/nothing"}, `SELECT $1`)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.People(t.Context(), []int64{1}); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1 can't be reached") {
		t.Errorf("got %v", err)
	}
	slow := newWorld(t).newDirectory(`SELECT 1::bigint, 'admin', NULL::bigint, true FROM pg_sleep(60) WHERE 1 = ANY ($1)`)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := slow.People(ctx, []int64{1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that the deadline has passed", err)
	}
	if _, err := outbox.NewDirectory(outbox.Options{URL: "mysql://x"}, ""); err == nil {
		t.Error("a URL of another database was taken")
	}
}
