package stream_test

import (
	"context"
	"crypto"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"

	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// keyServer is an identity provider.
type keyServer struct {
	*httptest.Server
	asked, strangers atomic.Int64

	mu     sync.Mutex
	body   []byte
	status int
	gate   chan struct{} // if not nil, answers wait for it
}

func serveKeys(t testing.TB) *keyServer {
	t.Helper()
	s := &keyServer{status: http.StatusOK, body: []byte(`{"keys":[]}`)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/keys" {
			s.strangers.Add(1)
		}
		s.asked.Add(1)
		s.mu.Lock()
		status, body, gate := s.status, s.body, s.gate
		s.mu.Unlock()
		if gate != nil {
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) answer(status int, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.body = status, body
}

func (s *keyServer) text() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body
}

// jwk is one key as JSON; more members are added to it.
func jwk(t testing.TB, id string, public crypto.PublicKey, more map[string]any) json.RawMessage {
	t.Helper()
	key, err := jwkset.NewJWKFromKey(public, jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: id}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(key.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]any)
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	maps.Copy(all, more)
	if text, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	return text
}

// publish makes the provider publish the keys, under their names with a suffix.
func (s *keyServer) publish(t testing.TB, keys keyChain, suffix string) {
	t.Helper()
	all := keys.all()
	var list []json.RawMessage
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, jwk(t, name+suffix, all[name].Public(), nil))
	}
	s.publishKeys(t, list...)
}

func (s *keyServer) publishKeys(t testing.TB, keys ...json.RawMessage) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	s.answer(http.StatusOK, body)
}

// verifier makes a verifier for the provider's keys, and runs it.
func (s *keyServer) verifier(t testing.TB, o stream.VerifierOptions) *stream.Verifier {
	t.Helper()
	o.JWKSURL = s.URL + "/keys"
	v := verifier(t, o)
	before := s.asked.Load()
	run(t, v)
	relaytest.Wait(t, "the provider is asked", func() bool { return s.asked.Load() > before })
	return v
}

// run runs a verifier until the test ends.
func run(t testing.TB, v *stream.Verifier) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
}

func TestARotatedKeyIsFetchedOnceForAllWhoBringIt(t *testing.T) {
	t.Parallel()
	keys, next := trusted(), stranger()
	s := serveKeys(t)
	s.publish(t, keys, "")
	v := s.verifier(t, stream.VerifierOptions{})
	wantGood(t, v, "the first key", keys.signed(t, "ES256", map[string]any{"kid": "p256"}))
	s.publish(t, next, "-2")
	gate := make(chan struct{})
	s.mu.Lock()
	s.gate = gate
	s.mu.Unlock()
	before := s.asked.Load()
	token := next.signed(t, "ES256", map[string]any{"kid": "p256-2"})
	var clients sync.WaitGroup
	for range 500 {
		clients.Go(func() { wantGood(t, v, "the new key", token) })
	}
	relaytest.Wait(t, "the provider is asked", func() bool { return s.asked.Load() > before })
	close(gate)
	clients.Wait()
	if n := s.asked.Load() - before; n != 1 {
		t.Errorf("the provider was asked %d times, want once", n)
	}
	wantBad(t, v, "the key that was withdrawn", keys.signed(t, "ES256", map[string]any{"kid": "p256"}), "invalid_token", "not known here")
}

func TestMadeUpKeyNamesCauseNoFlood(t *testing.T) {
	t.Parallel()
	keys := trusted()
	s := serveKeys(t)
	s.publish(t, keys, "")
	v := s.verifier(t, stream.VerifierOptions{})
	wantGood(t, v, "a key", keys.signed(t, "EdDSA", map[string]any{"kid": "ed"}))
	before := s.asked.Load()
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		code, text := "unavailable", "try again later" // it may have been published since the set was fetched
		if name == "a" {
			code, text = "invalid_token", "not known here" // for which it was fetched
		}
		for range 20 {
			wantBad(t, v, "a made-up name", keys.signed(t, "EdDSA", map[string]any{"kid": name}), code, text)
		}
	}
	if n := s.asked.Load() - before; n > 1 {
		t.Errorf("the provider was asked %d times within moments", n)
	}
}

func TestTheLastGoodKeysSurviveTheProvidersOutage(t *testing.T) {
	t.Parallel()
	keys := trusted()
	for name, trouble := range map[string]struct {
		status int
		body   string
	}{
		"an error":           {http.StatusServiceUnavailable, "try again"},
		"an error page":      {http.StatusOK, "<html>"},
		"an empty set":       {http.StatusOK, `{"keys":[]}`},
		"no set":             {http.StatusOK, `{}`},
		"a set of secrets":   {http.StatusOK, `{"keys":[{"kty":"oct","kid":"p256","k":"c2VjcmV0"}]}`},
		"a flood":            {http.StatusOK, `{"keys":[` + strings.Repeat(" ", 2<<20) + `]}`},
		"a set without bits": {http.StatusOK, `{"keys":[{"kty":"RSA","kid":"rsa","n":"AQ","e":"AQAB"}]}`},
	} {
		s := serveKeys(t)
		s.publish(t, keys, "")
		v := s.verifier(t, stream.VerifierOptions{})
		wantGood(t, v, name+": before", keys.signed(t, "ES256", map[string]any{"kid": "p256"}))
		s.answer(trouble.status, []byte(trouble.body))
		before := s.asked.Load()
		wantBad(t, v, name+": an unknown key", keys.signed(t, "ES256", map[string]any{"kid": "new"}), "unavailable", "try again later")
		if s.asked.Load() == before {
			t.Errorf("%s: the provider was not asked", name)
		}
		wantGood(t, v, name+": a known key", keys.signed(t, "ES256", map[string]any{"kid": "p256"}))
		if reason := v.Ready(); reason != "" {
			t.Errorf("%s: not ready: %s", name, reason)
		}
	}
}

