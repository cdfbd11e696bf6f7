package stream

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// keySet is the keys that an identity provider publishes (RFC 7517, section 5).
// They are fetched again at an interval, and once when a token names a key that
// is not among them; the last good set is kept while the provider is away.
type keySet struct {
	address  string
	interval time.Duration
	retry    time.Duration
	client   *http.Client
	logger   *slog.Logger
	failed   func(component string)
	// limiter bounds the fetches that tokens cause: anybody can make up a name.
	limiter *rate.Limiter

	life context.Context //nolint:containedctx // a fetch outlives the request that caused it, and not run
	end  context.CancelFunc

	mu    sync.Mutex
	keys  []verificationKey
	names map[string]struct{} // of all keys of the set, also of those that can't be used
	begun time.Time           // when the last fetch that brought a set began
	// sought is when a token came first that names a key which is not in the set.
	sought  *simplelru.LRU[string, time.Time]
	flight  chan struct{} // closed when the fetch that is under way ends; nil if there is none
	flights int           // how many fetches have ended
	err     error         // of the last fetch
	said    bool          // that fetches fail, in the log
}

// Bounds of a fetch: a provider may be slow, broken, or somebody else by now.
const (
	fetchTimeout = 5 * time.Second
	maxKeySet    = 1 << 20 // bytes
	maxKeys      = 100     // a token without a kid is checked with each
	maxRedirects = 3
)

// unknownInterval is the time between fetches that tokens cause.
const unknownInterval = 10 * time.Second

// maxSought bounds the names that are remembered, of 256 bytes each at most.
const maxSought = 1024

func newKeySet(o *VerifierOptions) *keySet {
	s := &keySet{
		address: o.JWKSURL, interval: o.JWKSRefresh, retry: min(o.JWKSRefresh, unknownInterval),
		client: &http.Client{Transport: boundedTransport{http.DefaultTransport}, CheckRedirect: checkRedirect},
		logger: o.Logger, failed: o.Failed,
		limiter: rate.NewLimiter(rate.Every(unknownInterval), 1),
		err:     errors.New("not fetched yet"),
	}
	s.sought, _ = simplelru.NewLRU[string, time.Time](maxSought, nil) // it fails for sizes below 1 only
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// run keeps the keys fresh until ctx ends.
func (s *keySet) run(ctx context.Context) {
	defer func() {
		s.end()
		s.mu.Lock()
		flight := s.flight
		s.mu.Unlock()
		if flight != nil {
			<-flight
		}
	}()
	for {
		s.fetch(ctx, atOnce)
		wait := s.interval
		if s.problem() != nil {
			wait = s.retry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// problem is why the last fetch failed, nil if it did not.
func (s *keySet) problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// usable reports whether there are any keys.
func (s *keySet) usable() bool { return s.count() > 0 }

func (s *keySet) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.keys)
}

// find is the keys for an algorithm, of this name if it is not empty. If there is
// none, the set is fetched once more, within the limit; all who wait for the same
// fetch share it.
func (s *keySet) find(ctx context.Context, algorithm, id string) ([]any, error) {
	found, flights := s.known(algorithm, id)
	if found != nil {
		return found, nil
	}
	s.seek(id, time.Now())
	ctx, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	s.fetch(ctx, s.onceMore(flights))
	if found, _ = s.known(algorithm, id); found != nil {
		return found, nil
	}
	if s.mayBeNew(id) {
		return nil, &AuthError{reason: reasonUnavailable}
	}
	return nil, invalidToken("the key that signed it is not known here, or does not fit its algorithm")
}

// seek notes that a token names a key that is not known.
func (s *keySet) seek(id string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sought.Contains(id) {
		s.sought.Add(id, now)
	}
}

// mayBeNew reports whether a key that is not known may be one that the provider has
// published since the set was fetched. It can't be if the set was fetched after a
// token came that names it: who signs with a key has published it before. Then the
// client may throw its token away. Until it is known it must not.
func (s *keySet) mayBeNew(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return true
	}
	if _, there := s.names[id]; there || id == "" {
		return false // the key is there and is for something else, or none is named
	}
	since, ok := s.sought.Get(id)
	return !ok || since.After(s.begun)
}

// known is the keys that are there, and how many fetches have ended by now.
func (s *keySet) known(algorithm, id string) (found []any, flights int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fitting(s.keys, algorithm, id), s.flights
}

// atOnce begins a fetch if none is under way.
func atOnce() bool { return true }

// onceMore begins a fetch within the limit, unless one has ended since a key was
// looked for among those of so many fetches.
func (s *keySet) onceMore(flights int) (begin func() bool) {
	return func() bool { return s.flights == flights && s.limiter.Allow() }
}

// fetch fetches the set and returns when that is done or ctx has ended. A fetch that
// is under way already is shared; if none is, begin is asked, with s.mu held.
func (s *keySet) fetch(ctx context.Context, begin func() bool) {
	s.mu.Lock()
	if s.flight == nil {
		if !begin() {
			s.mu.Unlock()
			return
		}
		s.flight = make(chan struct{})
		go s.fly()
	}
	flight := s.flight
	s.mu.Unlock()
	select {
	case <-flight:
	case <-ctx.Done():
	}
}

// fly is one fetch. The library asks, decodes and checks each key.
func (s *keySet) fly() {
	in := &intake{names: make(map[string]struct{})}
	begun := time.Now()
	err := contained(func() error {
		_, err := jwkset.NewStorageFromHTTP(s.address, jwkset.HTTPClientStorageOptions{
			Client: s.client, Ctx: s.life, HTTPTimeout: fetchTimeout, Storage: in,
		})
		return err
	})
	s.mu.Lock()
	before, said := s.keys, s.said
	if err == nil {
		s.keys, s.names, s.begun = in.keys, in.names, begun
		for _, old := range before { // one that was withdrawn is not new
			s.sought.Add(old.id, time.Time{})
		}
	}
	s.err, s.said = err, err != nil
	s.mu.Unlock()
	defer func() { // all who wait for it may end, and what they log to with them
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.flight)
		s.flight = nil
		s.flights++
	}()
	switch {
	case s.life.Err() != nil:
	case err != nil:
		s.failed("auth")
		if !said {
			s.logger.Warn("the keys for tokens can't be fetched; the last ones stay in use", slog.String("url", s.address), slog.Int("keys", len(before)), slog.Any("error", err))
		}
	case said || !slices.EqualFunc(before, in.keys, func(a, b verificationKey) bool { return a.id == b.id }):
		s.logger.Info("fetched the keys for tokens", slog.String("url", s.address), slog.Int("keys", len(in.keys)), slog.Int("unusable", in.unusable))
	}
}

