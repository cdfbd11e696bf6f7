package stream_test

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/stream"
)

// interruption happens once, between somebody's having looked and going on.
type interruption struct{ next atomic.Pointer[func()] }

func (i *interruption) set(do func()) { i.next.Store(&do) }

func (i *interruption) pass() {
	if do := i.next.Swap(nil); do != nil {
		(*do)()
	}
}

// slowPost is a directory whose answers are of a while ago when they arrive.
type slowPost struct {
	*directory
	way interruption
}

func (d *slowPost) People(ctx context.Context, users []int64) ([]relay.Person, error) {
	found, err := d.directory.People(ctx, users)
	d.way.pass()
	return found, err
}

// revoke revokes user 5, and returns when the relay has let the user go.
func (w *world) revoke() {
	var passed sync.WaitGroup
	passed.Add(1)
	sub, err := w.Subscribe(relay.Identity{UserID: 99, Role: "admin"}, bystander{&passed}, relay.Start{})
	if err != nil {
		panic(err)
	}
	w.Insert(relay.Row{Type: relay.TypeSessionRevoked, UserIDs: []int64{5}}, relay.Row{Type: "after it", UserIDs: []int64{99}})
	passed.Wait()
	sub.Close()
}

// bystander is a client that waits for one event.
type bystander struct{ passed *sync.WaitGroup }

func (b bystander) Events([]*relay.Event, bool) error { b.passed.Done(); return nil }
func (bystander) Control(relay.Control) error         { return nil }
func (bystander) End(error)                           {}

func TestWhoIsRevokedWhileConnectingIsLetInOnlyAsWhoTheyAreNow(t *testing.T) {
	t.Parallel()
	d := &slowPost{directory: newDirectory()}
	w := newWorld(t, worldOptions{Options: stream.Options{
		Directory: d, Verifier: verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), UserOnly: true}),
	}})
	// becomes makes user 5 somebody else while their next connection is let in.
	becomes := func(p relay.Person) {
		d.set(person(5, "cadet", 17))
		d.way.set(func() { d.set(p); w.revoke() })
	}
	withdrawn := person(5, "cadet", 17)
	withdrawn.Approved = false
	becomes(withdrawn)
	w.dial(t, "/ws/updates/?token="+sign(t, user(5)), nil).wantClosed(t, 4001, "user not approved")
	becomes(withdrawn)
	wantError(t, w.get(t, "/api/events?token="+sign(t, user(5)), nil), http.StatusForbidden, "not_approved")
	w.wantConnections(t, 0)

	for _, open := range []func() client{
		func() client { return w.dial(t, "/ws/updates/?token="+sign(t, user(5)), nil) },
		func() client { return w.events(t, "/api/events?token="+sign(t, user(5)), nil) },
	} {
		becomes(person(5, "cadet", 18))
		c := open()
		if m := nextOf(t, c, "connection_established"); m.CadetID == nil || *m.CadetID != 18 {
			t.Errorf("let in as %s", m.text)
		}
		head := w.Status().Head
		w.Insert(grade(17), grade(18))
		wantEvents(t, c, head+2)
	}
}

func TestATokenThatIsCheckedWhileItsUserIsRevokedOpensNothing(t *testing.T) {
	t.Parallel()
	var check interruption
	w := newWorld(t, worldOptions{Options: stream.Options{Verifier: verifier(t, stream.VerifierOptions{
		HMACSecret: []byte(secret), Now: func() time.Time { check.pass(); return time.Now() },
	})}})
	check.set(w.revoke)
	w.dial(t, "/ws/updates/?token="+sign(t, cadet17), nil).wantClosed(t, 4001, "session revoked")
	check.set(w.revoke)
	wantError(t, w.get(t, "/api/events?token="+sign(t, cadet17), nil), http.StatusUnauthorized, "session_revoked")
	w.wantConnections(t, 0)

	// A new token in place: the connection that it comes on is ended.
	c := w.connect(t, cadet17)
	check.set(w.revoke)
	c.send(t, `{"type":"auth","token":"`+sign(t, cadet17)+`"}`)
	c.wantClosed(t, 4001, "session revoked")

	// Who signs in again afterwards comes in, as the contract says.
	w.connect(t, cadet17)
}
