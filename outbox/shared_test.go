package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// audiences fills a journal with rows for cadets, users, roles and the staff, and
// returns its events.
func audiences(t *testing.T, w *world, rows int) []*relay.Event {
	t.Helper()
	w.exec(`INSERT INTO sync_events (event_type, cadet_id, user_ids, roles, payload)
		SELECT 'x', CASE WHEN n % 3 = 0 THEN n % 40 END, CASE WHEN n % 4 = 0 THEN ARRAY[n % 7, n % 5] END, CASE WHEN n % 5 = 0 THEN ARRAY['r' || n % 3, '*'] END, to_jsonb(repeat('x', n % 600))
		  FROM generate_series(1, $1::int) n`, rows)
	r := w.start(relay.Options{})
	waitForJournal(w, rows)
	r.stop()
	journal := openJournal(t, w)
	all, err := journal.Newest(t.Context(), "", rows+1, 1<<30)
	if err != nil || len(all) != rows {
		t.Fatalf("%d events, %v; want %d", len(all), err, rows)
	}
	journal.Close()
	return all
}

func openJournal(t *testing.T, w *world) *outbox.Journal {
	t.Helper()
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(journal.Close)
	return journal
}

// readAll reads the journal as a subscriber does, page after page.
func readAll(ctx context.Context, journal *outbox.Journal, after, through int64, groups []relay.Group, limit int) (ids []int64, err error) {
	for after < through {
		page, err := journal.Read(ctx, "", after, through, groups, limit)
		switch {
		case err != nil:
			return nil, err
		case page.Through <= after || page.Through > through:
			return nil, fmt.Errorf("a page after %d and up to %d goes to %d", after, through, page.Through)
		case page.Gap:
			return nil, fmt.Errorf("a gap between %d and %d", after, page.Through)
		case len(page.Events) > limit:
			return nil, fmt.Errorf("%d events, allowed are %d", len(page.Events), limit)
		}
		for _, e := range page.Events {
			ids = append(ids, e.ID)
		}
		after = page.Through
	}
	return ids, nil
}

// TestAllWhoComeBackAtOnceAreReadTheirOwn: hundreds read at once, from different
// places, for different groups, in pages of different sizes; each is answered as
// if it were alone, and together they cost few queries.
func TestAllWhoComeBackAtOnceAreReadTheirOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const rows, clients = 3000, 400
	all := audiences(t, w, rows)
	others := w.query(sessionsOfRelays)
	before := transactions(w, others)
	journal := openJournal(t, w)
	last := all[rows-1].ID
	var reading sync.WaitGroup
	for i := range clients {
		groups := []relay.Group{relay.UserGroup(int64(i % 9)), relay.RoleGroup("r" + strconv.Itoa(i%4)), relay.Everyone}
		if i%2 == 0 {
			groups = append(groups, relay.CadetGroup(int64(i%50)))
		}
		if i%20 == 0 {
			groups = append(groups, relay.Staff)
		}
		after, through, limit := all[i*2].ID, last-int64(i%3), 1024
		if i%50 == 0 {
			limit = 100
		}
		reading.Go(func() {
			ids, err := readAll(t.Context(), journal, after, through, groups, limit)
			if err != nil {
				t.Errorf("client %d: %v", i, err)
			}
			var want []int64
			for _, e := range all {
				if e.ID > after && e.ID <= through && len(relay.Shared(e.Groups(), groups)) > 0 {
					want = append(want, e.ID)
				}
			}
			if !slices.Equal(ids, want) {
				t.Errorf("client %d (%v): %d events, want %d", i, groups, len(ids), len(want))
			}
		})
	}
	reading.Wait()
	journal.Close()
	if n := transactions(w, others) - before; n > clients {
		t.Errorf("%d clients cost %d transactions", clients, n)
	}
}

const sessionsOfRelays = `SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'syncrelay'`

// transactions is how many the database has seen, when all sessions of relays but some
// others have ended, which is when they report theirs.
func transactions(w *world, others []string) (n int) {
	w.Helper()
	relaytest.Wait(w, "the sessions that read have ended", func() bool {
		return !slices.ContainsFunc(w.query(sessionsOfRelays), func(pid string) bool { return !slices.Contains(others, pid) })
	})
	n, err := strconv.Atoi(w.query(`SELECT xact_commit::text FROM pg_stat_database WHERE datname = current_database()`)[0])
	if err != nil {
		w.Fatal(err)
	}
	return n
}

// TestOneWhoGivesUpHoldsNobodyUp: a client that has gone while it waited costs the
// others nothing.
func TestOneWhoGivesUpHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := audiences(t, w, 100)
	journal := openJournal(t, w)
	gone, leave := context.WithCancel(t.Context())
	leave()
	last := all[99].ID
	var reading sync.WaitGroup
	for i := range 50 {
		reading.Go(func() {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = gone
			}
			ids, err := readAll(ctx, journal, 0, last, []relay.Group{relay.Staff}, 1024)
			if i%2 == 1 && (err != nil || len(ids) == 0) {
				t.Errorf("%d events, %v", len(ids), err)
			}
		})
	}
	reading.Wait()
}

// TestALargeEventDoesNotKeepOthersFromTheirPages: one page holds a few megabytes at
// most, and everybody's goes on behind it.
func TestALargeEventDoesNotKeepOthersFromTheirPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`ALTER TABLE sync_events ALTER COLUMN payload SET STORAGE EXTERNAL`)
	w.exec(`INSERT INTO sync_events (event_type, cadet_id, payload)
		SELECT 'x', n % 2, to_jsonb(repeat('x', 700000)) FROM generate_series(1, 20) n`)
	r := w.start(relay.Options{})
	waitForJournal(w, 20)
	r.stop()
	journal := openJournal(t, w)
	last := w.journaled()[19]
	var reading sync.WaitGroup
	for i := range 12 {
		reading.Go(func() {
			ids, err := readAll(t.Context(), journal, 0, last, []relay.Group{relay.CadetGroup(int64(i % 2))}, 1024)
			if err != nil || len(ids) != 10 {
				t.Errorf("cadet %d: %d events, %v; want 10", i%2, len(ids), err)
			}
		})
	}
	reading.Wait()
	page, err := journal.Read(t.Context(), "", 0, last, []relay.Group{relay.Staff}, 1024)
	if err != nil || len(page.Events) == 0 || len(page.Events) > 5 || page.Through != page.Events[len(page.Events)-1].ID {
		t.Errorf("a page of %d large events through %d, %v", len(page.Events), page.Through, err)
	}
}

// A failover may bring another journal under a relay that still has clients, which
// lacks what the relay's memory goes on with.
func TestAJournalOfAnotherEpochIsNotRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(relay.Options{})
	w.insert(grade(1))
	waitForJournal(w, 1)
	r.stop()
	journal := openJournal(t, w)
	epoch := w.query(`SELECT epoch FROM syncrelay.state`)[0]
	for _, of := range []string{epoch, "", "another"} {
		var want error
		if of == "another" {
			want = relay.ErrNewEpoch
		}
		if _, err := journal.Read(t.Context(), of, 0, 1, []relay.Group{relay.Staff}, 10); !errors.Is(err, want) {
			t.Errorf("Read of epoch %q: %v, want %v", of, err, want)
		}
		if newest, err := journal.Newest(t.Context(), of, 10, 1<<20); !errors.Is(err, want) || want == nil && len(newest) != 1 {
			t.Errorf("Newest of epoch %q: %d events, %v, want %v", of, len(newest), err, want)
		}
	}
}
