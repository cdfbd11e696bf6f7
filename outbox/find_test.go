package outbox

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// fillShort makes a log of ten events, each for cadet 1 and for the role rare.
const fillShort = `
INSERT INTO sync_events (event_type, cadet_id, roles) SELECT 'x', 1, ARRAY['rare'] FROM generate_series(1, 10);
INSERT INTO syncrelay.journal (event_id, row_id, created_at, cadet_id, staff) SELECT id, id, created_at, 1, true FROM sync_events;
INSERT INTO syncrelay.journal_audience (audience, event_id) SELECT 'role_rare', id FROM sync_events;
UPDATE syncrelay.state SET last_event_id = 10`

// shortLog is a journal with the log of fillShort, and a session for changing it.
func shortLog(t *testing.T) (*Journal, *pgx.Conn) {
	t.Helper()
	url, admin := migrated(t)
	if _, err := admin.Exec(t.Context(), fillShort); err != nil {
		t.Fatal(err)
	}
	journal, err := NewJournal(Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(journal.Close)
	return journal, admin
}

func ids(events []*relay.Event) (list []int64) {
	for _, e := range events {
		list = append(list, e.ID)
	}
	return list
}

// Retention, or a hand in the tables, may take what a search has just found.
func TestWhatGoesBetweenFindingAndReadingIsAGap(t *testing.T) {
	t.Parallel()
	for name, group := range map[string]relay.Group{"by cadet": relay.CadetGroup(1), "by role": relay.RoleGroup("rare"), "by staff": relay.Staff} {
		journal, admin := shortLog(t)
		r := &request{through: 10, groups: []relay.Group{group}, limit: 1024}
		if _, err := journal.find([]*request{r}); err != nil || len(r.entries) != 10 {
			t.Fatalf("%s: found %v, %v", name, r.entries, err)
		}
		if _, err := admin.Exec(t.Context(), `DELETE FROM sync_events WHERE id IN (3, 10); DELETE FROM syncrelay.journal WHERE event_id IN (3, 10)`); err != nil {
			t.Fatal(err)
		}
		entries := wanted([]*request{r})
		read, err := journal.readThese(entries)
		if err != nil {
			t.Fatal(err)
		}
		page, some := r.pick(&read, entries)
		if got := ids(page.Events); !some || !page.Gap || page.Through != 10 || !slices.Equal(got, []int64{1, 2, 4, 5, 6, 7, 8, 9}) {
			t.Errorf("%s: read %v through %d, a gap: %t", name, got, page.Through, page.Gap)
		}
	}
}

// An audience whose event the journal has lost makes a page no shorter than it was, so
// that what comes after the page is looked for all the same.
func TestAnAudienceWithoutItsEventIsAGapAndNotTheEnd(t *testing.T) {
	t.Parallel()
	journal, admin := shortLog(t)
	if _, err := admin.Exec(t.Context(), `DELETE FROM syncrelay.journal WHERE event_id = 4`); err != nil {
		t.Fatal(err)
	}
	var got []int64
	gap := false
	for after := int64(0); after < 10; {
		page, err := journal.Read(t.Context(), "", after, 10, []relay.Group{relay.RoleGroup("rare")}, 5)
		if err != nil || page.Through <= after {
			t.Fatalf("after %d: through %d, %v", after, page.Through, err)
		}
		got, gap, after = append(got, ids(page.Events)...), gap || page.Gap, page.Through
	}
	if !gap || !slices.Equal(got, []int64{1, 2, 3, 5, 6, 7, 8, 9, 10}) {
		t.Errorf("read %v, a gap: %t", got, gap)
	}
}

// A search that has found as many as it may has not looked further: what others have
// found beyond that waits for the next page.
func TestAPageEndsWhereTheShortestSearchDoes(t *testing.T) {
	t.Parallel()
	many, few := []entry{{event: 1}, {event: 2}, {event: 3}}, []entry{{event: 2}, {event: 9}}
	r := &request{through: 10, groups: []relay.Group{relay.Staff, relay.Everyone}, limit: 100}
	all := newSearches([]*request{r})
	all.limit = 3
	all.note(search{relay.Staff, 0, 10}, many)
	all.note(search{relay.Everyone, 0, 10}, few)
	r.take(all)
	if !r.more || !slices.Equal(r.entries, many) {
		t.Errorf("taken %v, more: %t; want %v and more", r.entries, r.more, many)
	}
}

// What a turn keeps is bounded, however much each of many wants that no other does; and
// who wants little is not cut short for those who want much.
func TestManyWhoWantMuchFindLessAtATime(t *testing.T) {
	t.Parallel()
	page := make([]entry, 1024)
	for i := range page {
		page[i].event = int64(i + 1)
	}
	all := &searches{limit: len(page), found: make(map[search]finding)}
	const many = 1000
	for i := range int64(many) {
		all.found[search{relay.UserGroup(i), i, 5000}] = finding{}
	}
	for i := range int64(many) {
		s := search{relay.UserGroup(i), i, 5000}
		entries := page
		if i%2 == 0 {
			entries = page[:10]
		}
		all.note(s, entries)
		if f := all.found[s]; f.more != (i%2 == 1) || len(f.entries) < 10 {
			t.Fatalf("search %d of %d entries keeps %d, more: %t", i, len(entries), len(f.entries), f.more)
		}
	}
	if all.total > 2*turnEntries {
		t.Errorf("%d entries are kept, allowed are %d", all.total, 2*turnEntries)
	}
}