func TestAProviderThatIsDownAtTheStartIsWaitedFor(t *testing.T) {
	t.Parallel()
	keys := trusted()
	s := serveKeys(t)
	s.answer(http.StatusBadGateway, nil)
	var log lockedBuffer
	v := s.verifier(t, stream.VerifierOptions{JWKSRefresh: 10 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	w := newWorld(t, worldOptions{Options: stream.Options{Verifier: v}})
	token := keys.signed(t, "RS256", map[string]any{"kid": "rsa"})
	if response := w.get(t, "/api/events?token="+token, nil); response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") == "" {
		t.Errorf("SSE: got %s, Retry-After %q", response.Status, response.Header.Get("Retry-After"))
	}
	w.dial(t, "/ws/updates/?token="+token, nil).wantClosed(t, 1013, "try again later")
	response := w.get(t, "/readyz", nil)
	var ready struct{ Status, Reason string }
	if err := json.NewDecoder(response.Body).Decode(&ready); err != nil || response.StatusCode != http.StatusServiceUnavailable || !strings.Contains(ready.Reason, "keys for tokens") {
		t.Errorf("/readyz: got %s %+v, %v", response.Status, ready, err)
	}
	relaytest.Wait(t, "several fetches", func() bool { return s.asked.Load() > 3 })
	if n := strings.Count(log.String(), "can't be fetched"); n != 1 {
		t.Errorf("the log says %d times that the keys can't be fetched: %s", n, log.String())
	}
	s.publish(t, keys, "")
	relaytest.Wait(t, "the relay is ready", func() bool { return w.get(t, "/readyz", nil).StatusCode == http.StatusOK })
	wantGood(t, v, "now", token)
	if !strings.Contains(log.String(), "fetched the keys for tokens") {
		t.Errorf("the log does not say that the provider is back: %s", log.String())
	}
}

func TestOnlyKeysForSignaturesAreTakenFromASet(t *testing.T) {
	t.Parallel()
	keys := trusted()
	s := serveKeys(t)
	s.publishKeys(t,
		jwk(t, "plain", keys.p256.Public(), nil),
		jwk(t, "sig", keys.p384.Public(), map[string]any{"use": "sig", "key_ops": []string{"verify"}}),
		jwk(t, "enc", keys.p521.Public(), map[string]any{"use": "enc"}),
		jwk(t, "sign", keys.ed.Public(), map[string]any{"key_ops": []string{"sign"}}),
		jwk(t, "narrow", keys.rsa.Public(), map[string]any{"alg": "PS256"}),
		json.RawMessage(`{"kty":"oct","kid":"secret","k":"YSBzZWNyZXQgdGhhdCBldmVyeWJvZHkgY2FuIHJlYWQ"}`),
		json.RawMessage(`{"kty":"EC","crv":"secp256k1","kid":"k1","x":"AQ","y":"AQ"}`),
	)
	v := s.verifier(t, stream.VerifierOptions{})
	id := func(name string) map[string]any { return map[string]any{"kid": name} }
	wantGood(t, v, "a key that says nothing", keys.signed(t, "ES256", id("plain")))
	wantGood(t, v, "a key for signatures", keys.signed(t, "ES384", id("sig")))
	wantGood(t, v, "a key for one algorithm", keys.signed(t, "PS256", id("narrow")))
	for name, token := range map[string]string{
		"another algorithm of that key":                keys.signed(t, "RS256", id("narrow")),
		"another algorithm of that key, without a kid": keys.signed(t, "RS256", nil),
		"a key for encryption":                         keys.signed(t, "ES512", id("enc")),
		"a key for encryption, without a kid":          keys.signed(t, "ES512", nil),
		"a key for signing only":                       keys.signed(t, "EdDSA", id("sign")),
		"the wrong name":                               keys.signed(t, "ES256", id("sig")),
		"a published secret":                           signedWith(t, "HS256", []byte("a secret that everybody can read"), id("secret")),
	} {
		wantBad(t, v, name, token, "invalid_token", "")
	}
}

func TestAProviderIsNotFollowedOffTLS(t *testing.T) {
	t.Parallel()
	plain := serveKeys(t)
	plain.publish(t, trusted(), "")
	for name, c := range map[string]struct {
		start  func(http.Handler) *httptest.Server
		follow bool
	}{"http": {httptest.NewServer, true}, "https": {httptest.NewTLSServer, false}} {
		moved := c.start(http.RedirectHandler(plain.URL+"/keys", http.StatusFound))
		before := plain.asked.Load()
		err := stream.FetchKeys(moved.URL, moved.Client().Transport)
		if followed := plain.asked.Load() > before; followed != c.follow || (err == nil) != c.follow {
			t.Errorf("%s: followed %v, error %v", name, followed, err)
		}
		moved.Close()
	}
}
