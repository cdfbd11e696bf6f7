package stream

import (
	"container/list"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"net/http"
	"slices"
	"sync"
	"time"
)

// ticketLife is how long a ticket can be used (CONTRACT, section 6).
const ticketLife = 30 * time.Second

// issued is the outcome of a request for a ticket that is no refusal.
const issued = "issued"

// tickets are the one-time tickets that have not been used: each opens one
// connection as who asked for it, so that no token needs to stand in a URL.
//
// A connection that is not let in does not use its ticket up: it may bring it
// again.
type tickets struct {
	most, perUser int
	key           []byte // that codes are marked with

	mu     sync.Mutex
	byCode map[string]*ticket
	byUser map[int64][]*ticket // the oldest first
	byAge  list.List           // of *ticket; all live equally long
}

type ticket struct {
	code     string
	identity Identity
	until    time.Time
	age      *list.Element
	taken    bool // by a connection that is being let in
}

// showing is a ticket that a connection which is being let in has taken.
type showing struct {
	ticket *ticket
	over   bool // it was given back, or used up; guarded by tickets.mu
}

func newTickets(most, perUser int) *tickets {
	return &tickets{most: most, perUser: perUser, key: []byte(rand.Text()), byCode: make(map[string]*ticket), byUser: make(map[int64][]*ticket)}
}

// issue makes a ticket. A user who has too many loses the oldest; nobody loses one
// for another user, who is refused when there are too many in all.
func (t *tickets) issue(id Identity, now time.Time) (code string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for oldest := t.byAge.Front(); oldest != nil; oldest = t.byAge.Front() {
		old := oldest.Value.(*ticket) //nolint:forcetypeassert // nothing else is in it
		if now.Before(old.until) {
			break
		}
		t.remove(old)
	}
	if own := t.byUser[id.UserID]; len(own) >= t.perUser {
		t.remove(own[0])
	}
	if len(t.byCode) >= t.most {
		return "", false
	}
	one := &ticket{code: t.mark(rand.Text()), identity: id, until: now.Add(ticketLife)}
	one.age = t.byAge.PushBack(one)
	t.byCode[one.code] = one
	t.byUser[id.UserID] = append(t.byUser[id.UserID], one)
	return one.code, true
}

// codeLength is the length of what is random in a code: 130 bits.
const codeLength = 26

// mark adds to a code what shows that it was made here. So a ticket that was used,
// or has gone, is told from one that was made up, and need not be remembered.
func (t *tickets) mark(text string) string {
	mac := hmac.New(sha256.New, t.key)
	mac.Write([]byte(text))
	return text + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(mac.Sum(nil)[:16])
}

// made reports whether a code was made here.
func (t *tickets) made(code string) bool {
	return len(code) > codeLength && hmac.Equal([]byte(code), []byte(t.mark(code[:codeLength])))
}

// take takes a ticket, until it is given back or used up. The error is an
// [*AuthError].
func (t *tickets) take(code string, now time.Time) (*showing, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one, ok := t.byCode[code]
	if ok && !one.taken && now.Before(one.until) && now.Before(one.identity.ExpiresAt) {
		one.taken = true
		return &showing{ticket: one}, nil
	}
	err := invalidToken("the ticket is not known, was used, or is too old")
	if ok || t.made(code) {
		err = genuine(err)
	}
	return nil, err
}

// giveBack lets a ticket be taken again, unless it was used up. Nothing is done
// the second time, when somebody else may have it, nor for nil.
func (t *tickets) giveBack(s *showing) {
	if s == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !s.over {
		s.over, s.ticket.taken = true, false
	}
}

// useUp ends a ticket that was taken. Nothing is done for nil.
func (t *tickets) useUp(s *showing) {
	if s == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s.over = true
	if t.byCode[s.ticket.code] == s.ticket { // or else it has ended since
		t.remove(s.ticket)
	}
}

// remove takes a ticket out. t.mu is held.
func (t *tickets) remove(one *ticket) {
	delete(t.byCode, one.code)
	t.byAge.Remove(one.age)
	user := one.identity.UserID
	own := slices.DeleteFunc(t.byUser[user], func(other *ticket) bool { return other == one })
	if len(own) == 0 {
		delete(t.byUser, user)
	} else {
		t.byUser[user] = own
	}
}

type ticketMessage struct {
	Ticket    string `json:"ticket"`
	ExpiresIn int64  `json:"expires_in"` // seconds
}

// serveTicket answers POST /api/ticket. The token must stand in the header: that
// is what tickets are for.
func (s *Server) serveTicket(w http.ResponseWriter, r *http.Request) {
	count := func(outcome string) { s.metrics.tickets.WithLabelValues(outcome).Inc() }
	if !s.origins.Allow(r) {
		count(reasonOrigin.Label)
		s.refuseOrigin(w, r)
		return
	}
	allowOrigin(w, r)
	if r.Method == http.MethodOptions {
		w.Header().Set("Access-Control-Allow-Methods", "POST")
		w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type")
		w.Header().Set("Access-Control-Max-Age", "600")
		w.WriteHeader(http.StatusNoContent)
		return
	}
	refuse := func(reason *Reason) {
		count(reason.Label)
		writeReason(w, r, reason)
	}
	switch {
	case s.isDraining():
		refuse(reasonRestarting)
		return
	case !s.relay.Status().Serving: // another relay would not know the ticket
		refuse(reasonUnavailable)
		return
	}
	id, visit, err := s.knockAs(w, r, func() (Identity, error) { return s.authenticate(r.Context(), authorization(r)) })
	defer s.depart(visit)
	if err != nil {
		s.refuseToken(w, r, err, count)
		return
	}
	code, ok := s.tickets.issue(id, time.Now())
	if !ok {
		refuse(reasonUnavailable)
		return
	}
	count(issued)
	writeJSON(w, http.StatusOK, ticketMessage{code, int64(ticketLife / time.Second)})
}
