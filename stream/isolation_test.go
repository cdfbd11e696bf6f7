package stream_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"
	"pgregory.net/rapid"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// maySee is the routing table of the contract (section 3), said once more and in
// other words than the relay's own.
func maySee(row *relay.Row, who relay.Identity) bool {
	if row.Type == "session_revoked" || slices.Contains([]string{"", "pong", "error", "connection_established", "replay_complete", "token_expiring"}, row.Type) {
		return false
	}
	staff := who.Role == "admin" || who.Role == "training_staff"
	nobodyNamed := !row.HasCadet && len(row.UserIDs) == 0 && len(row.Roles) == 0
	return row.HasCadet && who.HasCadet && row.CadetID == who.CadetID ||
		row.HasCadet && staff ||
		nobodyNamed && staff ||
		slices.Contains(row.UserIDs, who.UserID) ||
		slices.Contains(row.Roles, who.Role) ||
		slices.Contains(row.Roles, "*")
}

// observed is a client that notes everything.
type observed struct {
	socket *wsClient
	stream *sseClient

	// identities are who it was, one after the other; a renewal adds one.
	identities []relay.Identity
	replays    int   // that it asked for
	after      int64 // where it began, if it was resumed
	resumed    bool
	gone       bool

	reading sync.Mutex // held while it does not read

	mu     sync.Mutex
	frames []message
	ended  bool
}

func (o *observed) read(next func() (message, error)) {
	for {
		o.reading.Lock()
		o.reading.Unlock() //nolint:staticcheck,gocritic // it waits for who holds it
		m, err := next()
		o.mu.Lock()
		if err != nil {
			o.ended = true
			o.mu.Unlock()
			return
		}
		o.frames = append(o.frames, m)
		o.mu.Unlock()
	}
}

func (o *observed) seen() []message {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.frames)
}

func (o *observed) count(is func(m message) bool) (n int) {
	for _, m := range o.seen() {
		if is(m) {
			n++
		}
	}
	return n
}

func (o *observed) close() {
	o.mu.Lock()
	o.gone = true
	o.mu.Unlock()
	if o.socket != nil {
		_ = o.socket.Close()
	} else {
		_ = o.stream.Body.Close()
	}
}

// isolation is the state of one run of the property.
type isolation struct {
	t       *testing.T
	w       *world
	rows    []relay.Row           // the row of event n is rows[n-1]
	changed map[int64][]relay.Row // what the rows of events were changed to, one after the other
	clients []*observed
	begun   int // rows that were there before this run
	revoked map[int64]bool
	stalled bool // once in a run is enough
}

// The people and rows of the property come from few values, so that they meet
// often. Some roles look like groups.
var (
	drawRole  = rapid.SampledFrom([]string{"admin", "training_staff", "cadet", "instructor", "cadet_1", "user_1", "staff", "role_admin"})
	drawUser  = rapid.Int64Range(1, 5)
	drawCadet = rapid.Int64Range(0, 3) // 0 is none
)

func drawIdentity(r *rapid.T, user int64) relay.Identity {
	cadet := drawCadet.Draw(r, "cadet")
	return relay.Identity{UserID: user, Role: drawRole.Draw(r, "role"), CadetID: cadet, HasCadet: cadet > 0}
}

func claimsOf(who relay.Identity) jwt.MapClaims {
	claims := jwt.MapClaims{"user_id": who.UserID, "role": who.Role}
	if who.HasCadet {
		claims["cadet_id"] = who.CadetID
	}
	return claims
}

// connect adds a client, from the head or after an event.
func (s *isolation) connect(r *rapid.T) {
	who := drawIdentity(r, drawUser.Draw(r, "user"))
	query := "?token=" + sign(s.t, claimsOf(who))
	if rapid.Bool().Draw(r, "ticket") {
		query = "?ticket=" + s.w.ticket(s.t, sign(s.t, claimsOf(who)))
	}
	o := &observed{identities: []relay.Identity{who}, resumed: rapid.Bool().Draw(r, "resume")}
	if o.resumed {
		relaytest.Wait(s.t, "the rows are events", func() bool { return s.w.Status().Head == int64(len(s.rows)) })
		o.after = int64(rapid.IntRange(s.begun, len(s.rows)).Draw(r, "after"))
		query += fmt.Sprintf("&last_event_id=%d", o.after)
	}
	if rapid.Bool().Draw(r, "websocket") {
		o.socket = s.w.dial(s.t, "/ws/updates/"+query, nil)
		go o.read(func() (message, error) {
			_, text, err := o.socket.ReadMessage()
			if err != nil {
				return message{}, err
			}
			return decode(text)
		})
	} else {
		o.stream = s.w.events(s.t, "/api/events"+query, nil)
		go o.read(func() (message, error) {
			m, err := o.stream.read()
			if err != nil {
				return message{}, err
			}
			return decode([]byte(m.text))
		})
	}
	relaytest.Wait(s.t, "connection_established", func() bool { return len(o.seen()) > 0 || !s.lives(o) })
	s.clients = append(s.clients, o)
}

