package stream

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/syncrelay/syncrelay/relay"
)

// gate counts clients in and out, by address and by user, and says who is over
// a limit. What it remembers of addresses without a connection is bounded.
type gate struct {
	limits   Limits
	refusals *prometheus.CounterVec // by reason

	mu      sync.Mutex
	all     int
	byIP    map[netip.Addr]int // connections; of households
	users   map[int64]*user    // who have a connection
	replays func() int         // under way or waiting, of all users
	// What households and users that came lately have done.
	rates     *simplelru.LRU[netip.Addr, *ipRates]
	userRates *simplelru.LRU[int64, *userRates]
}

// ipRates are what one household has done of late.
type ipRates struct{ connects, failures, sockets *rate.Limiter }

// insistence is how many times faster sockets of an address may come than
// connections: as long as they don't, each is told why it is refused.
const insistence = 3

// maxHouseholds bounds how many households' rates are remembered, which costs
// 25 MB at most. Those that did not come for the longest are forgotten first: an
// attacker with more addresses than that is stopped by the limit in all.
const maxHouseholds = 1 << 16

func newGate(limits Limits, registerer prometheus.Registerer, replays func() int) *gate {
	g := &gate{
		limits: limits, byIP: make(map[netip.Addr]int), users: make(map[int64]*user), replays: replays,
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "syncrelay_refusals_total", Help: "What clients were refused because of a limit, by reason.",
		}, []string{"reason"}),
	}
	// These fail for sizes below 1 only.
	g.rates, _ = simplelru.NewLRU[netip.Addr, *ipRates](maxHouseholds, nil)
	g.userRates, _ = simplelru.NewLRU[int64, *userRates](maxUsers, nil)
	registerer.MustRegister(g.refusals)
	for _, label := range limitLabels() {
		g.refusals.WithLabelValues(label)
	}
	return g
}

// refused counts a refusal.
func (g *gate) refused(reason string) { g.refusals.WithLabelValues(reason).Inc() }

