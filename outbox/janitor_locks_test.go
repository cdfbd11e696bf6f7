package outbox_test

import (
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
)

// whenTruncated makes whoever empties a partition wait, with all its locks, until
// a condition holds; it fails if that takes too long.
func (w *world) whenTruncated(partition, condition string) {
	w.Helper()
	w.exec(`CREATE OR REPLACE FUNCTION meanwhile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		FOR i IN 1..2000 LOOP
			IF ` + condition + ` THEN RETURN NULL; END IF;
			PERFORM pg_sleep(0.01);
		END LOOP;
		RAISE EXCEPTION 'waited in vain while the partition was emptied';
	END $$`)
	w.exec(`CREATE TRIGGER meanwhile AFTER TRUNCATE ON ` + partition + ` EXECUTE FUNCTION meanwhile()`)
}

// While a day is emptied, however long that takes, other days are written.
func TestWritersWriteWhileADayIsEmptied(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	name := w.day(20)
	w.old(20, 2)
	waitForJournal(w, 2)
	w.whenTruncated(name, `EXISTS (SELECT FROM syncrelay.journal HAVING count(*) >= 3)`)
	done := make(chan error, 1)
	go func() { done <- w.janitor(r).Once(t.Context()) }()
	w.awaitQuery(`SELECT 'emptied' FROM pg_locks WHERE relation = to_regclass($1) AND mode = 'AccessExclusiveLock' AND granted`, name)
	w.insert(grade(1)) // and it is relayed meanwhile
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left := w.query(`SELECT count(*)::text FROM sync_events`)[0]; left != "1" {
		t.Errorf("%s rows are left, want the new one", left)
	}
}

// A row with a date of long ago comes when its day has been emptied and is not
// dropped yet: the partition is kept, and the row is relayed and goes with the
// next run.
func TestARowThatComesBeforeItsDayIsDroppedIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	name := w.day(20)
	w.old(20, 2)
	waitForJournal(w, 2)
	r.stop() // nobody relays the row while it matters
	w.whenTruncated(name, `EXISTS (SELECT FROM pg_locks WHERE relation = '`+name+`'::regclass AND NOT granted)`)
	for attempt := 1; ; attempt++ {
		done := make(chan error, 1)
		go func() { done <- w.janitor(r).Once(t.Context()) }()
		w.awaitQuery(`SELECT 'emptied' FROM pg_locks WHERE relation = to_regclass($1) AND mode = 'AccessExclusiveLock' AND granted`, name)
		w.old(20, 1) // waits until the partition has been emptied
		err := <-done
		if left := w.query(`SELECT count(*)::text FROM sync_events`)[0]; left != "1" {
			t.Fatalf("%s rows are left, want the one that came late", left)
		}
		if err == nil {
			break
		}
		// On a slow machine the row's transaction was still open when the janitor's
		// patience ended. That shows nothing.
		if !strings.Contains(err.Error(), "lock timeout") || attempt == 10 {
			t.Fatal(err)
		}
		w.exec(`DELETE FROM ` + name)
	}
	r = w.start(relay.Options{})
	waitForJournal(w, 1)
	w.exec(`DROP TRIGGER meanwhile ON ` + name)
	w.clean(w.janitor(r))
	if left := w.query(`SELECT concat(count(*), ' ', to_regclass($1)) FROM sync_events`, name)[0]; left != "0 " {
		t.Errorf("%q is left of the row and its partition after it was relayed", left)
	}
}
