package relay

import (
	"slices"
	"testing"
	"time"
)

// numbered makes events with these IDs.
func numbered(from, to int64) (events []*Event) {
	for id := from; id <= to; id++ {
		row := benchRow()
		row.CreatedAt = time.Unix(1_700_000_000, 0)
		events = append(events, NewEvent(id, row, time.Time{}))
	}
	return events
}

func (r *ring) ids() (ids []int64) {
	for i := range r.count {
		ids = append(ids, r.at(i).ID)
	}
	return ids
}

func TestOlderEventsAreAddedToTheRing(t *testing.T) {
	t.Parallel()
	size := numbered(1001, 1001)[0].Size()
	for name, c := range map[string]struct {
		deleted, floor       int64
		maxEvents, maxBytes  int
		wantFloor, wantFirst int64
	}{
		"all":                                    {floor: 1010, maxEvents: 100, maxBytes: 1 << 20, wantFloor: 1002, wantFirst: 1003},
		"as many as there is room":               {floor: 1010, maxEvents: 12, maxBytes: 1 << 20, wantFloor: 1008, wantFirst: 1009},
		"as large as there is room":              {floor: 1010, maxEvents: 100, maxBytes: 12*size + size/2, wantFloor: 1008, wantFirst: 1009},
		"not what was deleted":                   {floor: 1010, deleted: 1006, maxEvents: 100, maxBytes: 1 << 20, wantFloor: 1006, wantFirst: 1007},
		"nothing to a full ring":                 {floor: 1010, maxEvents: 10, maxBytes: 1 << 20, wantFloor: 1010, wantFirst: 1011},
		"nothing to one that is not what it was": {floor: 1009, maxEvents: 100, maxBytes: 1 << 20, wantFloor: 1010, wantFirst: 1011},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLog(nil, c.maxEvents, c.maxBytes)
			l.reset(Extent{Head: 1010, Oldest: 1001}, nil)
			l.partial = true
			l.append(numbered(1011, 1020))
			if c.deleted > 0 {
				l.retain(c.deleted+1, c.deleted)
			}
			l.prepend(border{floor: c.floor}, numbered(1003, 1018))
			if got, want := l.ring.ids(), numbered(c.wantFirst, 1020); len(got) != len(want) || got[0] != c.wantFirst || !slices.IsSorted(got) {
				t.Errorf("the ring holds %v, want %d to 1020", got, c.wantFirst)
			}
			if l.ring.floor != c.wantFloor || l.ring.bytes != l.ring.count*size {
				t.Errorf("floor %d, want %d; %d bytes, want %d", l.ring.floor, c.wantFloor, l.ring.bytes, l.ring.count*size)
			}
			l.append(numbered(1021, 1060)) // it goes on as before
			if got := l.ring.ids(); got[len(got)-1] != 1060 || !slices.IsSorted(got) || len(got) > c.maxEvents || l.ring.floor != got[0]-1 {
				t.Errorf("later the ring holds %v above %d", got, l.ring.floor)
			}
		})
	}
}
