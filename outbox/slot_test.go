package outbox_test

import (
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// A URL may leave the database's name to the server: it is the user's.
func TestURLWithoutADatabaseFindsItsSlotAgain(t *testing.T) {
	t.Parallel()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"fsync": "off"}})
	openWorld(t, server.URL("postgres")).exec(`CREATE DATABASE ` + relayRole)
	w := newWorldAt(t, server.URL(relayRole))
	u, err := url.Parse(w.options.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = ""
	w.options.URL = u.String()
	r := w.start(relay.Options{})
	w.insert(grade(1))
	waitForJournal(w, 1)
	r.stop()
	w.waitForFreeSlot()
	w.start(relay.Options{})
	w.insert(grade(2))
	waitForJournal(w, 2)
	if ids := w.query(`SELECT event_id::text FROM syncrelay.journal ORDER BY event_id`); !slices.Equal(ids, []string{"1", "2"}) {
		t.Errorf("the IDs are %v, want 1 and 2: the slot was replaced", ids)
	}
}

// slots are the names of the slots of the world's database.
func (w *world) slots() []string {
	w.Helper()
	return w.query(`SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database() ORDER BY 1`)
}

// The slot of another name that the relay used before would keep log for ever.
func TestSlotOfTheFormerNameIsDropped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.insert(grade(1))
	waitForJournal(w, 1)
	r.stop()
	w.waitForFreeSlot()
	w.insert(grade(2))
	w.options.Slot += "_new"
	r = w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{Resume: true})
	w.insert(grade(3))
	got(t, c, 3)
	if s := w.slots(); !slices.Equal(s, []string{w.options.Slot}) {
		t.Errorf("the slots are %v, want %s alone", s, w.options.Slot)
	}
}

// A slot that somebody else has made under the former name since is theirs.
func TestSlotOfTheFormerNameThatIsAnothersIsKeptAndWarnedOf(t *testing.T) {
	t.Parallel()
	for _, plugin := range []string{"test_decoding", "pgoutput"} {
		t.Run(plugin, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			r := w.start(relay.Options{})
			w.insert(grade(1))
			waitForJournal(w, 1)
			r.stop()
			w.waitForFreeSlot()
			w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
			w.insert(grade(2))
			w.exec(`SELECT pg_create_logical_replication_slot($1, $2)`, w.options.Slot, plugin)
			former := w.options.Slot
			w.options.Slot += "_new"
			var log lines
			w.options.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
			w.start(relay.Options{})
			if s := w.slots(); !slices.Equal(s, []string{former, w.options.Slot}) {
				t.Errorf("the slots are %v, want %s too", s, former)
			}
			if want := "SELECT pg_drop_replication_slot('" + former + "')"; !strings.Contains(log.String(), want) {
				t.Errorf("the log does not say %s", want)
			}
		})
	}
}

// A slot that can't be ours is named, of whichever kind it is.
func TestSlotThatIsNoneOfOursIsNamed(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		`a physical slot of database`: `SELECT pg_create_physical_replication_slot($1)`,
		`with plugin "test_decoding"`: `SELECT pg_create_logical_replication_slot($1, 'test_decoding')`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.exec(statement, w.options.Slot)
			if err := w.fails(); !strings.Contains(err.Error(), name) || !relay.IsPermanent(err) {
				t.Errorf("got %v, want that it is %s", err, name)
			}
			w.exec(`SELECT pg_drop_replication_slot($1)`, w.options.Slot)
		})
	}
}

// What is published by the schema of the table is watched too.
func TestSchemaThatLeavesThePublicationWhileStreaming(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`DROP PUBLICATION syncrelay; CREATE PUBLICATION syncrelay FOR TABLES IN SCHEMA public WITH (publish = 'insert', publish_via_partition_root = true)`)
	r := w.start(relay.Options{})
	c := relaytest.Connect(t, r.Relay, admin, relay.Start{})
	w.insert(grade(1))
	got(t, c, 1)
	w.exec(`ALTER PUBLICATION syncrelay DROP TABLES IN SCHEMA public`)
	w.insert(grade(2))
	w.exec(`ALTER PUBLICATION syncrelay ADD TABLES IN SCHEMA public`)
	w.insert(grade(3))
	got(t, c, 3)
}
