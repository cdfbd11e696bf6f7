package outbox

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// Which events are for a group, above $after and up to $through of each of many
// searches, at most $limit each: one range of an index for each. Where an event's
// entry is found by its own columns, it comes with where the row is, so that what
// reads the row need not look into the journal again.
const (
	findAudience = `
SELECT ARRAY(SELECT j.event_id FROM syncrelay.journal_audience j
              WHERE j.audience = k.audience AND j.event_id > k.after AND j.event_id <= k.through ORDER BY j.event_id LIMIT $4), NULL::bigint[], NULL::timestamptz[]
  FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY k (audience, after, through, n) ORDER BY k.n`
	findCadet = `
SELECT f.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY k (cadet_id, after, through, n),
       LATERAL (SELECT array_agg(j.event_id), array_agg(j.row_id), array_agg(j.created_at)
                  FROM (SELECT * FROM syncrelay.journal j
                         WHERE j.cadet_id = k.cadet_id AND j.event_id > k.after AND j.event_id <= k.through ORDER BY j.event_id LIMIT $4) j) f ORDER BY k.n`
	findStaff = `
SELECT f.* FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY k (after, through, n),
       LATERAL (SELECT array_agg(j.event_id), array_agg(j.row_id), array_agg(j.created_at)
                  FROM (SELECT * FROM syncrelay.journal j
                         WHERE j.staff AND j.event_id > k.after AND j.event_id <= k.through ORDER BY j.event_id LIMIT $3) j) f ORDER BY k.n`
)

// entry is an event in the journal and, if that is known already, where its row is in
// the table.
type entry struct {
	event   int64
	located bool
	row     int64
	created int64 // of the row, in microseconds since 1970
}

func compareEntries(a, b entry) int { return cmp.Compare(a.event, b.event) }

// search is what a request seeks of one of its groups.
type search struct {
	group          relay.Group
	after, through int64
}

// finding is what one search has found, in the order of the log.
type finding struct {
	entries []entry
	more    bool // there may be others behind them
}

// searches are those of many requests, each once.
type searches struct {
	found map[search]finding
	limit int
	total int // entries that are kept

	audiences, cadets, staff columns
	audience                 []string
	cadet                    []int64
}

// columns are those that all kinds of searches have.
type columns struct {
	of             []search
	after, through []int64
}

func (c *columns) add(s search) {
	c.of, c.after, c.through = append(c.of, s), append(c.after, s.after), append(c.through, s.through)
}

func newSearches(requests []*request) *searches {
	all := &searches{found: make(map[search]finding)}
	for _, r := range requests {
		all.limit = max(all.limit, r.limit)
		for _, g := range r.groups {
			s := search{g, r.after, r.through}
			if _, there := all.found[s]; there {
				continue
			}
			all.found[s] = finding{}
			switch cadet, isCadet := g.Cadet(); {
			case g == relay.Staff:
				all.staff.add(s)
			case isCadet:
				all.cadets.add(s)
				all.cadet = append(all.cadet, cadet)
			default:
				all.audiences.add(s)
				all.audience = append(all.audience, g.String())
			}
		}
	}
	return all
}

// queue adds the searches' queries to a batch.
func (all *searches) queue(batch *pgx.Batch) {
	add := func(c *columns, sql string, args ...any) {
		if len(c.of) == 0 {
			return
		}
		batch.Queue(sql, append(args, c.after, c.through, all.limit)...).Query(func(rows pgx.Rows) error {
			for _, s := range c.of {
				if !rows.Next() {
					break
				}
				entries, err := scanFound(rows)
				if err != nil {
					return err
				}
				all.note(s, entries)
			}
			return rows.Err()
		})
	}
	add(&all.audiences, findAudience, all.audience)
	add(&all.cadets, findCadet, all.cadet)
	add(&all.staff, findStaff)
}

// note keeps what a search has found. Many who want the same cost what one does; where
// each of many wants much else, the later ones find less at a time.
func (all *searches) note(s search, entries []entry) {
	f := finding{entries, len(entries) >= all.limit}
	if share := max(1, turnEntries/len(all.found)); all.total+len(entries) > turnEntries && len(entries) > share {
		f = finding{slices.Clone(entries[:share]), true}
	}
	all.total += len(f.entries)
	all.found[s] = f
}

// scanFound reads what one search has found, in the order of the log.
func scanFound(rows pgx.Rows) ([]entry, error) {
	var events, of []int64
	var created []time.Time
	if err := rows.Scan(&events, &of, &created); err != nil {
		return nil, err
	}
	found := make([]entry, len(events))
	for i, id := range events {
		found[i] = entry{event: id}
		if len(of) > 0 {
			found[i] = entry{id, true, of[i], created[i].UnixMicro()}
		}
	}
	slices.SortFunc(found, compareEntries) // array_agg does not promise the order, though it keeps it
	return found, nil
}

// standing is where the journal stands: of what epoch it was and its newest event,
// before something was read, and the newest that was deleted afterwards.
type standing struct {
	epoch         string
	last, deleted int64
}

// isOf reports whether a journal of an epoch may be read by who wants another's,
// or, if that is "", any.
func isOf(epoch, wanted string) bool { return wanted == "" || epoch == wanted }

// find finds the events of each request.
func (j *Journal) find(requests []*request) (found standing, err error) {
	all := newSearches(requests)
	err = j.inSession(context.Background(), func(ctx context.Context, conn *pgx.Conn) error {
		var batch pgx.Batch
		batch.Queue(`SELECT epoch, last_event_id FROM syncrelay.state`).QueryRow(func(row pgx.Row) error { return row.Scan(&found.epoch, &found.last) })
		all.queue(&batch)
		batch.Queue(askDeleted).QueryRow(func(row pgx.Row) error { return row.Scan(&found.deleted) })
		return conn.SendBatch(ctx, &batch).Close()
	})
	if err != nil {
		return standing{}, err
	}
	for _, r := range requests {
		r.take(all)
	}
	return found, nil
}

// take merges what was found for the request's groups, up to where all of it is known:
// a search that has found as many as it may has not looked further.
func (r *request) take(all *searches) {
	lists, known := 0, r.through
	for _, g := range r.groups {
		found := all.found[search{g, r.after, r.through}]
		if len(found.entries) == 0 {
			continue
		}
		if found.more {
			r.more, known = true, min(known, found.entries[len(found.entries)-1].event)
		}
		lists++
		if lists == 1 {
			r.entries = found.entries // mostly the only one, which is shared
		} else {
			r.entries = slices.Concat(r.entries, found.entries)
		}
	}
	if lists > 1 {
		slices.SortFunc(r.entries, compareEntries)
		r.entries = slices.CompactFunc(r.entries, func(a, b entry) bool { return a.event == b.event })
	}
	n, _ := slices.BinarySearchFunc(r.entries, entry{event: known + 1}, compareEntries)
	if n = min(n, r.limit); n < len(r.entries) {
		r.entries, r.more = r.entries[:n], true
		if lists > 1 {
			r.entries = slices.Clone(r.entries) // the rest is not kept
		}
	}
}
