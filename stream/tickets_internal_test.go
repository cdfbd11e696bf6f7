package stream

import (
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

func TestALateTicketIsNoneAndTakesNoRoom(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	id := func(user int64) Identity {
		return Identity{Identity: relay.Identity{UserID: user, Role: "cadet"}, ExpiresAt: now.Add(time.Hour)}
	}
	tickets := newTickets(100, 3)
	issue := func(user int64, at time.Time) string {
		t.Helper()
		code, ok := tickets.issue(id(user), at)
		if !ok {
			t.Fatalf("no ticket for user %d", user)
		}
		return code
	}
	inTime, late := issue(1, now), issue(1, now)
	got, err := tickets.take(inTime, now.Add(ticketLife-1))
	if err != nil || got.ticket.identity.UserID != 1 {
		t.Errorf("in time: %+v, %v", got, err)
	}
	tickets.useUp(got)
	if _, err := tickets.take(late, now.Add(ticketLife)); err == nil {
		t.Error("a late ticket was good")
	}
	for user := range int64(1000) {
		at := now.Add(time.Duration(user) * time.Second)
		for range 5 {
			issue(user, at)
		}
	}
	if n := len(tickets.byCode); n != 90 || tickets.byAge.Len() != n || len(tickets.byUser) != 30 {
		t.Errorf("%d tickets, %d by age, of %d users are kept, want 90 of 30", n, tickets.byAge.Len(), len(tickets.byUser))
	}
	issue(1, now.Add(time.Hour))
	if n := len(tickets.byCode); n != 1 || tickets.byAge.Len() != 1 || len(tickets.byUser) != 1 {
		t.Errorf("%d tickets, %d by age, of %d users are kept, want 1", n, tickets.byAge.Len(), len(tickets.byUser))
	}
}

func TestATicketIsOnePersonsAtATime(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	tickets := newTickets(2, 2)
	issue := func() (code string, ok bool) {
		return tickets.issue(Identity{Identity: relay.Identity{UserID: 1, Role: "cadet"}, ExpiresAt: now.Add(time.Hour)}, now)
	}
	code, _ := issue()
	free := func(want bool) (taken *showing) {
		t.Helper()
		taken, err := tickets.take(code, now)
		if (err == nil) != want {
			t.Fatalf("taking it: %v, want it to be free: %v", err, want)
		}
		if err != nil && !err.(*AuthError).genuine { //nolint:errorlint // it is no other
			t.Error("a ticket of ours is taken for one that was made up")
		}
		return taken
	}
	first := free(true)
	free(false)
	tickets.giveBack(first)
	second := free(true)
	tickets.giveBack(first) // once more, which must not take it from the second
	free(false)
	tickets.useUp(second)
	tickets.giveBack(second)
	free(false)
	if n := len(tickets.byCode); n != 0 {
		t.Errorf("%d tickets take room, want none", n)
	}
	code, _ = issue()
	third := free(true)
	for range 2 {
		if _, ok := issue(); !ok {
			t.Error("no ticket instead of one that is taken") // the oldest of the user gives way
		}
	}
	tickets.useUp(third)
	if n := len(tickets.byCode); n != 2 || tickets.byAge.Len() != 2 || len(tickets.byUser[1]) != 2 {
		t.Errorf("%d tickets, %d by age, are kept, want 2", n, tickets.byAge.Len())
	}
}
