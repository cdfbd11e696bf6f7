package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// Directory says who users are, where a token says only which user it is for.
type Directory interface {
	// People returns those of the users that there are, in any order.
	People(ctx context.Context, users []int64) ([]relay.Person, error)
}

// people asks a directory for many at once. One question is under way at a time;
// who comes meanwhile gathers for the next. So all connections of one user share a
// question, and ten thousand clients that reconnect together are a few of them.
//
// Nothing is kept: an answer was asked for after whom it is for had come. A user
// whose approval was withdrawn, and whose connections were ended for it, could
// else come back on an answer of a moment ago.
type people struct {
	directory Directory
	failed    func(doing string, err error)
	life      context.Context //nolint:containedctx // a question outlives who asked it first
	end       context.CancelFunc

	mu      sync.Mutex
	waiting []*question
	asking  sync.WaitGroup
	busy    bool // a goroutine asks
	away    bool // the last question was not answered, and that has been logged
}

// question is about several users.
type question struct {
	users  map[int64]struct{}
	askers int           // how many wait for it
	done   chan struct{} // closed when found and err are set
	found  map[int64]relay.Person
	err    error
}

const (
	// maxAsked bounds one question, in users.
	maxAsked = 5000
	// askTimeout bounds the time until it is answered.
	askTimeout = 5 * time.Second
)

// The pause after a question, in which those gather who come next. When many come
// together it is longer, and nobody minds: they were away already. When the
// directory does not answer it is longer still.
const (
	pause      = 20 * time.Millisecond
	stormPause = 250 * time.Millisecond
	awayPause  = time.Second
	// storm is how many users make one.
	storm = 20
)

func newPeople(d Directory, failed func(doing string, err error)) *people {
	p := &people{directory: d, failed: failed}
	p.life, p.end = context.WithCancel(context.Background())
	return p
}

// close ends what is under way.
func (p *people) close() {
	p.mu.Lock()
	p.end()
	p.mu.Unlock()
	p.asking.Wait()
}

// identify says who a user is. The error is an [*AuthError].
func (p *people) identify(ctx context.Context, user int64) (relay.Identity, error) {
	q := p.join(user)
	if q == nil {
		return relay.Identity{}, &AuthError{reason: reasonRestarting}
	}
	select {
	case <-q.done:
	case <-ctx.Done():
		return relay.Identity{}, &AuthError{reason: reasonUnavailable}
	}
	if q.err != nil {
		return relay.Identity{}, &AuthError{reason: reasonUnavailable}
	}
	person, reason := judge(q.found, user)
	if reason != nil {
		return relay.Identity{}, &AuthError{reason: reason}
	}
	return person.Identity, nil
}

// Identify asks a directory once who a user is, and judges as if that user had
// connected. The error is an [*AuthError] if the user would not be let in, and
// the directory's own if that can't be known.
func Identify(ctx context.Context, d Directory, user int64) (relay.Identity, error) {
	var fault error
	p := newPeople(d, func(_ string, err error) { fault = err })
	id, err := p.identify(ctx, user)
	p.close()
	var refused *AuthError
	switch {
	case fault == nil:
		return id, err
	case errors.As(err, &refused) && refused.reason == reasonUnknownUser:
		return id, &AuthError{reason: refused.reason, detail: fault.Error()}
	}
	return relay.Identity{}, fault
}

// judge says whether a user may connect, of those that were found.
func judge(found map[int64]relay.Person, user int64) (relay.Person, *Reason) {
	person, ok := found[user]
	switch {
	case !ok:
		return person, reasonUnknownUser
	case !person.Approved:
		return person, reasonNotApproved
	}
	return person, nil
}

// join adds a user to the next question. It returns nil when there will be none.
func (p *people) join(user int64) *question {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil {
		return nil
	}
	last := len(p.waiting) - 1
	if last < 0 || len(p.waiting[last].users) >= maxAsked {
		p.waiting = append(p.waiting, &question{users: make(map[int64]struct{}), done: make(chan struct{})})
		last++
	}
	q := p.waiting[last]
	q.users[user] = struct{}{}
	q.askers++
	if !p.busy {
		p.busy = true
		p.asking.Go(p.work)
	}
	return q
}

// work asks what waits, and ends when nothing does.
func (p *people) work() {
	for {
		p.mu.Lock()
		if len(p.waiting) == 0 {
			p.busy = false
			p.mu.Unlock()
			return
		}
		q := p.waiting[0]
		p.waiting = p.waiting[1:]
		p.mu.Unlock()
		rest := pause
		if len(q.users) > storm {
			rest = stormPause
		}
		if q.found, q.err = p.ask(p.life, slices.Collect(maps.Keys(q.users))); q.err != nil {
			rest = awayPause
		}
		close(q.done)
		select {
		case <-time.After(rest):
		case <-p.life.Done():
		}
	}
}

// ask asks about users, and looks at the answer. A panic of the directory's is no
// answer.
func (p *people) ask(asker context.Context, users []int64) (map[int64]relay.Person, error) {
	ctx, cancel := context.WithTimeout(asker, askTimeout)
	defer cancel()
	var list []relay.Person
	err := contained(func() (err error) {
		list, err = p.directory.People(ctx, users)
		return err
	})
	if asker.Err() == nil { // or else nobody waits for the answer any more
		p.note(err)
	}
	if err != nil {
		return nil, err
	}
	found := make(map[int64]relay.Person, len(list))
	unusable := make(map[int64]error)
	for _, person := range list {
		user := person.UserID
		before, twice := found[user]
		switch {
		case twice && before != person:
			unusable[user] = errors.New("two rows that differ")
		case !relay.ValidRole(person.Role):
			unusable[user] = fmt.Errorf("the role %s; allowed are %s", quote(person.Role), wantRole)
		case person.HasCadet && person.CadetID <= 0:
			unusable[user] = fmt.Errorf("the cadet %d; allowed is %s", person.CadetID, wantID)
		default:
			found[user] = person
		}
	}
	for user := range unusable {
		delete(found, user) // nobody is let in on a guess
	}
	if len(unusable) > 0 {
		user := slices.Min(slices.Collect(maps.Keys(unusable)))
		p.failed("ask who users are", fmt.Errorf("%d of %d users are not known for what the directory says of them; of user %d it is %w", len(unusable), len(users), user, unusable[user]))
	}
	return found, nil
}

// note logs that the directory does not answer: once, and not for each question.
func (p *people) note(err error) {
	p.mu.Lock()
	news := err != nil && !p.away
	p.away = err != nil
	p.mu.Unlock()
	if news {
		p.failed("ask who users are", fmt.Errorf("%w (new clients are told to come back later; said once until it is answered again)", err))
	}
}
