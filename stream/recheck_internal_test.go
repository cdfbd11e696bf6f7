package stream

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// slowDirectory takes its time for each question.
type slowDirectory struct {
	takes time.Duration

	mu                            sync.Mutex
	people                        map[int64]relay.Person
	asking, together, largest, in int // questions now, and at once at most; users of one at most, and of all
}

func (d *slowDirectory) People(ctx context.Context, users []int64) (found []relay.Person, err error) {
	d.mu.Lock()
	d.asking++
	d.in += len(users)
	d.together, d.largest = max(d.together, d.asking), max(d.largest, len(users))
	for _, user := range users { // as they are now: the answer is late, as one from a database is
		if p, ok := d.people[user]; ok {
			found = append(found, p)
		}
	}
	d.mu.Unlock()
	select {
	case <-time.After(d.takes):
	case <-ctx.Done():
		err = ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asking--
	return found, err
}

// asked is how many users were asked for until now.
func (d *slowDirectory) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.in
}

// leavingLink is a transport that remembers when it ended, and why.
type leavingLink struct {
	countingLink
	session *session
	mu      sync.Mutex
	ended   time.Time
	reason  *Reason
}

func (l *leavingLink) sayGoodbye(reason *Reason, _ string) {
	l.session.server.forget(l.session)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended, l.reason = time.Now(), reason
}

// Ten thousand users who came at the same moment are asked for by and by, and each
// who is not who they were is let go within the minute: also when each question
// takes nearly as long as it may.
func TestTenThousandConnectedUsersAreEachAskedForWithinTheMinute(t *testing.T) {
	t.Parallel()
	const users, minutes = 10_000, 5
	for _, takes := range []time.Duration{5 * time.Millisecond, time.Second, 4900 * time.Millisecond} {
		t.Run(takes.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				d := &slowDirectory{takes: takes, people: make(map[int64]relay.Person)}
				s := &Server{sessions: make(map[*session]struct{}), people: newPeople(d, func(doing string, err error) { t.Error(doing, err) })}
				s.options.IdentityRefresh = time.Minute
				links := make([]*leavingLink, users)
				for i := range links {
					who := relay.Identity{UserID: int64(i + 1), Role: "cadet", CadetID: int64(i + 1), HasCadet: true}
					d.people[who.UserID] = relay.Person{Identity: who, Approved: true}
					links[i] = &leavingLink{}
					links[i].session = &session{server: s, link: links[i], identity: Identity{Identity: who}, asked: time.Now()}
					s.sessions[links[i].session] = struct{}{}
				}
				ctx, cancel := context.WithCancel(t.Context())
				over := make(chan struct{})
				go func() { defer close(over); s.recheck(ctx) }()

				order, changed := rand.Perm(users), make(map[int]time.Time)
				most := 0 // users asked for in three seconds, after the first minute
				for step := range minutes * 20 {
					before := d.asked()
					for range 30 {
						time.Sleep(100 * time.Millisecond)
						i := order[len(changed)]
						d.mu.Lock()
						person := d.people[int64(i+1)]
						if len(changed)%2 == 0 {
							person.Approved = false
						} else {
							person.Role = "training_staff"
						}
						d.people[person.UserID] = person
						d.mu.Unlock()
						changed[i] = time.Now()
					}
					if step > 20 {
						most = max(most, d.asked()-before)
					}
				}
				time.Sleep(time.Minute)
				cancel()
				<-over
				s.people.close()
				synctest.Wait() // for the last goodbyes

				longest := time.Duration(0)
				for i, l := range links {
					l.mu.Lock()
					at, has := changed[i]
					switch {
					case has && l.ended.IsZero():
						t.Errorf("user %d was not let go in a minute", i+1)
					case has:
						longest = max(longest, l.ended.Sub(at))
					case !l.ended.IsZero():
						t.Errorf("user %d has not changed and was let go: %s", i+1, l.reason.Label)
					}
					l.mu.Unlock()
				}
				t.Logf("%d changes: the last was let go after %s; at most %d questions at once, of %d users at most; at most %d users in 3 s", len(changed), longest, d.together, d.largest, most)
				if longest > time.Minute {
					t.Errorf("let go after %s, want within a minute", longest)
				}
				if d.together > recheckAsks || d.largest > recheckBatch {
					t.Errorf("%d questions at once, of %d users; allowed are %d of %d", d.together, d.largest, recheckAsks, recheckBatch)
				}
				if takes < time.Second && most > 2*users/recheckRound {
					t.Errorf("%d users were asked for in three seconds, want them spread", most)
				}
			})
		})
	}
}