// limiter makes a rate limiter. A rate that is none lets everything through.
func limiter(perSecond float64, burst int) *rate.Limiter {
	if perSecond < 0 || burst < 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

// ratesOf finds or begins the rates of a household. g.mu is held.
func (g *gate) ratesOf(home netip.Addr) *ipRates {
	if r, ok := g.rates.Get(home); ok {
		return r
	}
	r := &ipRates{
		connects: limiter(g.limits.ConnectRatePerIP, g.limits.ConnectBurstPerIP),
		failures: limiter(g.limits.FailedAuthRatePerIP, g.limits.FailedAuthBurstPerIP),
		sockets:  limiter(insistence*g.limits.ConnectRatePerIP, insistence*g.limits.ConnectBurstPerIP),
	}
	g.rates.Add(home, r)
	return r
}

// visit is a connection that has asked to be let in.
type visit struct {
	home    netip.Addr
	counted bool         // it holds a place
	asked   relay.Moment // when it was begun to find out who it is
	begun   time.Time    // the same on the clock
	ticket  *showing     // that it has shown and not used up, nil for none
}

// knock lets a connection in that asks for it, by its address and by its token or
// ticket, as far as those go. The error is an [*AuthError], for a limit too. Whatever it is,
// depart ends the visit.
func (s *Server) knock(w http.ResponseWriter, r *http.Request, query url.Values) (Identity, visit, error) {
	var by *showing
	id, v, err := s.knockAs(w, r, func() (id Identity, err error) {
		id, by, err = s.authenticateRequest(r, query)
		return id, err
	})
	v.ticket = by
	return id, v, err
}

// knockAs is knock for who authenticates in a certain way, which is tried only if
// the address may have it tried.
func (s *Server) knockAs(w http.ResponseWriter, r *http.Request, authenticate func() (Identity, error)) (Identity, visit, error) {
	s.noise.warnOfProxy(s.options.Proxies, r)
	v := visit{home: household(s.options.Proxies.client(r))}
	if reason := s.gate.connect(v.home); reason != nil {
		return Identity{}, v, &AuthError{reason: reason}
	}
	v.counted, v.asked, v.begun = true, s.relay.Moment(), time.Now()
	// The time that it takes us to find out is not the client's.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // without it, nothing is lost
	defer s.answerSoon(w)
	known := false
	defer func() {
		if !known { // a panic, for which nobody else gives the place back
			s.gate.leave(v)
		}
	}()
	id, err := authenticate()
	known = true
	return id, v, s.gate.judged(v.home, err)
}

// judged counts what came of a token or ticket: one that was made up counts
// against its address. One that could not be checked does not, nor one that was
// good once, or is of who may sign tokens: that is an honest client's which has
// slept, or has been set up wrong. Those of an address that has shown too many
// are told that instead of what is wrong with each. Who has a good one is not kept waiting for it: a school is behind one
// address, and one forgotten screen with an old token must not shut it out.
func (g *gate) judged(home netip.Addr, err error) error {
	var auth *AuthError
	if !errors.As(err, &auth) || auth.reason != reasonInvalidToken || auth.genuine {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ratesOf(home).failures.Allow() {
		return err
	}
	g.refused(reasonTooManyFailed.Label)
	return &AuthError{reason: reasonTooManyFailed}
}

// arrive counts a socket, and says whether it may be answered at all.
func (g *gate) arrive(home netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ratesOf(home).sockets.Allow()
}

// connect takes a place for a connection, or says why there is none.
func (g *gate) connect(home netip.Addr) *Reason {
	g.mu.Lock()
	defer g.mu.Unlock()
	rates := g.ratesOf(home)
	var reason *Reason
	switch {
	case !rates.connects.Allow():
		reason = reasonTooFast
	case over(g.all, g.limits.Connections):
		reason = reasonFull
	case over(g.byIP[home], g.limits.ConnectionsPerIP):
		reason = reasonFullIP
	default:
		g.all++
		g.byIP[home]++
		return nil
	}
	g.refused(reason.Label)
	return reason
}

// depart ends a visit: gives its place back, and the ticket that nobody was let in
// with.
func (s *Server) depart(v visit) {
	s.tickets.giveBack(v.ticket)
	s.gate.leave(v)
}

// leave gives a visit's place back.
func (g *gate) leave(v visit) {
	if !v.counted {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	g.byIP[v.home]--
	if g.byIP[v.home] == 0 {
		delete(g.byIP, v.home)
	}
}

// user is one user's connections and replays.
type user struct {
	gate    *gate
	id      int64
	count   int          // of connections; guarded by gate.mu
	replays atomic.Int64 // under way or waiting; the relay counts
	asking  sync.Mutex   // held while a replay is asked for
}

// userRates are what one user has asked for of late. They are remembered when
// the user has gone, or else coming back would be a way around them.
type userRates struct {
	replays *rate.Limiter // how many are asked for
	pages   *rate.Limiter // how many pages of the log they took
}

// maxUsers bounds how many users' rates are remembered.
const maxUsers = 1 << 16

// join counts a connection in for its user, until part, or says why not.
func (g *gate) join(id int64) (*user, *Reason) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := g.users[id]
	if u == nil {
		u = &user{gate: g, id: id}
	}
	if over(u.count, g.limits.ConnectionsPerUser) {
		g.refused(reasonFullUser.Label)
		return nil, reasonFullUser
	}
	u.count++
	g.users[id] = u
	return u, nil
}

// part counts a connection of the user's out.
func (u *user) part() {
	u.gate.mu.Lock()
	defer u.gate.mu.Unlock()
	u.count--
	if u.count == 0 {
		delete(u.gate.users, u.id)
	}
}

// rates finds or begins the user's rates.
func (u *user) rates() *userRates {
	g := u.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if r, ok := g.userRates.Get(u.id); ok {
		return r
	}
	r := &userRates{
		replays: limiter(g.limits.ReplayRatePerUser, g.limits.ReplayBurstPerUser),
		pages:   limiter(g.limits.ReplayPageRatePerUser, g.limits.ReplayPageBurstPerUser),
	}
	g.userRates.Add(u.id, r)
	return r
}

// replay asks for a replay, unless a limit is in the way: then it says so and
// does not ask. One that memory has, as that of a client which has missed nothing,
// costs little and counts for no rate.
func (u *user) replay(remembered bool, ask func() error) (refused bool, err error) {
	u.asking.Lock() // so that nobody else of the user's slips in between
	defer u.asking.Unlock()
	limits := &u.gate.limits
	if over(int(u.replays.Load()), limits.ReplaysPerUser) || over(u.gate.replays(), limits.Replays) || !remembered && !u.rates().replays.Allow() {
		u.gate.refused(reasonTooManyReplays.Label)
		return true, nil
	}
	return false, ask()
}

// pace holds back a client whose user has had much of the log replayed.
func (u *user) pace(ctx context.Context) error { return u.rates().pages.Wait(ctx) }
