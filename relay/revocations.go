package relay

// Moment is a point in the order of revocations; see [Relay.Moment]. The zero
// value is none.
type Moment struct{ next int64 }

// revocations remembers which users' sessions were revoked, and in which order.
// A client takes a moment to be let in: its token is checked, a directory is
// asked. A revocation in this moment finds no subscriber of its that it could
// end, so it must be found when there is one.
type revocations struct {
	count int64
	last  map[int64]int64 // of each user, the number of the last one
	floor int64           // users who are not in last were not revoked after this one
}

// maxRevoked bounds how many users are remembered. When there are more, all are
// forgotten, and every client that is just being let in is taken for a revoked
// one: it is asked again who that is, or must come again.
const maxRevoked = 1 << 16

func (r *revocations) add(user int64) {
	if len(r.last) >= maxRevoked || r.last == nil {
		r.last, r.floor = make(map[int64]int64), r.count
	}
	r.count++
	r.last[user] = r.count
}

// since reports whether a user may have been revoked since a moment.
func (r *revocations) since(user int64, m Moment) bool {
	if m.next == 0 {
		return false
	}
	last, ok := r.last[user]
	if !ok {
		last = r.floor
	}
	return last >= m.next
}
