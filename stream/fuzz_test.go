package stream

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"

	"github.com/syncrelay/syncrelay/relay"
)

// FuzzClientFrame: whatever a client sends, it is understood in one way only or
// refused with a short text that can go back to it.
func FuzzClientFrame(f *testing.F) {
	for _, seed := range []string{
		`{"type":"ping","timestamp":1}`, `{"type":"replay_request","last_event_id":5}`, `{"type":"auth","token":"x"}`,
		`{"type":"replay_request","last_event_id":1e3}`, `{"type":"ping","type":"auth"}`, `{`, `[]`, `{"type":"x"} x`, "{\"\xff\":1}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		frame, err := parseClientFrame(text)
		if err != nil {
			if len(err.Error()) > 400 || !utf8.ValidString(err.Error()) {
				t.Fatalf("the answer to %q is %q", text, err)
			}
			return
		}
		var loose map[string]json.RawMessage
		if json.Unmarshal(text, &loose) != nil {
			t.Fatalf("%q was taken for a message and is no JSON", text)
		}
		if frame.kind == "ping" {
			if _, answer, err := control(pong{frame.timestamp}, "WebSocket", relay.Identity{}); err != nil || !json.Valid(answer) {
				t.Fatalf("the answer to %q is %q, %v", text, answer, err)
			}
		}
		if after, err := frame.replayAfter(); err == nil && (after < 0 || after > relay.MaxEventID) {
			t.Fatalf("%q asks for a replay after %d", text, after)
		}
	})
}

