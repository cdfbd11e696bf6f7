package stream_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/stream"
)

// badToken is a token that must be refused on every way in.
type badToken struct {
	name   string
	token  string
	code   string // of the error
	reason string // a part of its text
}

// handmade signs a header and claims as they are written.
func handmade(header, claims string) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

const plainHeader = `{"alg":"HS256","typ":"JWT"}`

// claim is a token that is good but for these claims.
func claim(t testing.TB, name string, value any) string {
	t.Helper()
	return sign(t, cadet17, jwt.MapClaims{name: value})
}

// without is a token that lacks a claim.
func without(t testing.TB, name string) string {
	t.Helper()
	all := jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix(), "user_id": 5, "role": "cadet"}
	delete(all, name)
	return signWith(t, jwt.SigningMethodHS256, []byte(secret), all)
}

func signWith(t testing.TB, method jwt.SigningMethod, key any, claims jwt.MapClaims) string {
	t.Helper()
	token, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func badTokens(t testing.TB) []badToken {
	t.Helper()
	good := jwt.MapClaims{"exp": time.Now().Add(time.Hour).Unix(), "user_id": 5, "role": "cadet", "cadet_id": 17}
	raw, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	ok := string(raw)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := sign(t, cadet17)
	parts := strings.Split(signed, ".")
	const (
		invalid = "invalid_token"
		noJWT   = "not a JSON Web Token"
		alg     = "algorithm"
		userID  = "user_id is"
	)
	long := strings.Repeat("a", 9<<10)
	return []badToken{
		{"empty", "", "no_token", "no token"},
		{"a word", "token", invalid, noJWT},
		{"two parts", parts[0] + "." + parts[1], invalid, noJWT},
		{"four parts", signed + ".x", invalid, noJWT},
		{"huge", long, invalid, "longer than 8192 bytes"},
		{"a line end in the signature", parts[0] + "." + parts[1] + "." + parts[2][:9] + "\n" + parts[2][9:], invalid, noJWT},
		{"padded", parts[0] + "." + parts[1] + "." + parts[2] + "=", invalid, noJWT},
		{"standard base64", strings.ReplaceAll(signed, ".", "+"), invalid, noJWT},
		{"another signature", parts[0] + "." + parts[1] + "." + strings.Split(handmade(plainHeader, "{}"), ".")[2], invalid, "signature"},
		{"no signature", parts[0] + "." + parts[1] + ".", invalid, "signature"},
		{"a cut signature", signed[:len(signed)-4], invalid, ""},
		{"another secret", signWith(t, jwt.SigningMethodHS256, []byte(strings.Repeat("x", 40)), good), invalid, "signature"},
		{"an empty secret", signWith(t, jwt.SigningMethodHS256, []byte{}, good), invalid, "signature"},
		{"alg none", signWith(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good), invalid, "signature"},
		{"alg nOnE", handmade(`{"alg":"nOnE","typ":"JWT"}`, ok), invalid, alg},
		{"alg hs256 in small letters", handmade(`{"alg":"hs256"}`, ok), invalid, alg},
		{"alg HS256 signed as HS512", reheaded(t, signWith(t, jwt.SigningMethodHS512, []byte(secret), good), plainHeader), invalid, "signature"},
		{"alg RS256", signWith(t, jwt.SigningMethodRS256, rsaKey, good), invalid, alg},
		{"alg PS256", signWith(t, jwt.SigningMethodPS256, rsaKey, good), invalid, alg},
		{"alg ES256", signWith(t, jwt.SigningMethodES256, ecKey, good), invalid, alg},
		{"alg EdDSA", signWith(t, jwt.SigningMethodEdDSA, edKey, good), invalid, alg},
		{"alg RS256 signed as HMAC", handmade(`{"alg":"RS256"}`, ok), invalid, alg},
		{"alg unknown", handmade(`{"alg":"HS257"}`, ok), invalid, alg},
		{"alg missing", handmade(`{"typ":"JWT"}`, ok), invalid, alg},
		{"alg a number", handmade(`{"alg":256}`, ok), invalid, alg},
		{"alg twice", handmade(`{"alg":"none","alg":"HS256"}`, ok), invalid, `header: "alg" stands twice`},
		{"crit", handmade(`{"alg":"HS256","crit":["b64"],"b64":false}`, ok), invalid, "crit"},
		{"typ of a logout token", handmade(`{"alg":"HS256","typ":"logout+jwt"}`, ok), invalid, "typ is"},
		{"header no object", handmade(`"HS256"`, ok), invalid, "header"},
		{"claims no JSON", handmade(plainHeader, `user_id=5`), invalid, noJWT},
		{"claims an array", handmade(plainHeader, `[5]`), invalid, "not a JSON object"},
		{"claims null", handmade(plainHeader, `null`), invalid, ""},
		{"claims twice", handmade(plainHeader, ok+ok), invalid, noJWT},
		{"claims not UTF-8", handmade(plainHeader, `{"x":"`+"\xff"+`",`+ok[1:]), invalid, "UTF-8"},
		{"user_id twice", handmade(plainHeader, `{"user_id":1,`+ok[1:]), invalid, `"user_id" stands twice`},
		{"user_id twice, once escaped", handmade(plainHeader, `{"user\u005fid":1,`+ok[1:]), invalid, `"user_id" stands twice`},
		{"user_id missing", without(t, "user_id"), invalid, "user_id is missing"},
		{"USER_ID instead", handmade(plainHeader, strings.Replace(ok, "user_id", "USER_ID", 1)), invalid, "user_id is missing"},
		{"user_id null", claim(t, "user_id", nil), invalid, userID + " null"},
		{"user_id 0", claim(t, "user_id", 0), invalid, userID + " 0"},
		{"user_id negative", claim(t, "user_id", -5), invalid, userID + " -5"},
		{"user_id a fraction", claim(t, "user_id", 5.5), invalid, userID + " 5.5"},
		{"user_id 5.0", handmade(plainHeader, strings.Replace(ok, `"user_id":5`, `"user_id":5.0`, 1)), invalid, userID + " 5.0"},
		{"user_id 5e0", handmade(plainHeader, strings.Replace(ok, `"user_id":5`, `"user_id":5e0`, 1)), invalid, userID + " 5e0"},
		{"user_id 2^63", handmade(plainHeader, strings.Replace(ok, `"user_id":5`, `"user_id":9223372036854775808`, 1)), invalid, userID},
		{"user_id a word", claim(t, "user_id", "five"), invalid, userID + ` "five"`},
		{"user_id empty", claim(t, "user_id", ""), invalid, userID + ` ""`},
		{"user_id with a space", claim(t, "user_id", " 5"), invalid, userID},
		{"user_id with a plus", claim(t, "user_id", "+5"), invalid, userID},
		{"user_id with a zero", claim(t, "user_id", "05"), invalid, userID},
		{"user_id in other digits", claim(t, "user_id", "٥"), invalid, userID},
		{"user_id a list", claim(t, "user_id", []int{5}), invalid, userID + " an array"},
		{"user_id an object", claim(t, "user_id", map[string]int{"id": 5}), invalid, userID + " an object"},
		{"user_id true", claim(t, "user_id", true), invalid, userID + " true"},
		{"role missing", without(t, "role"), invalid, "role is missing"},
		{"role null", claim(t, "role", nil), invalid, "role is null"},
		{"role empty", claim(t, "role", ""), invalid, `role is ""`},
		{"role of everyone", claim(t, "role", "*"), invalid, `role is "*"`},
		{"role too long", claim(t, "role", strings.Repeat("a", 65)), invalid, "role is"},
		{"role with a space", claim(t, "role", "training staff"), invalid, "role is"},
		{"role with a zero byte", claim(t, "role", "admin\x00"), invalid, "role is"},
		{"role of like letters", claim(t, "role", "аdmin"), invalid, "role is"},
		{"role a list", claim(t, "role", []string{"admin"}), invalid, "role is an array"},
		{"role a number", claim(t, "role", 1), invalid, "role is 1"},
		{"cadet_id a word", claim(t, "cadet_id", "all"), invalid, "cadet_id is"},
		{"cadet_id 0", claim(t, "cadet_id", 0), invalid, "cadet_id is 0"},
		{"cadet_id a list", claim(t, "cadet_id", []int{17, 18}), invalid, "cadet_id is an array"},
		{"is_approved false", claim(t, "is_approved", false), "not_approved", "user not approved"},
		{"is_approved a text", claim(t, "is_approved", "true"), invalid, "is_approved is"},
		{"is_approved null", claim(t, "is_approved", nil), invalid, "is_approved is null"},
		{"is_approved 1", claim(t, "is_approved", 1), invalid, "is_approved is 1"},
		{"a refresh token", claim(t, "token_type", "refresh"), invalid, `token_type is "refresh"`},
		{"token_type null", claim(t, "token_type", nil), invalid, "token_type is null"},
		{"exp missing", without(t, "exp"), invalid, "exp is missing"},
		{"exp null", claim(t, "exp", nil), invalid, "exp is null"},
		{"exp a text", claim(t, "exp", "4102444800"), invalid, "exp is"},
		{"exp negative", claim(t, "exp", -1), invalid, "exp is -1"},
		{"exp in milliseconds", claim(t, "exp", time.Now().Add(time.Hour).UnixMilli()*1000), invalid, "exp is"},
		{"exp out of all range", handmade(plainHeader, `{"exp":1e400,"user_id":5,"role":"cadet"}`), invalid, "exp is"},
		{"exp a moment ago", claim(t, "exp", time.Now().Unix()-1), "token_expired", "token expired"},
		{"exp in 1970", claim(t, "exp", 0), "token_expired", "token expired"},
		{"nbf in an hour", claim(t, "nbf", time.Now().Add(time.Hour).Unix()), invalid, "nbf is in the future"},
		{"nbf a text", claim(t, "nbf", "now"), invalid, "nbf is"},
		{"iat a text", claim(t, "iat", "now"), invalid, "iat is"},
	}
}

func TestBadTokensAreRefusedWithAReasonThatHoldsNoToken(t *testing.T) {
	t.Parallel()
	refusedByTheVerifier(t, newVerifier(t), badTokens(t))
}

func TestBadTokensAreClosedWith4001OnAWebSocket(t *testing.T) {
	t.Parallel()
	refusedOnAWebSocket(t, newWorld(t, worldOptions{}), badTokens(t))
}

func TestBadTokensAreRefusedWithJSONOnSSE(t *testing.T) {
	t.Parallel()
	refusedOnSSE(t, newWorld(t, worldOptions{}), badTokens(t))
}

func TestBadTokensInAnAuthFrameCloseWith4001(t *testing.T) {
	t.Parallel()
	refusedInAnAuthFrame(t, newWorld(t, worldOptions{}), sign(t, cadet17), badTokens(t))
}

func TestGoodTokensGiveTheirIdentity(t *testing.T) {
	t.Parallel()
	v := newVerifier(t)
	expires := time.Now().Add(time.Hour).Truncate(time.Second)
	for _, good := range []struct {
		name   string
		claims jwt.MapClaims
		want   relay.Identity
	}{
		{"numbers", jwt.MapClaims{"user_id": 5, "role": "cadet", "cadet_id": 17}, relay.Identity{UserID: 5, Role: "cadet", CadetID: 17, HasCadet: true}},
		{"texts of numbers", jwt.MapClaims{"user_id": "5", "role": "cadet", "cadet_id": "17"}, relay.Identity{UserID: 5, Role: "cadet", CadetID: 17, HasCadet: true}},
		{"the largest number", jwt.MapClaims{"user_id": "9223372036854775807", "role": "admin"}, relay.Identity{UserID: 1<<63 - 1, Role: "admin"}},
		{"cadet_id null", jwt.MapClaims{"user_id": 1, "role": "admin", "cadet_id": nil}, relay.Identity{UserID: 1, Role: "admin"}},
		{"approved", jwt.MapClaims{"user_id": 1, "role": "A_z-9", "is_approved": true}, relay.Identity{UserID: 1, Role: "A_z-9"}},
		{"as Django SimpleJWT makes them", jwt.MapClaims{"user_id": 1, "role": "admin", "token_type": "access", "iat": time.Now().Unix(), "jti": "3c2f"}, relay.Identity{UserID: 1, Role: "admin"}},
		{"nbf has come", jwt.MapClaims{"user_id": 1, "role": "admin", "nbf": time.Now().Unix()}, relay.Identity{UserID: 1, Role: "admin"}},
		{"an issuer and an audience that nobody asked for", jwt.MapClaims{"user_id": 1, "role": "admin", "iss": "x", "aud": []string{"y"}}, relay.Identity{UserID: 1, Role: "admin"}},
	} {
		got, err := v.Verify(t.Context(), sign(t, good.claims, jwt.MapClaims{"exp": expires.Unix()}))
		if err != nil || got.Identity != good.want || !got.ExpiresAt.Equal(expires) {
			t.Errorf("%s: got %+v, %v, want %+v until %s", good.name, got, err, good.want, expires)
		}
	}
}

func TestIssuerAudienceAndLeewayAreCheckedWhenConfigured(t *testing.T) {
	t.Parallel()
	v, err := stream.NewVerifier(stream.VerifierOptions{
		HMACSecret: []byte(secret), Issuer: "grading", Audience: "syncrelay", Leeway: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	good := jwt.MapClaims{"iss": "grading", "aud": []string{"other", "syncrelay"}}
	now := time.Now()
	for _, c := range []struct {
		name   string
		claims jwt.MapClaims
		want   string // "" if it is good
	}{
		{"as wanted", nil, ""},
		{"one audience", jwt.MapClaims{"aud": "syncrelay"}, ""},
		{"another issuer", jwt.MapClaims{"iss": "else"}, "iss is not"},
		{"another audience", jwt.MapClaims{"aud": "else"}, "aud does not"},
		{"an issuer that is a number", jwt.MapClaims{"iss": 1}, "iss is 1"},
		{"an audience that is an object", jwt.MapClaims{"aud": map[string]string{}}, "aud is an object"},
		{"expired within the leeway", jwt.MapClaims{"exp": now.Unix() - 5}, ""},
		{"expired before it", jwt.MapClaims{"exp": now.Unix() - 11}, "token expired"},
		{"valid from within the leeway", jwt.MapClaims{"nbf": now.Unix() + 5}, ""},
		{"valid from after it", jwt.MapClaims{"nbf": now.Unix() + 15}, "nbf"},
	} {
		_, err := v.Verify(t.Context(), sign(t, admin, good, c.claims))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := v.Verify(t.Context(), sign(t, admin)); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("neither issuer nor audience: got %v", err)
	}
}

func TestAVerifierNeedsASecret(t *testing.T) {
	t.Parallel()
	if _, err := stream.NewVerifier(stream.VerifierOptions{}); err == nil {
		t.Fatal("a verifier without any key was made: every token signed with nothing would be good")
	}
}
