package stream

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// How it is asked again who the connected users are. There are so many turns in
// Options.IdentityRefresh, and everybody is asked for in half of them: the other
// half is for a directory that takes its time, so that who was asked for a moment
// before something changed is let go within the whole of it.
const (
	recheckTurns = 20
	recheckRound = recheckTurns/2 - 1 // and the turn that is just missed
	// recheckBatch is how many users are asked for in one question, and recheckAsks
	// how many questions are under way at once.
	recheckBatch = 1000
	recheckAsks  = 2
)

// recheck asks again and again who the connected users are, until ctx ends, and
// ends the connections of those that are not who they were.
func (s *Server) recheck(ctx context.Context) {
	turn := s.options.IdentityRefresh / recheckTurns
	tick := time.NewTicker(turn)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.recheckDue(ctx, time.Now().Add(-recheckRound*turn)) == nil {
			continue
		}
		select { // the directory is away
		case <-ctx.Done():
			return
		case <-time.After(min(awayPause, s.options.IdentityRefresh)):
		}
	}
}

// connected is one user's connections, as they were when the user's turn came.
type connected struct {
	user     int64
	asked    time.Time // when it was asked last who the user is
	sessions []*session
	was      []Identity
}

// recheckDue is one turn: those are asked for of whom it was asked the longest
// ago. They are a share of all, so that ten thousand who came together are not
// asked for together again, and all of whom it was asked before due. When the
// directory does not answer, everybody stays.
func (s *Server) recheckDue(ctx context.Context, due time.Time) error {
	all := s.connectedUsers()
	slices.SortFunc(all, func(a, b *connected) int { return cmp.Or(a.asked.Compare(b.asked), cmp.Compare(a.user, b.user)) })
	n := (len(all) + recheckRound - 1) / recheckRound
	for n < len(all) && !all[n].asked.After(due) {
		n++
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(recheckAsks)
	for batch := range slices.Chunk(all[:n], recheckBatch) {
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // another question was not answered, which is told already
			}
			return s.recheckBatch(ctx, batch)
		})
	}
	return group.Wait()
}

// recheckBatch asks one question.
func (s *Server) recheckBatch(ctx context.Context, batch []*connected) error {
	users := make([]int64, len(batch))
	for i, c := range batch {
		users[i] = c.user
	}
	asked := time.Now()
	found, err := s.people.ask(ctx, users)
	if err != nil {
		return err
	}
	for _, c := range batch {
		person, reason := judge(found, c.user)
		for i, session := range c.sessions {
			why := reason
			if why == nil && person.Identity != c.was[i].Identity {
				why = reasonChanged
			}
			switch {
			case why == nil:
				session.confirm(asked)
			case session.who() == c.was[i]: // who has brought a new token meanwhile was asked for then
				go session.dismiss(why) // it takes a moment to say so
			}
		}
	}
	return nil
}

// connectedUsers lists who has a connection.
func (s *Server) connectedUsers() []*connected {
	s.mu.Lock()
	sessions := slices.Collect(maps.Keys(s.sessions))
	s.mu.Unlock()
	byUser := make(map[int64]*connected, len(sessions))
	for _, session := range sessions {
		was, asked := session.standing()
		c := byUser[was.UserID]
		if c == nil {
			c = &connected{user: was.UserID, asked: asked}
			byUser[was.UserID] = c
		}
		if asked.Before(c.asked) {
			c.asked = asked
		}
		c.sessions, c.was = append(c.sessions, session), append(c.was, was)
	}
	return slices.Collect(maps.Values(byUser))
}

// standing is who the client is, and when it was asked last whether that holds.
func (s *session) standing() (Identity, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity, s.asked
}

// confirm notes that the client was still who it is when it was asked.
func (s *session) confirm(asked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = asked
}
