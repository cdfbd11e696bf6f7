package outbox_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

func TestArraysOfAnyShapeAreNoPoison(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{RingEvents: 1})
	c := relaytest.Connect(t, r.Relay, relay.Identity{UserID: 4, Role: "b"}, relay.Start{})
	w.exec(`INSERT INTO sync_events (event_type, user_ids) VALUES ('x', '{{1,2},{3,4}}'), ('x', '[5:6]={4,NULL}')`)
	w.exec(`INSERT INTO sync_events (event_type, roles) VALUES ('x', '{{a},{b}}'), ('x', '{}')`)
	w.exec(`INSERT INTO sync_events (event_type, roles) VALUES ('x', '{*}')`)
	got(t, c, 4)
	replayed := relaytest.Connect(t, r.Relay, relay.Identity{UserID: 4, Role: "b"}, relay.Start{Resume: true})
	if ids, live := got(t, replayed, 4), c.Got(); !slices.Equal(ids, live) {
		t.Errorf("a replay brings %v, live came %v", ids, live)
	}
}

// What a writer or an administrator can do to the table and the publication must
// not stop the relay, nor its next start.
func TestOddRowsAndTablesAreNoPoison(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 1000)
	faults := map[string]struct {
		sql  string
		args []any
	}{
		"a role longer than an index can hold": {`INSERT INTO sync_events (event_type, roles) SELECT 'x', array_agg(md5(i::text) || $1) FROM generate_series(1, 3) i`, []any{long}},
		"a type that is NULL":                  {`INSERT INTO sync_events (event_type) VALUES (NULL)`, nil},
		"rows of another table":                {`INSERT INTO other VALUES (1), (2)`, nil},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorldWith(t, `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type text, payload jsonb, created_at timestamptz DEFAULT now());
				CREATE TABLE other (a int);
				CREATE PUBLICATION syncrelay FOR ALL TABLES`)
			w.exec(`ALTER TABLE sync_events ALTER event_type DROP NOT NULL`)
			first := w.start(relay.Options{})
			c := relaytest.Connect(t, first.Relay, admin, relay.Start{})
			w.exec(fault.sql, fault.args...)
			last := w.insert(grade(1))
			relaytest.Wait(t, "the row behind it is journaled", func() bool {
				rows := w.journaled()
				return len(rows) > 0 && rows[len(rows)-1] == last[0]
			})
			relaytest.Wait(t, "it is delivered", func() bool { return len(c.Got()) > 0 })
			first.stop()
			second := w.start(relay.Options{})
			c = relaytest.Connect(t, second.Relay, admin, relay.Start{Resume: true})
			w.insert(grade(2))
			got(t, c, 2)
		})
	}
}

// A publication that publishes partitions by themselves is set right.
func TestPublicationWithoutItsRootIsSetRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`DROP PUBLICATION syncrelay; CREATE PUBLICATION syncrelay FOR TABLE sync_events`)
	const statement = `to mend it: ALTER PUBLICATION "syncrelay" SET (publish = 'insert', publish_via_partition_root = true)`
	if err := w.fails(); !strings.Contains(err.Error(), "may not mend that; "+statement) {
		t.Errorf("a relay that does not own it ends with %v, want the statement for its owner", err)
	}
	w.exec(`ALTER PUBLICATION syncrelay OWNER TO ` + relayRole)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
}

// Django's flush gives later rows the ids of earlier ones.
func TestTruncatedTableWhoseIDsBeginAnew(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, `CREATE TABLE sync_events (id bigserial PRIMARY KEY, event_type text, payload jsonb, created_at timestamptz NOT NULL DEFAULT now())`)
	r := w.start(relay.Options{RingEvents: 1})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1), grade(1))
	got(t, c, 2)
	w.exec(`TRUNCATE sync_events RESTART IDENTITY`)
	w.insert(grade(2), grade(2), grade(2))
	live := got(t, c, 5)
	replayed := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	if ids := got(t, replayed, 3); !slices.Equal(ids, live[2:]) {
		t.Errorf("a replay brings %v, live came %v", ids, live)
	}
}

// What JSON holds is UTF-8, whatever the database's encoding is.
func TestDatabaseInAnotherEncoding(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	name := base.options.Slot + "_latin1"
	base.exec(`CREATE DATABASE ` + name + ` ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	w := newWorldAt(t, strings.Replace(base.url, base.options.Slot, name, 1))
	r := w.start(relay.Options{RingEvents: 1})
	var texts keeper
	sub, err := r.Subscribe(admin, &texts, relay.Start{})
	if err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', to_jsonb(chr(233))), ('x', to_jsonb(chr(232)))`)
	relaytest.Wait(t, "both are delivered", func() bool { return strings.Contains(texts.String(), `"è"`) })
	sub.Close()
	sub, err = r.Subscribe(admin, &texts, relay.Start{Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	relaytest.Wait(t, "both are replayed", func() bool { return strings.Count(texts.String(), `"é"`) == 2 })
	sub.Close()
	r.stop()
	w.waitForFreeSlot()
	w.exec(`SELECT pg_drop_replication_slot($1)`, name)
	w.pool.Close()
	base.exec(`DROP DATABASE ` + name + ` WITH (FORCE)`)
}

// keeper is a sink that keeps the text of the events.
type keeper struct {
	mu   sync.Mutex
	text strings.Builder
}

func (k *keeper) Events(events []*relay.Event, _ bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range events {
		k.text.Write(e.JSON())
	}
	return nil
}

func (k *keeper) Control(relay.Control) error { return nil }

func (k *keeper) End(error) {}

func (k *keeper) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.text.String()
}
