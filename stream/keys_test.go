package stream_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// The private keys of the tests: of each kind that the product knows one that it
// trusts and one that is a stranger's.
type keyChain struct {
	rsa              *rsa.PrivateKey
	p256, p384, p521 *ecdsa.PrivateKey
	ed               ed25519.PrivateKey
}

var (
	trusted  = sync.OnceValue(newKeyChain)
	stranger = sync.OnceValue(newKeyChain)
)

func newKeyChain() keyChain {
	must := func(key any, err error) any {
		if err != nil {
			panic(err)
		}
		return key
	}
	curve := func(c elliptic.Curve) *ecdsa.PrivateKey {
		return must(ecdsa.GenerateKey(c, rand.Reader)).(*ecdsa.PrivateKey)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return keyChain{
		rsa:  must(rsa.GenerateKey(rand.Reader, 2048)).(*rsa.PrivateKey),
		p256: curve(elliptic.P256()), p384: curve(elliptic.P384()), p521: curve(elliptic.P521()),
		ed: must(ed, err).(ed25519.PrivateKey),
	}
}

// all lists the keys under the names that the tests' key sets give them.
func (c keyChain) all() map[string]crypto.Signer {
	return map[string]crypto.Signer{"rsa": c.rsa, "p256": c.p256, "p384": c.p384, "p521": c.p521, "ed": c.ed}
}

// keyOf is the name of the key for an algorithm.
func keyOf(algorithm string) string {
	switch algorithm {
	case "ES256":
		return "p256"
	case "ES384":
		return "p384"
	case "ES512":
		return "p521"
	case "EdDSA":
		return "ed"
	default:
		return "rsa"
	}
}

var publicAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// signed is a token of cadet 17's, with these header members added.
func (c keyChain) signed(t testing.TB, algorithm string, header map[string]any, claims ...jwt.MapClaims) string {
	t.Helper()
	return signedWith(t, algorithm, c.all()[keyOf(algorithm)], header, claims...)
}

func signedWith(t testing.TB, algorithm string, key any, header map[string]any, claims ...jwt.MapClaims) string {
	t.Helper()
	all := jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, cadet17)
	for _, more := range claims {
		maps.Copy(all, more)
	}
	token := jwt.NewWithClaims(jwt.GetSigningMethod(algorithm), all)
	maps.Copy(token.Header, header)
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// publicPEM is public keys as a PEM file.
func publicPEM(t testing.TB, keys ...crypto.Signer) []byte {
	t.Helper()
	var text []byte
	for _, key := range keys {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})...)
	}
	return text
}

func writeFile(t testing.TB, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func verifier(t testing.TB, o stream.VerifierOptions) *stream.Verifier {
	t.Helper()
	v, err := stream.NewVerifier(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var cadet17Identity = relay.Identity{UserID: 5, Role: "cadet", CadetID: 17, HasCadet: true}

// wantGood checks that a token is cadet 17's.
func wantGood(t testing.TB, v *stream.Verifier, what, token string) {
	t.Helper()
	if got, err := v.Verify(t.Context(), token); err != nil || got.Identity != cadet17Identity {
		t.Errorf("%s: got %+v, %v", what, got, err)
	}
}

// wantBad checks that a token is refused for a reason.
func wantBad(t testing.TB, v *stream.Verifier, what, token, code, reason string) {
	t.Helper()
	_, err := v.Verify(t.Context(), token)
	var auth *stream.AuthError
	switch {
	case !errors.As(err, &auth):
		t.Errorf("%s: got %v, want an AuthError", what, err)
	case auth.Code() != code || !strings.Contains(auth.Error(), reason):
		t.Errorf("%s: got %s %q, want %s %q", what, auth.Code(), auth, code, reason)
	}
}

func TestEveryAlgorithmIsGoodWithItsKey(t *testing.T) {
	t.Parallel()
	keys := trusted()
	secrets := verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret)})
	for _, algorithm := range []string{"HS256", "HS384", "HS512"} {
		wantGood(t, secrets, algorithm, signedWith(t, algorithm, []byte(secret), nil))
		wantGood(t, secrets, algorithm+" with a kid", signedWith(t, algorithm, []byte(secret), map[string]any{"kid": "any"}))
	}
	set := serveKeys(t)
	set.publish(t, keys, "")
	file := verifier(t, stream.VerifierOptions{PublicKeyFile: writeFile(t, publicPEM(t, keys.rsa, keys.p256, keys.p384, keys.p521, keys.ed))})
	remote := set.verifier(t, stream.VerifierOptions{})
	for _, algorithm := range publicAlgorithms {
		wantGood(t, file, algorithm+" in a file", keys.signed(t, algorithm, nil))
		wantGood(t, file, algorithm+" in a file, with a kid", keys.signed(t, algorithm, map[string]any{"kid": "any"}))
		wantGood(t, remote, algorithm+" in a set", keys.signed(t, algorithm, map[string]any{"kid": keyOf(algorithm)}))
		wantGood(t, remote, algorithm+" in a set, without a kid", keys.signed(t, algorithm, nil))
	}
}