// insert commits one transaction; all its rows are of one millisecond.
func (s *isolation) insert(r *rapid.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rows := make([]relay.Row, rapid.IntRange(1, 5).Draw(r, "rows"))
	for i := range rows {
		rows[i] = drawRow(r)
		rows[i].Type = rapid.SampledFrom([]string{"grade_update", "notification", "message", "pong", "connection_established"}).Draw(r, "type")
		// Every row has a secret of its own.
		rows[i].Payload = fmt.Appendf(nil, `{"secret": "secret-%d-of-row"}`, len(s.rows)+1+i)
		rows[i].CreatedAt = at
	}
	s.commit(rows...)
}

// drawRow is a row for somebody.
func drawRow(r *rapid.T) relay.Row {
	cadet := drawCadet.Draw(r, "cadet")
	return relay.Row{
		CadetID: cadet, HasCadet: cadet > 0,
		UserIDs: rapid.SliceOfN(drawUser, 0, 2).Draw(r, "users"),
		Roles:   rapid.SliceOfN(rapid.OneOf(drawRole, rapid.Just("*")), 0, 2).Draw(r, "roles"),
	}
}

// change gives a row that was journaled another audience and another payload.
// Nobody who may not see that is sent it, whatever the journal remembers.
func (s *isolation) change(r *rapid.T) {
	relaytest.Wait(s.t, "the rows are events", func() bool { return s.w.Status().Head == int64(len(s.rows)) })
	if len(s.rows) == s.begun {
		r.Skip("there is no row")
	}
	id := int64(rapid.IntRange(s.begun+1, len(s.rows)).Draw(r, "event"))
	was := &s.rows[id-1]
	if was.Type == "session_revoked" {
		r.Skip("it is a message to the relay")
	}
	row := drawRow(r)
	row.Type, row.CreatedAt = was.Type, was.CreatedAt
	s.changed[id] = append(s.changed[id], row)
	row.Payload = fmt.Appendf(nil, `{"secret": "secret-%d-of-row", "change": %d}`, id, len(s.changed[id]))
	s.w.World.Rewrite(id, row)
}

// versions are what the row of an event said, the first first.
func (s *isolation) versions(id int64) []relay.Row {
	return append([]relay.Row{s.rows[id-1]}, s.changed[id]...)
}

func (s *isolation) commit(rows ...relay.Row) {
	s.rows = append(s.rows, rows...)
	s.w.Insert(rows...)
}

// lives reports whether a client is connected. Only a revoked one may not be: also
// one that came between the row that revokes and the event.
func (s *isolation) lives(o *observed) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended && !o.gone {
		if !s.revoked[o.identities[0].UserID] {
			s.t.Fatalf("the connection of %+v has ended", o.identities)
		}
		o.gone = true
	}
	return !o.gone
}

// send sends a message to a client that may just have been revoked.
func (s *isolation) send(o *observed, text string) {
	if o.socket.WriteMessage(websocket.TextMessage, []byte(text)) != nil {
		relaytest.Wait(s.t, "the end of the connection", func() bool { return !s.lives(o) })
	}
}

// live draws one of the clients that are connected, over a WebSocket if asked.
func (s *isolation) live(r *rapid.T, socket bool) *observed {
	var all []*observed
	for _, o := range s.clients {
		if s.lives(o) && (!socket || o.socket != nil) {
			all = append(all, o)
		}
	}
	if len(all) == 0 {
		r.Skip("nobody is connected")
	}
	return rapid.SampledFrom(all).Draw(r, "client")
}

func (s *isolation) disconnect(r *rapid.T) { s.live(r, false).close() }

// renew gives a client a new token, of another role and cadet.
func (s *isolation) renew(r *rapid.T) {
	o := s.live(r, true)
	who := drawIdentity(r, o.identities[0].UserID)
	o.identities = append(o.identities, who)
	s.send(o, `{"type":"auth","token":"`+sign(s.t, claimsOf(who))+`"}`)
}

