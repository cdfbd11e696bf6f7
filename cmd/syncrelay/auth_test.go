package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/configs"
)

func TestTokensOfAPublicKeyAndOfBothSecretsAreServed(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	const old = "the secret of last year, which is long enough"
	p := newDatabase(t)
	p.start("SYNCRELAY_AUTH_PUBLIC_KEY_FILE="+path, "SYNCRELAY_AUTH_HMAC_PREVIOUS_SECRET="+old, "SYNCRELAY_AUTH_CLAIMS_USER_ID=sub", "SYNCRELAY_AUTH_ISSUER=grades")
	for name, s := range map[string]struct {
		method jwt.SigningMethod
		key    any
	}{
		"the public key": {jwt.SigningMethodES256, key}, "the secret": {jwt.SigningMethodHS512, []byte(testSecret)}, "the old secret": {jwt.SigningMethodHS256, []byte(old)},
	} {
		token, err := jwt.NewWithClaims(s.method, jwt.MapClaims{"sub": "1", "role": "admin", "iss": "grades", "exp": time.Now().Add(time.Hour).Unix()}).SignedString(s.key)
		if err != nil {
			t.Fatal(err)
		}
		for _, transport := range []string{overWebSocket, overSSE} {
			if f := follow(t, transport, p.address(), token, -1); f.note("connection_established") == nil {
				t.Errorf("%s over %s: not let in", name, transport)
			}
		}
	}
}

// The daemon goes on, and so do the connections that are there.
func TestASecretIsChangedUnderARunningDaemon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	now, previous := filepath.Join(dir, "now"), filepath.Join(dir, "previous")
	replace := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	const next = "the secret of next year, which is long enough"
	replace(now, testSecret)
	replace(previous, testSecret)
	p := newDatabase(t)
	environ := slices.DeleteFunc(p.settings(), func(entry string) bool { return strings.HasPrefix(entry, "SYNCRELAY_AUTH_HMAC_SECRET=") })
	p.startWith(append(environ, "SYNCRELAY_AUTH_HMAC_SECRET_FILE="+now, "SYNCRELAY_AUTH_HMAC_PREVIOUS_SECRET_FILE="+previous))
	signed := func(secret string) string {
		t.Helper()
		token, err := signToken(secret, tokenClaims{UserID: 1, Role: "admin", Approved: true}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	before := follow(t, overWebSocket, p.address(), signed(testSecret), -1)
	goodNow := func(secret string) bool {
		response, err := http.Head("http://" + p.address() + "/api/events?token=" + signed(secret))
		if err != nil {
			t.Fatal(err)
		}
		return errors.Join(err, response.Body.Close()) == nil && response.StatusCode == http.StatusOK
	}
	if goodNow(next) {
		t.Fatal("the next secret is good already")
	}
	replace(now, next)
	eventually(t, "the next secret is good", func() bool { return goodNow(next) })
	if !goodNow(testSecret) {
		t.Error("the one before is not")
	}
	replace(now, "")
	eventually(t, "the error is counted", func() bool {
		_, body := get(t, "http://"+p.daemon.ops.Addr().String()+"/metrics")
		return strings.Contains(body, "syncrelay_errors_total{component=\"auth\"} 1\n")
	})
	if !goodNow(next) {
		t.Error("an empty file has taken the secret away")
	}
	replace(previous, next)
	eventually(t, "the old secret has gone", func() bool { return !goodNow(testSecret) })
	p.exec(`SELECT broadcast_grade_update(17, '{}')`)
	before.await(t, 1)
}

func TestAProviderThatIsDownAtTheStartMakesTheRelayNotReady(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := jwkset.NewJWKFromKey(key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: "one"}})
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jwkset.JWKSMarshal{Keys: []jwkset.JWKMarshal{jwk.Marshal()}})
	if err != nil {
		t.Fatal(err)
	}
	var up atomic.Bool
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = w.Write(set)
	}))
	t.Cleanup(provider.Close)
	p := newDatabase(t)
	environ := slices.DeleteFunc(p.settings(), func(entry string) bool { return strings.HasPrefix(entry, "SYNCRELAY_AUTH_HMAC_SECRET=") })
	p.startWith(append(environ, "SYNCRELAY_AUTH_JWKS_URL="+provider.URL, "SYNCRELAY_AUTH_JWKS_REFRESH=1s"))
	if status, body := get(t, "http://"+p.address()+"/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "keys for tokens") {
		t.Errorf("/readyz: got %d %s", status, body)
	}
	up.Store(true)
	eventually(t, "the relay is ready", func() bool {
		status, _ := get(t, "http://"+p.address()+"/readyz")
		return status == http.StatusOK
	})
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"user_id": 1, "role": "admin", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = "one"
	signed, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, overWebSocket, p.address(), signed, -1)
}

