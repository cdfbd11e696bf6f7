package stream

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// provider is an identity provider without a network.
type provider struct {
	mu    sync.Mutex
	names []string
	asked int
}

func (p *provider) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	var keys []string
	for i, name := range p.names {
		key := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%032d", i))).Public().(ed25519.PublicKey)
		keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, name, base64.RawURLEncoding.EncodeToString(key)))
	}
	body := `{"keys":[` + strings.Join(keys, ",") + `]}`
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (p *provider) publish(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names = names
}

// Between the look at the keys and the fetch another's fetch may have ended, which has
// brought the key. One more would use up the limit for those who need it.
func TestAFetchThatHasEndedMeanwhileIsNotRepeated(t *testing.T) {
	t.Parallel()
	p := &provider{names: []string{"a key"}}
	o := VerifierOptions{JWKSURL: "https://login.example.org/keys"}
	o.complete()
	s := newKeySet(&o)
	defer s.end()
	s.client.Transport = p
	_, flights := s.known("EdDSA", "a key")
	s.fetch(t.Context(), atOnce)
	s.fetch(t.Context(), s.onceMore(flights))
	if p.asked != 1 {
		t.Errorf("the provider was asked %d times, want once", p.asked)
	}
	if _, err := s.find(t.Context(), "EdDSA", "another"); err == nil || p.asked != 2 {
		t.Errorf("for another key: %v, and the provider was asked %d times, want twice", err, p.asked)
	}
}

// A client whose token was signed with a new key must not be told that it is
// invalid, because it would throw it away; and who brings one that nobody has
// signed must be told so in the end.
func TestATokenIsCalledInvalidOnlyWhenItsKeyIsKnownNotToBeThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &provider{names: []string{"old"}}
		o := VerifierOptions{JWKSURL: "https://login.example.org/keys"}
		o.complete()
		s := newKeySet(&o)
		defer s.end()
		s.client.Transport = p
		s.fetch(t.Context(), atOnce)
		begun := time.Now()
		for _, step := range []struct {
			at      time.Duration
			publish string // names, if not empty
			name    string
			want    *Reason // nil for a good key
			asked   int     // how many fetches there were by then
		}{
			{at: 0, name: "old", asked: 1},
			{at: 1 * time.Second, name: "new", want: reasonInvalidToken, asked: 2}, // it was asked for, and not there
			{at: 2 * time.Second, publish: "old new", name: "new", want: reasonInvalidToken, asked: 2},
			{at: 2 * time.Second, publish: "old new next", name: "next", want: reasonUnavailable, asked: 2},
			{at: 3 * time.Second, name: "made up", want: reasonUnavailable, asked: 2},
			{at: 9 * time.Second, name: "next", want: reasonUnavailable, asked: 2},
			{at: 11 * time.Second, name: "next", asked: 3},
			{at: 11 * time.Second, name: "new", asked: 3},
			{at: 12 * time.Second, name: "made up", want: reasonInvalidToken, asked: 3}, // it was not among those
			{at: 13 * time.Second, publish: "next", name: "old", asked: 3},
			{at: 21 * time.Second, name: "made up too", want: reasonInvalidToken, asked: 4},
			{at: 21 * time.Second, name: "old", want: reasonInvalidToken, asked: 4}, // withdrawn
			{at: 21 * time.Second, name: "", asked: 4},                              // of any name
		} {
			time.Sleep(time.Until(begun.Add(step.at)))
			if step.publish != "" {
				p.publish(strings.Fields(step.publish)...)
			}
			_, err := s.find(context.Background(), "EdDSA", step.name)
			var auth *AuthError
			errors.As(err, &auth)
			switch {
			case step.want == nil && err != nil, step.want != nil && (auth == nil || auth.reason != step.want):
				t.Errorf("after %s, %q: got %v", step.at, step.name, err)
			case p.asked != step.asked:
				t.Errorf("after %s, %q: the provider was asked %d times, want %d", step.at, step.name, p.asked, step.asked)
			}
		}
		for i := range 3 * maxSought { // names without end cost no memory without end
			_, _ = s.find(context.Background(), "EdDSA", fmt.Sprint("name ", i))
		}
		if n := s.sought.Len(); n != maxSought {
			t.Errorf("%d names are remembered", n)
		}
	})
}
