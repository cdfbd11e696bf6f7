package stream

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

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
		if err := c.decode(); err != nil {
			if !utf8.ValidString(err.Error()) || len(err.Error()) > 400 {
				t.Fatalf("the reason for %q is %q", text, err)
			}
			return
		}
		if c.userID <= 0 || !validRole(c.role) || c.hasCadet && c.cadetID <= 0 || c.expires == nil || c.expires.Year() > 9999 {
			t.Fatalf("%q gave %+v", text, c)
		}
	})
}

// FuzzToken: no token that was not signed here is good, and no error holds it.
func FuzzToken(f *testing.F) {
	v, err := NewVerifier(VerifierOptions{HMACSecret: []byte("a secret that nobody can guess, ever")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjoxfQ.c2ln")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		_, err := v.Verify(token)
		if err == nil {
			t.Fatalf("%q is good", token)
		}
		if len(token) > 20 && strings.Contains(err.Error(), token) {
			t.Fatalf("the error holds the token: %v", err)
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
