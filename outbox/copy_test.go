package outbox_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
)

// journaledAs is what the journal holds, entry for entry.
func journaledAs(w *world) []string {
	return slices.Concat(
		w.query(`SELECT concat_ws(' ', event_id, row_id, created_at AT TIME ZONE 'UTC', coalesce(cadet_id::text, '-'), staff) FROM syncrelay.journal ORDER BY event_id`),
		w.query(`SELECT concat_ws(' ', audience, event_id) FROM syncrelay.journal_audience ORDER BY event_id, audience`),
		w.query(`SELECT concat_ws(' ', last_event_id, high_commit, high_ordinal, confirmed) FROM syncrelay.state`))
}

// oddBatch is a batch of all kinds of audiences and times.
func oddBatch(after int64, n int) *relay.Batch {
	batch := &relay.Batch{High: relay.Position{Commit: 1<<33 + relay.LSN(after) + 7, Ordinal: 3}, Confirm: 1<<33 + relay.LSN(after) + 9}
	times := []time.Time{
		time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1999, 12, 31, 23, 59, 59, 999_999_000, time.UTC),
		time.Date(2026, 2, 3, 4, 5, 6, 7000, time.UTC), time.Date(294246, 1, 1, 0, 0, 0, 1000, time.UTC),
	}
	for i := range n {
		id := after + int64(i) + 1
		row := relay.Row{ID: -id, Type: "grade_update", CreatedAt: times[i%len(times)]}
		switch i % 5 {
		case 0:
			row.CadetID, row.HasCadet = -id, true
		case 1:
			row.UserIDs, row.Roles = []int64{id, 5, 5}, []string{"*", "instructor"}
		case 2:
			row.Type = relay.TypeSessionRevoked
		case 3:
			row.CadetID, row.HasCadet, row.Roles = 0, true, []string{"café"}
		}
		batch.Events = append(batch.Events, relay.NewEvent(id, &row, row.CreatedAt))
	}
	return batch
}

// TestALargeBatchIsJournaledAsSmallOnesAre: what is copied is what statements
// write.
func TestALargeBatchIsJournaledAsSmallOnesAre(t *testing.T) {
	t.Parallel()
	const n = 1000
	all := oddBatch(0, n)
	byStatement := appended(t, func(tenure relay.Tenure) {
		for i := range all.Events {
			part := *all
			part.Events = all.Events[i : i+1]
			if err := tenure.Append(t.Context(), &part); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, durable := range []bool{false, true} {
		copied := appended(t, func(tenure relay.Tenure) {
			batch := *all
			batch.Durable = durable
			if err := tenure.Append(t.Context(), &batch); err != nil {
				t.Fatal(err)
			}
		})
		if !slices.Equal(copied, byStatement) {
			t.Errorf("copied (durable: %t):\n%q\nby statements:\n%q", durable, copied[:20], byStatement[:20])
		}
	}
	if len(byStatement) < n+n/5*3 {
		t.Errorf("only %d entries", len(byStatement))
	}
}

func appended(t *testing.T, write func(relay.Tenure)) []string {
	t.Helper()
	w := newWorld(t)
	_, tenure := acquire(t, w)
	write(tenure)
	return journaledAs(w)
}

func acquire(t *testing.T, w *world) (*outbox.Journal, relay.Tenure) {
	t.Helper()
	journal, err := outbox.NewJournal(w.options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(journal.Close)
	tenure, err := journal.Acquire(t.Context(), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tenure.Close)
	return journal, tenure
}

// TestALargeBatchOfAFormerOwnerChangesNothing: the fence holds for what is copied,
// and the session can be used on.
func TestALargeBatchOfAFormerOwnerChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, tenure := acquire(t, w)
	if err := tenure.Append(t.Context(), oddBatch(0, 300)); err != nil {
		t.Fatal(err)
	}
	before := journaledAs(w)
	w.exec(`UPDATE syncrelay.state SET tenure = tenure + 1`)
	for range 2 {
		if err := tenure.Append(t.Context(), oddBatch(300, 300)); !errors.Is(err, relay.ErrFenced) {
			t.Errorf("a fenced owner's batch: %v, want %v", err, relay.ErrFenced)
		}
	}
	w.exec(`UPDATE syncrelay.state SET tenure = tenure - 1`)
	if after := journaledAs(w); !slices.Equal(after, before) {
		t.Errorf("a fenced owner has written: %d entries, were %d", len(after), len(before))
	}
	if err := tenure.Append(t.Context(), oddBatch(300, 300)); err != nil {
		t.Errorf("the owner's batch after that: %v", err)
	}
}

// TestALargeBatchIsWrittenWholeOrNotAtAll: an entry that the server refuses takes
// the others and the high-water mark with it.
func TestALargeBatchIsWrittenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, tenure := acquire(t, w)
	before := journaledAs(w)
	twice := oddBatch(0, 300)
	twice.Events = append(twice.Events, twice.Events[1])
	if err := tenure.Append(t.Context(), twice); err == nil {
		t.Error("an event that is there twice was journaled")
	}
	if after := journaledAs(w); !slices.Equal(after, before) {
		t.Errorf("of a refused batch %d entries were written", len(after)-len(before))
	}
	if err := tenure.Append(t.Context(), oddBatch(0, 300)); err != nil {
		t.Errorf("a batch after a refused one: %v", err)
	}
}