// renewBehind gives a new token to a client that has not read for a while, so that
// events which the old one had a right to wait for it.
func (s *isolation) renewBehind(r *rapid.T) {
	if s.stalled || rapid.IntRange(0, 5).Draw(r, "seldom") > 0 {
		r.Skip("it takes a while")
	}
	o := s.live(r, true)
	s.stalled = true
	o.reading.Lock()
	defer o.reading.Unlock()
	was := o.identities[len(o.identities)-1]
	for range 5 { // more than the sockets take
		n := len(s.rows) + 1
		s.commit(relay.Row{
			Type: "message", UserIDs: []int64{was.UserID}, CreatedAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
			Payload: fmt.Appendf(nil, `{"secret": "secret-%d-of-row", "text": "%s"}`, n, strings.Repeat("x", 900<<10)),
		})
	}
	for range 3 {
		n := len(s.rows) + 1
		s.commit(relay.Row{Type: "notification", Roles: []string{was.Role}, Payload: fmt.Appendf(nil, `{"secret": "secret-%d-of-row"}`, n)})
		s.insert(r)
	}
	relaytest.Wait(s.t, "the rows are events", func() bool { return s.w.Status().Head == int64(len(s.rows)) })
	who := drawIdentity(r, was.UserID)
	o.identities = append(o.identities, who)
	s.send(o, `{"type":"auth","token":"`+sign(s.t, claimsOf(who))+`"}`)
	s.insert(r)
}

func (s *isolation) replay(r *rapid.T) {
	o := s.live(r, true)
	if o.replays >= 3 { // more than four that wait would be refused
		r.Skip("it has asked often enough")
	}
	relaytest.Wait(s.t, "the rows are events", func() bool { return s.w.Status().Head == int64(len(s.rows)) })
	o.replays++
	after := int64(rapid.IntRange(s.begun, len(s.rows)).Draw(r, "after"))
	s.send(o, fmt.Sprintf(`{"type":"replay_request","last_event_id":%d}`, min(after, o.newest())))
}

// newest is the newest event that it has, or where it began. Who asks for what comes
// after a later one is not sent what lies between.
func (o *observed) newest() int64 {
	frames := o.seen()
	newest := frames[0].LastEventID
	if o.resumed {
		newest = o.after
	}
	for _, m := range frames {
		newest = max(newest, m.EventID)
	}
	return newest
}

func isReplayAnswer(m message) bool { return m.Type == "replay_complete" && m.EventID == 0 }

// revoke ends the connections of a user.
func (s *isolation) revoke(r *rapid.T) {
	user := drawUser.Draw(r, "user")
	s.revoked[user] = true
	s.commit(relay.Row{Type: "session_revoked", UserIDs: []int64{user}, Payload: []byte(`{"secret": "secret-0-of-row"}`)})
	// Who comes meanwhile may be let go before anything was said; that is another
	// test's business.
	revocations := 0
	for i := range s.rows {
		if s.rows[i].Type == "session_revoked" {
			revocations++
		}
	}
	relaytest.Wait(s.t, "the revocation is handed out", func() bool {
		n, _ := s.w.metric(s.t, `syncrelay_events_total{event_type="session_revoked"}`)
		return n == float64(revocations)
	})
	for _, o := range s.clients {
		if o.identities[0].UserID == user {
			relaytest.Wait(s.t, "the revoked client has gone", func() bool { return !s.lives(o) })
		}
	}
}

// settle waits until everybody who is connected has been sent everything.
func (s *isolation) settle() {
	s.commit(relay.Row{Type: "last", Roles: []string{"*"}, Payload: []byte(`{}`)})
	last := int64(len(s.rows))
	// Events are counted once they have been handed out. Wait for that also when
	// nobody is left, or else a revocation could reach the next run.
	runs := 0
	for i := range s.rows {
		if s.rows[i].Type == "last" {
			runs++
		}
	}
	relaytest.Wait(s.t, "the rows are shown", func() bool {
		n, _ := s.w.metric(s.t, `syncrelay_events_total{event_type="last"}`)
		return n == float64(runs)
	})
	for _, o := range s.clients {
		answers := o.replays
		if o.resumed {
			answers++
		}
		relaytest.Wait(s.t, "everything has come", func() bool {
			return !s.lives(o) || o.count(func(m message) bool { return m.EventID == last }) > 0 && o.count(isReplayAnswer) == answers &&
				o.count(func(m message) bool { return m.Renewed }) == len(o.identities)-1
		})
	}
}

