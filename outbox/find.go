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
// searches, at most $limit each: one range of an index for each. They come with
// where their rows are, so that what reads these need not look for them in the
// journal again.
const (
	findAudience = `
SELECT f.* FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY k (audience, after, through, n),
       LATERAL (SELECT array_agg(j.event_id), array_agg(j.row_id), array_agg(j.created_at)
                  FROM (SELECT a.event_id FROM syncrelay.journal_audience a
                         WHERE a.audience = k.audience AND a.event_id > k.after AND a.event_id <= k.through ORDER BY a.event_id LIMIT $4) a
                  JOIN syncrelay.journal j USING (event_id)) f ORDER BY k.n`
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

// entry is an event in the journal, and where its row is in the table.
type entry struct {
	event, row int64
	createdAt  time.Time
}

func compareEntries(a, b entry) int { return cmp.Compare(a.event, b.event) }

// search is what a request seeks of one of its groups.
type search struct {
	group          relay.Group
	after, through int64
}

// searches are those of many requests, each once.
type searches struct {
	found map[search][]entry
	limit int

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
	all := &searches{found: make(map[search][]entry)}
	for _, r := range requests {
		all.limit = max(all.limit, r.limit)
		for _, g := range r.groups {
			s := search{g, r.after, r.through}
			if _, there := all.found[s]; there {
				continue
			}
			all.found[s] = nil
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
				found, err := scanFound(rows)
				if err != nil {
					return err
				}
				all.found[s] = found
			}
			return rows.Err()
		})
	}
	add(&all.audiences, findAudience, all.audience)
	add(&all.cadets, findCadet, all.cadet)
	add(&all.staff, findStaff)
}

// scanFound reads what one search has found, in the order of the log.
func scanFound(rows pgx.Rows) ([]entry, error) {
	var events, of []int64
	var created []time.Time
	if err := rows.Scan(&events, &of, &created); err != nil {
		return nil, err
	}
	found := make([]entry, len(events))
	for i := range found {
		found[i] = entry{events[i], of[i], created[i]}
	}
	slices.SortFunc(found, compareEntries) // mostly nothing is left to do
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

// take merges what was found for the request's groups.
func (r *request) take(all *searches) {
	lists := 0
	for _, g := range r.groups {
		found := all.found[search{g, r.after, r.through}]
		if len(found) == 0 {
			continue
		}
		lists++
		if lists == 1 {
			r.entries = found // mostly the only one, which is shared
		} else {
			r.entries = slices.Concat(r.entries, found)
		}
		r.more = r.more || len(found) == all.limit
	}
	if lists > 1 {
		slices.SortFunc(r.entries, compareEntries)
		r.entries = slices.CompactFunc(r.entries, func(a, b entry) bool { return a.event == b.event })
	}
	if len(r.entries) > r.limit {
		r.entries, r.more = r.entries[:r.limit], true
	}
}
