package stream

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// authTimeout bounds how long a client waits for a key to be fetched, and for the
// directory to say who it is. One that needs neither takes no timer.
const authTimeout = 10 * time.Second

// authenticateRequest finds out who sends a request: who its token is for, or,
// without one, its ticket, which it returns then.
func (s *Server) authenticateRequest(r *http.Request, query url.Values) (Identity, *showing, error) {
	text := token(r, query)
	if code := query.Get("ticket"); text == "" && code != "" {
		return s.redeem(r.Context(), code)
	}
	id, err := s.authenticate(r.Context(), text)
	return id, nil, err
}

// redeem finds out who a ticket was given to. Nobody else can use it until it is
// given back.
func (s *Server) redeem(ctx context.Context, code string) (Identity, *showing, error) {
	one, err := s.tickets.take(code, time.Now())
	if err != nil {
		if !s.relay.Status().Serving { // another relay may know it
			err = &AuthError{reason: reasonUnavailable}
		}
		return Identity{}, nil, err
	}
	id, err := s.identify(ctx, one.ticket.identity)
	if err != nil {
		s.tickets.giveBack(one)
		return Identity{}, nil, err
	}
	return id, one, nil
}

// authenticate finds out who brings a token.
func (s *Server) authenticate(ctx context.Context, token string) (Identity, error) {
	id, err := s.verifier.Verify(ctx, token)
	if err != nil {
		return Identity{}, err
	}
	return s.identify(ctx, id)
}

// identify asks the directory, if there is one, who a token's user is.
func (s *Server) identify(ctx context.Context, id Identity) (Identity, error) {
	if s.people == nil {
		return id, nil
	}
	ctx, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	var err error
	if id.Identity, err = s.people.identify(ctx, id.UserID); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// authenticateAgain finds out who somebody is who is connected already and brings
// a new token.
func (s *Server) authenticateAgain(ctx context.Context, token string, present Identity) (Identity, error) {
	id, err := s.verifier.Verify(ctx, token)
	if err != nil {
		return Identity{}, err
	}
	if id.UserID != present.UserID {
		return Identity{}, &AuthError{reason: reasonOtherUser}
	}
	asked, err := s.identify(ctx, id)
	var auth *AuthError
	if errors.As(err, &auth) && auth.reason == reasonUnavailable {
		// While the directory is away, who is connected stays who they were.
		id.Identity = present.Identity
		return id, nil
	}
	return asked, err
}