// FuzzClaims: claims either give an identity whose every part is of its shape,
// or an error.
func FuzzClaims(f *testing.F) {
	for _, seed := range []string{
		`{"user_id":5,"role":"cadet","cadet_id":"17","exp":4102444800}`, `{"user_id":"5","role":"a","exp":1.5,"is_approved":false}`,
		`{"user_id":5.0,"role":"a","exp":1}`, `{"user_id":1,"user_id":2}`, `null`, `{"aud":["a"],"iss":"b","nbf":1,"iat":1,"token_type":"access"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := claims{text: text}
		c.names.complete()
		if err := c.decode(); err != nil {
			if !utf8.ValidString(err.Error()) || len(err.Error()) > 400 {
				t.Fatalf("the reason for %q is %q", text, err)
			}
			return
		}
		if c.userID <= 0 || !relay.ValidRole(c.role) || c.hasCadet && c.cadetID <= 0 || c.expires == nil || c.expires.Year() > 9999 {
			t.Fatalf("%q gave %+v", text, c)
		}
	})
}

// fuzzKeys is a verifier with a key of every kind, and ways to sign with them.
type fuzzKeys struct {
	verifier *Verifier
	signers  []fuzzSigner
}

// fuzzSigner signs a text as one algorithm; no algorithm is good for it if that is
// empty, for it is no key of the verifier's.
type fuzzSigner struct {
	algorithm string
	sign      func(text string) ([]byte, error)
}

func newFuzzKeys(f *testing.F) fuzzKeys {
	f.Helper()
	must := func(key any, err error) any {
		if err != nil {
			f.Fatal(err)
		}
		return key
	}
	const secret = "a secret that nobody can guess, ever"
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048)).(*rsa.PrivateKey)
	ecKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).(*ecdsa.PrivateKey)
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).(*ecdsa.PrivateKey)
	public, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(nil, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(rsaKey.Public())).([]byte)})
	path := filepath.Join(f.TempDir(), "key.pem")
	must(nil, os.WriteFile(path, text, 0o600))
	v, err := NewVerifier(VerifierOptions{HMACSecret: []byte(secret), PublicKeyFile: path, JWKSURL: "http://127.0.0.1:1/"})
	must(nil, err)
	// The provider's keys, as if they had been fetched; nothing is fetched here.
	for id, key := range map[string]any{"ec": ecKey.Public(), "ed": public} {
		k := must(newPublicKey(key)).(verificationKey)
		k.id = id
		v.keys.remote.keys = append(v.keys.remote.keys, k)
	}
	v.keys.remote.err, v.keys.remote.limiter = nil, rate.NewLimiter(0, 0)
	keys := fuzzKeys{verifier: v}
	add := func(good bool, algorithm string, key any) {
		method := jwt.GetSigningMethod(algorithm)
		if !good {
			algorithm = ""
		}
		keys.signers = append(keys.signers, fuzzSigner{algorithm, func(text string) ([]byte, error) { return method.Sign(text, key) }})
	}
	for _, algorithm := range secretAlgorithms {
		add(true, algorithm, []byte(secret))
		add(false, algorithm, text)
		add(false, algorithm, []byte(public))
		add(false, algorithm, []byte{})
	}
	for _, algorithm := range rsaAlgorithms {
		add(true, algorithm, rsaKey)
	}
	add(true, "ES256", ecKey)
	add(false, "ES256", other)
	add(true, "EdDSA", edKey)
	keys.signers = append(keys.signers, fuzzSigner{"", func(string) ([]byte, error) { return nil, nil }})
	return keys
}

// FuzzToken: a token is good only if a key of the verifier's has signed it as the
// algorithm that its header names; then its user is the one that its claims name.
// No error holds the token.
func FuzzToken(f *testing.F) {
	keys := newFuzzKeys(f)
	const claims = `{"user_id":5,"role":"cadet","cadet_id":17,"exp":4102444800}`
	for i, signer := range keys.signers {
		for _, algorithm := range []string{signer.algorithm, "none", "HS256", "RS256", "EdDSA"} {
			for _, id := range []string{"", `,"kid":"ec"`, `,"kid":"ed"`, `,"kid":"x"`, `,"crit":["exp"]`} {
				f.Add([]byte(`{"alg":"`+algorithm+`"`+id+`}`), []byte(claims), uint8(i), "")
			}
		}
	}
	f.Add([]byte(`{"alg":"HS256","alg":"none"}`), []byte(`{"user_id":5,"user_id":6,"role":"a","exp":1e9}`), uint8(0), "")
	f.Add([]byte(`{"alg":"HS256"}`), []byte(claims), uint8(0), "eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, header, claims []byte, by uint8, raw string) {
		signer := keys.signers[int(by)%len(keys.signers)]
		token := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
		signature, err := signer.sign(token)
		if err != nil {
			t.Fatal(err)
		}
		token += "." + base64.RawURLEncoding.EncodeToString(signature)
		if raw != "" {
			token, signer.algorithm = raw, "" // nothing has signed that
		}
		id, err := keys.verifier.Verify(t.Context(), token)
		if err != nil {
			var auth *AuthError
			if text := err.Error(); !errors.As(err, &auth) || len(text) > 500 || !utf8.ValidString(text) || len(token) > 20 && strings.Contains(text, token) {
				t.Fatalf("the reason for %q is %q", token, text)
			}
			return
		}
		// Maps, for encoding/json takes a struct's names in any case.
		var head, said map[string]any
		if json.Unmarshal(header, &head) != nil || head["alg"] != signer.algorithm || signer.algorithm == "" {
			t.Fatalf("%q with the header %s, signed as %q, is good", token, header, signer.algorithm)
		}
		decoder := json.NewDecoder(bytes.NewReader(claims))
		decoder.UseNumber()
		if decoder.Decode(&said) != nil || fmt.Sprint(said["user_id"]) != strconv.FormatInt(id.UserID, 10) || said["role"] != id.Role || !relay.ValidRole(id.Role) {
			t.Fatalf("%s gave %+v", claims, id)
		}
	})
}

// FuzzPublicKeys: whatever a file of keys holds, what is taken of it is a key for
// signatures, and never one for HMAC.
func FuzzPublicKeys(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	good := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	f.Add(good)
	f.Add(append(good, good...))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: der}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		found, err := parsePublicKeys(text)
		if err != nil {
			return
		}
		for _, k := range found {
			if len(k.algorithms) == 0 || len(fitting(found, "HS256", "")) > 0 || len(fitting(found, "none", "")) > 0 {
				t.Fatalf("%q gave %+v", text, k)
			}
		}
	})
}

// FuzzOrigin: an origin below a pattern really ends in it.
func FuzzOrigin(f *testing.F) {
	for _, seed := range []string{"https://a.example.org", "https://example.org", "null", "https://a.example.org:443", "https://a@b.example.org", "//a.example.org"} {
		f.Add(seed)
	}
	origins, err := NewOrigins([]string{"https://*.example.org"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, from string) {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.Header["Origin"] = []string{from}
		lower := strings.ToLower(strings.TrimSuffix(from, ":443"))
		if origins.Allow(r) && (!strings.HasPrefix(lower, "https://") || !strings.HasSuffix(lower, ".example.org")) {
			t.Fatalf("%q is allowed", from)
		}
	})
}

// FuzzSameHost: without a list a page may connect from the host and port that it
// connects to, and from nowhere else.
func FuzzSameHost(f *testing.F) {
	for _, seed := range [][2]string{
		{"https://a.example", "a.example"}, {"http://a.example:8000", "a.example:8000"}, {"http://[::1]", "[::1]:80"}, {"null", "null"},
		{"https://a.example@b.example", "b.example"}, {"https://a.example#", "a.example"}, {"https://a.example:443", "A.example"},
	} {
		f.Add(seed[0], seed[1])
	}
	origins, err := NewOrigins(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, from, host string) {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.Host, r.Header["Origin"] = host, []string{from}
		if !origins.Allow(r) {
			return
		}
		scheme, rest, _ := strings.Cut(strings.ToLower(from), "://")
		port := map[string]string{"http": ":80", "https": ":443"}[scheme]
		bare := func(s string) string { return strings.TrimSuffix(strings.ToLower(s), port) }
		if port == "" || bare(rest) != bare(host) {
			t.Fatalf("a page of %q may connect to %q", from, host)
		}
	})
}

// FuzzQuery: whatever stands in a URL, its token and place to begin are read in
// one way only, and as they stand there.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		"token=a&last_event_id=5", "token=a&token=b", "token=a;token=b", "token=%zz", "last_event_id=&lastEventId=7", "%74oken=a", "token", "?&=&token==",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.URL.RawQuery = raw
		query := r.URL.Query()
		found := token(r, query)
		if found != "" && !strings.Contains(raw, url.QueryEscape(found)) && !strings.ContainsAny(raw, "%+") && !strings.Contains(raw, found) {
			t.Fatalf("%q gave the token %q", raw, found)
		}
		for _, header := range []bool{true, false} {
			s := start(r, query, header)
			if s.Resume && (s.After < 0 || s.After > relay.MaxEventID || s.Invalid != "") || len(s.Invalid) > 400 || !utf8.ValidString(s.Invalid) {
				t.Fatalf("%q gave %+v", raw, s)
			}
		}
	})
}

// FuzzLastEventID: an ID is a whole number in range, or is said to be none.
func FuzzLastEventID(f *testing.F) {
	for _, seed := range []string{"0", "9007199254740991", "9007199254740992", "-1", "1e3", "", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, id string) {
		s := startAfter(id)
		if s.Resume == (s.Invalid != "") || s.After < 0 || s.After > relay.MaxEventID || len(s.Invalid) > 400 || !utf8.ValidString(s.Invalid) {
			t.Fatalf("%q gave %+v", id, s)
		}
	})
}