var (
	secretOf = regexp.MustCompile(`secret-(\d+)-of-row`)
	changeOf = regexp.MustCompile(`"change": ?(\d+)`)
	members  = []string{"cadet_id", "data", "event_id", "timestamp", "type"}
)

// check looks at everything that a client was sent.
func (s *isolation) check(r *rapid.T, o *observed) {
	frames := o.seen()
	if len(frames) == 0 && o.gone {
		return // it was revoked before anything was sent
	}
	if len(frames) == 0 || frames[0].Type != "connection_established" {
		r.Fatalf("the first frame is %+v", frames)
	}
	got := make(map[int64]bool)
	now, before := 0, int64(0) // the identity that was confirmed last, and the last event
	for _, m := range frames[1:] {
		if m.Renewed {
			now++
		}
		if m.EventID == 0 {
			if secretOf.MatchString(m.text) {
				r.Fatalf("a control message holds a row's data: %s", m.text)
			}
			continue
		}
		if m.EventID > int64(len(s.rows)) {
			r.Fatalf("an event that nobody wrote: %s", m.text)
		}
		change := 0
		if found := changeOf.FindStringSubmatch(m.text); found != nil {
			change, _ = strconv.Atoi(found[1])
		}
		row := &s.versions(m.EventID)[change]
		// A renewal holds a moment before it is confirmed.
		allowed := maySee(row, o.identities[now]) || now+1 < len(o.identities) && maySee(row, o.identities[now+1])
		if !allowed {
			r.Fatalf("%+v was sent what is not for them: %s of %+v", o.identities[now:], m.text, row)
		}
		for _, found := range secretOf.FindAllStringSubmatch(m.text, -1) {
			if found[1] != fmt.Sprint(m.EventID) {
				r.Fatalf("event %d holds the data of row %s: %s", m.EventID, found[1], m.text)
			}
		}
		var whole map[string]json.RawMessage
		if err := json.Unmarshal([]byte(m.text), &whole); err != nil {
			r.Fatal(err)
		}
		for name := range whole {
			if !slices.Contains(members, name) {
				r.Fatalf("an event has a member %s: %s", name, m.text)
			}
		}
		if o.replays == 0 && m.EventID <= before {
			r.Fatalf("event %d came after event %d", m.EventID, before)
		}
		before = m.EventID
		got[m.EventID] = true
	}
	if o.gone {
		return
	}
	// What was for it the whole time must have come.
	start := frames[0].LastEventID
	if o.resumed {
		start = o.after
	}
	for id := start + 1; id <= int64(len(s.rows)); id++ {
		always := true
		for _, row := range s.versions(id) {
			for _, who := range o.identities {
				always = always && maySee(&row, who)
			}
		}
		if always && !got[id] {
			r.Fatalf("%+v was not sent event %d, %+v; it was sent %v", o.identities, id, s.rows[id-1], slices.Sorted(maps.Keys(got)))
		}
	}
}

func TestNobodyIsEverSentWhatIsNotForThem(t *testing.T) {
	t.Parallel()
	// Most that is replayed comes from the journal.
	w := newWorld(t, worldOptions{relay: relay.Options{RingEvents: 8}, Options: stream.Options{WriteTimeout: patience}})
	var rows []relay.Row // of all runs, for event IDs go on
	rapid.Check(t, func(r *rapid.T) {
		s := &isolation{t: t, w: w, rows: rows, begun: len(rows), revoked: make(map[int64]bool), changed: make(map[int64][]relay.Row)}
		defer func() {
			rows = s.rows
			for _, o := range s.clients {
				o.close()
			}
		}()
		r.Repeat(map[string]func(*rapid.T){
			"connect": s.connect, "connect another": s.connect, "insert": s.insert, "insert more": s.insert,
			"disconnect": s.disconnect, "renew": s.renew, "replay": s.replay, "revoke": s.revoke, "renew behind": s.renewBehind, "change": s.change,
		})
		s.settle()
		for _, o := range s.clients {
			s.check(r, o)
		}
	})
	for _, source := range []string{"journal", "memory"} {
		if n, _ := w.metric(t, `syncrelay_replays_total{source="`+source+`"}`); n < 5 {
			t.Errorf("%g replays came from the %s", n, source)
		} else {
			t.Logf("%g replays came from the %s", n, source)
		}
	}
}
