package relay

import "testing"

func TestRevocationsOfAMomentAgoAreFoundAndMemoryOfThemIsBounded(t *testing.T) {
	t.Parallel()
	h := newHub()
	before := h.moment()
	h.revoke(revocation(5))
	after := h.moment()
	for _, c := range []struct {
		what string
		user int64
		at   Moment
		want bool
	}{
		{"the user, asked before", 5, before, true},
		{"another user", 6, before, false},
		{"the user, asked after", 5, after, false},
		{"who was not asked", 5, Moment{}, false},
	} {
		if got := h.revoked.since(c.user, c.at); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	for user := range int64(2 * maxRevoked) {
		h.revoke(revocation(user + 100))
	}
	if n := len(h.revoked.last); n > maxRevoked {
		t.Errorf("%d users are remembered, want %d at most", n, maxRevoked)
	}
	if !h.revoked.since(5, before) {
		t.Error("a revocation was forgotten")
	}
	if h.revoked.since(5, h.moment()) {
		t.Error("who is asked now is taken for revoked")
	}
}

func revocation(user int64) *Event { return &Event{Audience: Audience{revoked: []int64{user}}} }