func TestTwoSecretsAreGoodAtOnce(t *testing.T) {
	t.Parallel()
	const old = "the secret of last year, which is long enough"
	v := verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), PreviousHMACSecret: []byte(old)})
	wantGood(t, v, "the new secret", signedWith(t, "HS256", []byte(secret), nil))
	wantGood(t, v, "the old secret", signedWith(t, "HS512", []byte(old), nil))
	wantBad(t, v, "another", signedWith(t, "HS256", []byte("a secret of somebody else, a long one"), nil), "invalid_token", "signature")
}

func TestAlgorithmsCanBeNarrowed(t *testing.T) {
	t.Parallel()
	keys := trusted()
	v := verifier(t, stream.VerifierOptions{
		HMACSecret: []byte(secret), PublicKeyFile: writeFile(t, publicPEM(t, keys.rsa)), Algorithms: []string{"HS256", "PS384"},
	})
	wantGood(t, v, "HS256", signedWith(t, "HS256", []byte(secret), nil))
	wantGood(t, v, "PS384", keys.signed(t, "PS384", nil))
	for _, algorithm := range []string{"HS384", "HS512"} {
		wantBad(t, v, algorithm, signedWith(t, algorithm, []byte(secret), nil), "invalid_token", "algorithm")
	}
	for _, algorithm := range []string{"RS256", "RS384", "PS256", "PS512"} {
		wantBad(t, v, algorithm, keys.signed(t, algorithm, nil), "invalid_token", "algorithm")
	}
}