func TestServeNeedsSomethingToCheckTokensWith(t *testing.T) {
	t.Parallel()
	load := func(environ ...string) error {
		_, err := loadSettings(streams{environ: environ}, "", configs.AnyKey)
		return err
	}
	if err := load(); err == nil || !strings.Contains(err.Error(), "auth.hmac_secret (environment SYNCRELAY_AUTH_HMAC_SECRET): found nothing") ||
		!strings.Contains(err.Error(), "auth.public_key_file, or auth.jwks_url") {
		t.Errorf("got %v", err)
	}
	for _, one := range []string{"SYNCRELAY_AUTH_HMAC_SECRET=x", "SYNCRELAY_AUTH_PUBLIC_KEY_FILE=/x", "SYNCRELAY_AUTH_JWKS_URL=https://login.example.org/keys"} {
		if err := load(one); err != nil {
			t.Errorf("%s: %v", one, err)
		}
	}
}

// django is what Django and an application with profiles would make.
const django = `
	CREATE TABLE auth_user (id integer PRIMARY KEY, password text, is_active boolean);
	CREATE TABLE accounts_profile (user_id integer REFERENCES auth_user, role varchar(20), cadet_id bigint, is_approved boolean);
	INSERT INTO auth_user VALUES (1, 'x', true), (5, 'y', true), (6, 'z', false);
	INSERT INTO accounts_profile VALUES (1, 'admin', NULL, true), (5, 'cadet', 17, true), (6, 'cadet', 18, true);`

func TestTheDjangoExampleOfTheReadmeSaysWhoUsersAre(t *testing.T) {
	t.Parallel()
	blocks := examples(t, "../../configs/README.md", "Who users are", "sql")
	if len(blocks) != 2 {
		t.Fatalf("the section has %d blocks of SQL, want the query and the grants", len(blocks))
	}
	p := newDatabase(t)
	p.exec(django)
	p.exec(blocks[1])
	p.start("SYNCRELAY_AUTH_IDENTITY=database", "SYNCRELAY_AUTH_IDENTITY_QUERY="+blocks[0], "SYNCRELAY_AUTH_IDENTITY_REFRESH=1s")
	// As SimpleJWT makes them: the user, and nothing else about them.
	token := func(user int) string {
		t.Helper()
		signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
			"token_type": "access", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "jti": "5f0c", "user_id": user,
		}).SignedString([]byte(testSecret))
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	staff, cadet := follow(t, overWebSocket, p.address(), token(1), -1), follow(t, overSSE, p.address(), token(5), -1)
	p.exec(`SELECT broadcast_grade_update(17, '{}'), broadcast_grade_update(18, '{}')`)
	staff.await(t, 2)
	cadet.await(t, 1)
	for _, user := range []int{6, 7} {
		if _, err := tryFollow(t.Context(), overSSE, p.address(), token(user), -1); err == nil || !strings.Contains(err.Error(), "403") {
			t.Errorf("user %d: %v, want 403", user, err)
		}
	}
	begun := time.Now()
	p.exec(`UPDATE accounts_profile SET is_approved = false WHERE user_id = 5`)
	eventually(t, "the cadet is told", func() bool { return cadet.note("error") != nil })
	if took := time.Since(begun); took > 10*time.Second { // by default it is a minute
		t.Errorf("it took %s, want a second and a little", took)
	}
	if m := cadet.note("error"); !strings.Contains(m.Message, "user not approved") {
		t.Errorf("told %+v", m)
	}
	begun = time.Now()
	p.exec(`UPDATE auth_user SET is_active = false WHERE id = 1; INSERT INTO sync_events (event_type, user_ids) VALUES ('session_revoked', '{1}')`)
	eventually(t, "the admin is let go", func() bool { return staff.failed() != nil })
	if !websocket.IsCloseError(staff.failed(), 4001) || !strings.Contains(staff.failed().Error(), "session revoked") {
		t.Errorf("let go with %v after %s", staff.failed(), time.Since(begun))
	}
}

func TestAnOwnTokenIsOneThatTheSettingsTake(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{
		"the defaults":  nil,
		"other claims":  {"SYNCRELAY_AUTH_CLAIMS_USER_ID=sub", "SYNCRELAY_AUTH_CLAIMS_ROLE=https://grades.example.org/role", "SYNCRELAY_AUTH_CLAIMS_CADET_ID=cadet", "SYNCRELAY_AUTH_CLAIMS_IS_APPROVED=ok"},
		"an issuer":     {"SYNCRELAY_AUTH_ISSUER=https://login.example.org", "SYNCRELAY_AUTH_AUDIENCE=grades"},
		"one algorithm": {"SYNCRELAY_AUTH_ALGORITHMS=HS512"},
	} {
		environ := append([]string{"SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret}, more...)
		token := strings.TrimSpace(mustRun(t, environ, "token", "--user", "5", "--role", "cadet", "--cadet", "17"))
		settings, err := loadSettings(streams{environ: environ}, "")
		if err != nil {
			t.Fatal(err)
		}
		v, err := newVerifier(settings.Auth, slog.New(slog.DiscardHandler), func(string) {})
		if err != nil {
			t.Fatal(err)
		}
		if id, err := v.Verify(t.Context(), token); err != nil || id.UserID != 5 || id.Role != "cadet" || id.CadetID != 17 {
			t.Errorf("%s: got %+v, %v", name, id, err)
		}
	}
}