// intake is where the library puts the keys of a fetch.
type intake struct {
	jwkset.Storage // not used

	keys     []verificationKey
	names    map[string]struct{}
	unusable int
}

// KeyReplaceAll is part of [jwkset.Storage]. A set without a single key that can
// be used is an error page, or a provider in trouble: it is refused, so that the
// last good set stays.
func (in *intake) KeyReplaceAll(_ context.Context, given []jwkset.JWK) error {
	if len(given) > maxKeys {
		return fmt.Errorf("found %d keys; allowed are %d", len(given), maxKeys)
	}
	var problem error
	for _, jwk := range given {
		in.names[jwk.Marshal().KID] = struct{}{}
		key, err := fromJWK(jwk)
		if err != nil {
			in.unusable++
			problem = err
			continue
		}
		in.keys = append(in.keys, key)
	}
	switch {
	case len(in.keys) > 0:
		return nil
	case problem != nil:
		return fmt.Errorf("none of %d keys can be used; the last is %w", len(given), problem)
	default:
		return errors.New("found no keys")
	}
}

// fromJWK takes a key that is for signatures (RFC 7517, sections 4.2 to 4.4).
func fromJWK(jwk jwkset.JWK) (verificationKey, error) {
	about := jwk.Marshal()
	public := jwk.Key()
	if private, ok := public.(interface{ Public() crypto.PublicKey }); ok {
		public = private.Public() // a provider should not show it, but that's not ours to punish
	}
	key, err := newPublicKey(public)
	switch {
	case err != nil:
		return key, err
	case about.USE != "" && about.USE != jwkset.UseSig:
		return key, fmt.Errorf("a key for the use %s; allowed is \"sig\"", quote(about.USE.String()))
	case len(about.KEYOPS) > 0 && !slices.Contains(about.KEYOPS, jwkset.KeyOpsVerify):
		return key, errors.New("a key whose key_ops lack \"verify\"")
	case about.ALG != "" && !slices.Contains(key.algorithms, about.ALG.String()):
		return key, fmt.Errorf("a key for the algorithm %s; allowed are %v", quote(about.ALG.String()), key.algorithms)
	case about.ALG != "":
		key.algorithms = []string{about.ALG.String()}
	}
	key.id = about.KID
	return key, nil
}

// checkRedirect follows a provider that has moved, but not off TLS.
func checkRedirect(next *http.Request, before []*http.Request) error {
	if len(before) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if before[0].URL.Scheme == "https" && next.URL.Scheme != "https" {
		return errors.New("a redirect from https to " + quote(next.URL.Scheme))
	}
	return nil
}

// boundedTransport bounds what is read of an answer.
type boundedTransport struct{ http.RoundTripper }

// RoundTrip is part of [http.RoundTripper].
func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxKeySet), response.Body}
	}
	return response, err
}