func TestBadKeysStopTheStartWithAReason(t *testing.T) {
	t.Parallel()
	keys := trusted()
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	private, err := x509.MarshalPKCS8PrivateKey(keys.p256)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
	weak.N.SetBit(weak.N, 0, 1)
	huge := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 9000), E: 65537}
	huge.N.SetBit(huge.N, 0, 1)
	good := publicPEM(t, keys.p256)
	for name, c := range map[string]struct {
		file    []byte
		options stream.VerifierOptions
		want    string
	}{
		"no key at all":                  {want: "no key to check tokens with"},
		"an empty file":                  {file: []byte("\n"), want: "found no PEM block"},
		"no PEM":                         {file: []byte("a secret"), want: "no PEM block follows"},
		"something after the key":        {file: append(slices.Clone(good), "oops"...), want: "follows block 1"},
		"a private key":                  {file: append(slices.Clone(good), block("PRIVATE KEY", private)...), want: "block 2: found a PRIVATE KEY"},
		"a request":                      {file: block("CERTIFICATE REQUEST", private), want: `found "CERTIFICATE REQUEST"`},
		"a broken key":                   {file: block("PUBLIC KEY", private), want: "can't be read"},
		"a broken certificate":           {file: block("CERTIFICATE", private), want: "can't be read"},
		"a weak RSA key":                 {file: block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(weak)), want: "an RSA key of 1024 bits; allowed are 2048 to 8192"},
		"a huge RSA key":                 {file: block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(huge)), want: "an RSA key of 9001 bits"},
		"a curve that is not for tokens": {file: publicPEM(t, p224), want: "the curve P-224"},
		"no such file":                   {options: stream.VerifierOptions{PublicKeyFile: "/nowhere/key.pem"}, want: "/nowhere/key.pem"},
		"a public key as the secret":     {options: stream.VerifierOptions{HMACSecret: good}, want: "is a public key"},
		"a public key as the old secret": {options: stream.VerifierOptions{HMACSecret: []byte(secret), PreviousHMACSecret: good}, want: "is a public key"},
		"an algorithm without its key":   {options: stream.VerifierOptions{HMACSecret: []byte(secret), Algorithms: []string{"RS256"}}, want: `the algorithm "RS256"; allowed are HS256`},
		"the algorithm none":             {file: good, options: stream.VerifierOptions{Algorithms: []string{"none"}}, want: `the algorithm "none"`},
		"HMAC with a public key":         {file: good, options: stream.VerifierOptions{Algorithms: []string{"HS256"}}, want: `the algorithm "HS256"`},
		"a claim for two things":         {options: stream.VerifierOptions{HMACSecret: []byte(secret), Claims: stream.ClaimNames{UserID: "sub", CadetID: "sub"}}, want: `the claim "sub"`},
		"a claim that has a meaning":     {options: stream.VerifierOptions{HMACSecret: []byte(secret), Claims: stream.ClaimNames{Role: "exp"}}, want: `the claim "exp"`},
	} {
		if c.file != nil {
			c.options.PublicKeyFile = writeFile(t, c.file)
		}
		if _, err := stream.NewVerifier(c.options); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestCertificatesAndPKCS1KeysAreRead(t *testing.T) {
	t.Parallel()
	keys := trusted()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, keys.p256.Public(), keys.p256)
	if err != nil {
		t.Fatal(err)
	}
	text := slices.Concat(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&keys.rsa.PublicKey)}),
	)
	v := verifier(t, stream.VerifierOptions{PublicKeyFile: writeFile(t, text)})
	wantGood(t, v, "the certificate's", keys.signed(t, "ES256", nil))
	wantGood(t, v, "the RSA key's", keys.signed(t, "RS512", nil))
}

// crafted is a token made by hand, signed by a function.
func crafted(header, claims string, sign func(text string) []byte) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	return text + "." + base64.RawURLEncoding.EncodeToString(sign(text))
}

