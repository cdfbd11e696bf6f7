package stream_test

import (
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/stream"
)

// endingIn are claims that end in so many seconds.
func endingIn(seconds int64) jwt.MapClaims { return jwt.MapClaims{"exp": time.Now().Unix() + seconds} }

// wantNotice reads the notice that the token ends in about so many seconds.
func wantNotice(t testing.TB, c client, least, most int) {
	t.Helper()
	if m := nextOf(t, c, "token_expiring"); m.ExpiresIn < least || m.ExpiresIn > most {
		t.Errorf("got %s, want %d to %d seconds", m.text, least, most)
	}
}

func TestAClientIsToldAMinuteBeforeItsTokenEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ws := w.dial(t, "/ws/updates/?token="+sign(t, cadet17, endingIn(64)), nil)
	sse := w.events(t, "/api/events?token="+sign(t, cadet17, endingIn(64)), nil)
	for _, c := range []client{ws, sse} {
		nextOf(t, c, "connection_established")
	}
	w.Insert(grade(17)) // it is not told at once
	for _, c := range []client{ws, sse} {
		wantEvents(t, c, 1)
		wantNotice(t, c, 55, 60)
	}
	// A renewed token has a notice of its own.
	for range 2 {
		ws.send(t, `{"type":"auth","token":"`+sign(t, cadet17, endingIn(61))+`"}`)
		if m := nextOf(t, ws, "connection_established"); !m.Renewed {
			t.Fatalf("got %s", m.text)
		}
		wantNotice(t, ws, 55, 60)
	}
}

func TestATokenThatEndsSoonIsToldAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ws := w.dial(t, "/ws/updates/?token="+sign(t, cadet17, endingIn(20)), nil)
	sse := w.events(t, "/api/events?token="+sign(t, cadet17, endingIn(20)), nil)
	for _, c := range []client{ws, sse} {
		nextOf(t, c, "connection_established")
		wantNotice(t, c, 10, 20)
	}
}

func TestRenewalByAnotherKeyIsForTheSameUserOnly(t *testing.T) {
	t.Parallel()
	keys, next := trusted(), stranger()
	set := serveKeys(t)
	set.publish(t, keys, "")
	v := set.verifier(t, stream.VerifierOptions{HMACSecret: []byte(secret), PublicKeyFile: writeFile(t, publicPEM(t, keys.ed))})
	w := newWorld(t, worldOptions{Options: stream.Options{Verifier: v}})
	tokens := func(claims jwt.MapClaims) []string {
		return []string{
			signedWith(t, "HS384", []byte(secret), nil, claims),
			keys.signed(t, "RS256", map[string]any{"kid": "rsa"}, claims),
			keys.signed(t, "ES512", map[string]any{"kid": "p521"}, claims),
			keys.signed(t, "EdDSA", nil, claims),
		}
	}
	c := w.connect(t, cadet17)
	for _, token := range tokens(jwt.MapClaims{"role": "training_staff"}) {
		c.send(t, `{"type":"auth","token":"`+token+`"}`)
		if m := nextOf(t, c, "connection_established"); !m.Renewed || m.Role != "training_staff" || m.UserID != 5 {
			t.Errorf("got %s", m.text)
		}
	}
	for _, token := range tokens(jwt.MapClaims{"user_id": 6}) {
		c := w.connect(t, cadet17)
		c.send(t, `{"type":"auth","token":"`+token+`"}`)
		c.wantClosed(t, 4001, "another user's")
	}
	set.publish(t, next, "-2") // the provider changes its keys
	c.send(t, `{"type":"auth","token":"`+next.signed(t, "PS256", map[string]any{"kid": "rsa-2"})+`"}`)
	nextOf(t, c, "connection_established")
	c.send(t, `{"type":"auth","token":"`+next.signed(t, "PS256", map[string]any{"kid": "rsa-2"}, jwt.MapClaims{"user_id": 6})+`"}`)
	c.wantClosed(t, 4001, "another user's")
}

func TestATokenThatCantBeCheckedNowLeavesTheConnection(t *testing.T) {
	t.Parallel()
	keys := trusted()
	set := serveKeys(t)
	set.publish(t, keys, "")
	w := newWorld(t, worldOptions{Options: stream.Options{Verifier: set.verifier(t, stream.VerifierOptions{})}})
	c := w.dial(t, "/ws/updates/?token="+keys.signed(t, "ES256", map[string]any{"kid": "p256"}), nil)
	nextOf(t, c, "connection_established")
	set.answer(503, nil)
	c.send(t, `{"type":"auth","token":"`+stranger().signed(t, "ES256", map[string]any{"kid": "new"})+`"}`)
	if m := nextOf(t, c, "error"); m.Code != "unavailable" {
		t.Errorf("got %s", m.text)
	}
	w.Insert(grade(17))
	wantEvents(t, c, 1)
}