// confusions are tokens that try to have a key taken for what it is not. What a
// verifier trusts are public keys: their texts are known to everybody.
func confusions(t testing.TB, public map[string][]byte) (bad []badToken) {
	t.Helper()
	keys, evil := trusted(), stranger()
	claims, err := json.Marshal(jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix(), "user_id": 1, "role": "admin"})
	if err != nil {
		t.Fatal(err)
	}
	add := func(name, token string) { bad = append(bad, badToken{name, token, "invalid_token", ""}) }
	header := func(algorithm string, more ...any) string {
		all := map[string]any{"alg": algorithm, "typ": "JWT"}
		for i := 0; i < len(more); i += 2 {
			all[more[i].(string)] = more[i+1]
		}
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	fixed := func(signature []byte) func(string) []byte {
		return func(string) []byte { return signature }
	}
	mac := func(secret []byte) func(string) []byte {
		return func(text string) []byte {
			m := hmac.New(sha256.New, secret)
			m.Write([]byte(text))
			return m.Sum(nil)
		}
	}
	for _, algorithm := range []string{"none", "None", "NONE", "nOnE", "", "HS255", "ES256K", "RS1", "RSA-OAEP", "dir", "A128KW", "HS256 ", "hs256", "rs256", "eddsa", "Ed25519"} {
		add("alg "+algorithm+" with no signature", crafted(header(algorithm), string(claims), fixed(nil)))
		add("alg "+algorithm+" with a signature", crafted(header(algorithm), string(claims), mac([]byte(secret+"x"))))
	}
	for _, algorithm := range publicAlgorithms {
		add(algorithm+" of a stranger", evil.signed(t, algorithm, nil))
		add(algorithm+" of a stranger under a trusted name", evil.signed(t, algorithm, map[string]any{"kid": keyOf(algorithm)}))
		for _, size := range []int{0, 1, 64, 96, 132, 256} {
			add(algorithm+" with a signature of zeros", crafted(header(algorithm), string(claims), fixed(make([]byte, size))))
		}
		for name, text := range public {
			add(algorithm+" signed as HMAC with "+name, crafted(header(algorithm), string(claims), mac(text)))
		}
	}
	for name, text := range public {
		for _, algorithm := range []string{"HS256", "HS384", "HS512"} {
			add(algorithm+" with "+name, signedWith(t, algorithm, text, nil))
			add(algorithm+" with "+name+" under a trusted name", signedWith(t, algorithm, text, map[string]any{"kid": "rsa"}))
		}
	}
	add("HS256 with an empty secret", signedWith(t, "HS256", []byte{}, nil))
	// One trusted key, the algorithm of another.
	digest := func(text string) []byte { d := sha256.Sum256([]byte(text)); return d[:] }
	add("ES256 signed with a P-384 key", crafted(header("ES256", "kid", "p384"), string(claims), func(text string) []byte {
		r, s, err := ecdsa.Sign(rand.Reader, keys.p384, digest(text))
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 48)), s.FillBytes(make([]byte, 48))...)
	}))
	add("ES256 in ASN.1", crafted(header("ES256", "kid", "p256"), string(claims), func(text string) []byte {
		signature, err := ecdsa.SignASN1(rand.Reader, keys.p256, digest(text))
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}))
	add("PS256 under the header RS256", reheaded(t, keys.signed(t, "PS256", nil), header("RS256")))
	add("RS256 under the header RS512", reheaded(t, keys.signed(t, "RS256", nil), header("RS512")))
	add("RS256 under the header HS256", reheaded(t, keys.signed(t, "RS256", nil), header("HS256")))
	add("another's claims", func() string {
		a, b := strings.Split(keys.signed(t, "ES256", nil), "."), strings.Split(evil.signed(t, "ES256", nil, admin), ".")
		return a[0] + "." + b[1] + "." + a[2]
	}())
	// Keys that the token brings along.
	own := jwk(t, "mine", evil.p256.Public(), nil)
	var list any
	if err := json.Unmarshal(own, &list); err != nil {
		t.Fatal(err)
	}
	add("a key in the header", evil.signed(t, "ES256", map[string]any{"jwk": list, "kid": "mine"}))
	add("a key set's address in the header", evil.signed(t, "ES256", map[string]any{"jku": "http://127.0.0.1:1/keys", "kid": "mine"}))
	add("a certificate in the header", evil.signed(t, "ES256", map[string]any{"x5c": []string{"MIIB"}, "x5u": "http://127.0.0.1:1/cert"}))
	for name, id := range map[string]any{"a number": 1, "a list": []string{"rsa"}, "null": nil, "empty": "", "huge": strings.Repeat("k", 257), "a path": "../../dev/null", "SQL": "' OR '1'='1"} {
		if name != "a path" && name != "SQL" {
			add("a kid that is "+name, keys.signed(t, "ES256", map[string]any{"kid": id}))
		} else {
			add("a kid that is "+name, evil.signed(t, "ES256", map[string]any{"kid": id}))
		}
	}
	add("kid twice", crafted(`{"alg":"ES256","kid":"x","kid":"p256"}`, string(claims), fixed(make([]byte, 64))))
	return bad
}

// reheaded is a token with another header over the same claims and signature.
func reheaded(t testing.TB, token, header string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + parts[1] + "." + parts[2]
}

func TestNoKeyIsTakenForAnother(t *testing.T) {
	t.Parallel()
	keys := trusted()
	all := publicPEM(t, keys.rsa, keys.p256, keys.p384, keys.p521, keys.ed)
	set := serveKeys(t)
	set.publish(t, keys, "")
	public := map[string][]byte{
		"the file": all, "the file's first key": publicPEM(t, keys.rsa), "the file without its end": []byte(strings.TrimSpace(string(all))),
		"the key's DER": mustDER(t, keys.rsa), "the modulus": keys.rsa.N.Bytes(), "the Ed25519 key": keys.ed.Public().(ed25519.PublicKey),
		"the key set": set.text(),
	}
	bad := confusions(t, public)
	if len(bad) < 100 {
		t.Fatalf("only %d tokens", len(bad))
	}
	for name, v := range map[string]*stream.Verifier{
		"a secret":            verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret)}),
		"a file":              verifier(t, stream.VerifierOptions{PublicKeyFile: writeFile(t, all)}),
		"a file and a secret": verifier(t, stream.VerifierOptions{PublicKeyFile: writeFile(t, all), HMACSecret: []byte(secret)}),
		"one RSA key":         verifier(t, stream.VerifierOptions{PublicKeyFile: writeFile(t, publicPEM(t, keys.rsa))}),
		"a key set":           set.verifier(t, stream.VerifierOptions{JWKSRefresh: 50 * time.Millisecond}),
		"everything":          set.verifier(t, stream.VerifierOptions{PublicKeyFile: writeFile(t, all), HMACSecret: []byte(secret), JWKSRefresh: 50 * time.Millisecond}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, token := range bad { // a set that is fetched after it shows that the key is no new one
				_, _ = v.Verify(t.Context(), token.token)
			}
			before := set.asked.Load()
			relaytest.Wait(t, "the sets are fetched again", func() bool { return set.asked.Load() > before+20 })
			refusedByTheVerifier(t, v, bad)
			// The limit of failed authentications has tests of its own.
			w := newWorld(t, worldOptions{Options: stream.Options{Verifier: v, Limits: stream.Limits{FailedAuthRatePerIP: stream.NoLimit}}})
			good := keys.signed(t, "RS256", map[string]any{"kid": "rsa"})
			if name == "a secret" {
				good = sign(t, cadet17)
			}
			refusedOnAWebSocket(t, w, bad)
			refusedOnSSE(t, w, bad)
			refusedInAnAuthFrame(t, w, good, bad)
		})
	}
	if set.strangers.Load() != 0 {
		t.Error("an address of a token's was asked")
	}
}

func mustDER(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestAChangedKeyFileIsReadAgain(t *testing.T) {
	t.Parallel()
	keys, next := trusted(), stranger()
	path := writeFile(t, publicPEM(t, keys.p256))
	v := verifier(t, stream.VerifierOptions{PublicKeyFile: path})
	stop := stream.WatchKeys(v, time.Millisecond)
	defer stop()
	replace := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(path+".new", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	good := func(token string) func() bool {
		return func() bool { _, err := v.Verify(t.Context(), token); return err == nil }
	}
	wantGood(t, v, "before", keys.signed(t, "ES256", nil))
	replace(publicPEM(t, keys.p256, next.p256))
	relaytest.Wait(t, "the second key is good", good(next.signed(t, "ES256", nil)))
	wantGood(t, v, "the first key beside it", keys.signed(t, "ES256", nil))
	replace(publicPEM(t, next.p256))
	relaytest.Wait(t, "the first key has gone", func() bool { return !good(keys.signed(t, "ES256", nil))() })
	replace([]byte("broken"))
	replace(publicPEM(t, next.ed))
	relaytest.Wait(t, "the third key is good", good(next.signed(t, "EdDSA", nil)))
}

func TestClaimNamesCanBeChosen(t *testing.T) {
	t.Parallel()
	v := verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), Claims: stream.ClaimNames{
		UserID: "sub", Role: "https://grades.example.org/role", CadetID: "cadet", IsApproved: "ok",
	}})
	good := jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix(), "sub": "5", "https://grades.example.org/role": "cadet", "cadet": 17, "ok": true}
	wantGood(t, v, "the names", signWith(t, jwt.SigningMethodHS256, []byte(secret), good))
	with := func(name string, value any) string {
		claims := maps.Clone(good)
		claims[name] = value
		return signWith(t, jwt.SigningMethodHS256, []byte(secret), claims)
	}
	wantGood(t, v, "the usual names mean nothing", with("user_id", "x"))
	wantBad(t, v, "no sub", signWith(t, jwt.SigningMethodHS256, []byte(secret), jwt.MapClaims{"exp": good["exp"], "user_id": 5, "role": "cadet"}), "invalid_token", "sub is missing")
	wantBad(t, v, "a bad sub", with("sub", "amara"), "invalid_token", `sub is "amara"`)
	wantBad(t, v, "a bad role", with("https://grades.example.org/role", 1), "invalid_token", "https://grades.example.org/role is 1")
	wantBad(t, v, "not ok", with("ok", false), "not_approved", "")
	wantBad(t, v, "a refresh token", with("token_type", "refresh"), "invalid_token", "token_type")
}

// refusedByTheVerifier and its siblings check that tokens are refused on each way in.
func refusedByTheVerifier(t *testing.T, v *stream.Verifier, tokens []badToken) {
	t.Helper()
	for _, bad := range tokens {
		wantBad(t, v, bad.name, bad.token, bad.code, bad.reason)
		if _, err := v.Verify(t.Context(), bad.token); err != nil && len(bad.token) > 8 && strings.Contains(err.Error(), bad.token) {
			t.Errorf("%s: the reason holds the token: %v", bad.name, err)
		}
	}
}

func refusedOnAWebSocket(t *testing.T, w *world, tokens []badToken) {
	t.Helper()
	for _, bad := range tokens {
		header := http.Header{}
		if strings.ContainsAny(bad.token, "\n") {
			continue // no header can carry it; in a query it is tested on SSE
		}
		if bad.token != "" {
			header.Set("Authorization", "Bearer "+bad.token)
		}
		c := w.dial(t, "/ws/updates/", header)
		if got := c.closed(t); got.Code != 4001 || !strings.Contains(got.Text, bad.reason) {
			t.Errorf("%s: closed with %d %q, want 4001 %q", bad.name, got.Code, got.Text, bad.reason)
		}
	}
}

func refusedOnSSE(t *testing.T, w *world, tokens []badToken) {
	t.Helper()
	for _, bad := range tokens {
		if len(bad.token) > 8192 {
			continue // refused by the verifier, or with 431 before it
		}
		response := w.get(t, "/api/events?token="+url.QueryEscape(bad.token), nil)
		want := http.StatusUnauthorized
		if bad.code == "not_approved" {
			want = http.StatusForbidden
		}
		var body message
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
			t.Fatalf("%s: %v", bad.name, err)
		}
		response.Body.Close()
		if response.StatusCode != want || body.Type != "error" || body.Code != bad.code || !strings.Contains(body.Message, bad.reason) {
			t.Errorf("%s: got %d %+v, want %d %s %q", bad.name, response.StatusCode, body, want, bad.code, bad.reason)
		}
	}
}

// refusedInAnAuthFrame sends the tokens on connections that a good token has opened.
func refusedInAnAuthFrame(t *testing.T, w *world, good string, tokens []badToken) {
	t.Helper()
	for _, bad := range tokens {
		if len(bad.token) > 4000 {
			continue // longer than a message may be
		}
		c := w.dial(t, "/ws/updates/?token="+good, nil)
		nextOf(t, c, "connection_established")
		frame, err := json.Marshal(map[string]string{"type": "auth", "token": bad.token})
		if err != nil {
			t.Fatal(err)
		}
		c.send(t, string(frame))
		if got := c.closed(t); got.Code != 4001 || !strings.Contains(got.Text, bad.reason) {
			t.Errorf("%s: closed with %d %q, want 4001 %q", bad.name, got.Code, got.Text, bad.reason)
		}
	}
}
