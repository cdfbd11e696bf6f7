package stream_test

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// fates is how each kind of hostile client ends: what is counted when it has met
// its limit.
func fates() map[string]string {
	closed := func(reason string) string {
		return `syncrelay_disconnects_total{reason="` + reason + `",transport="websocket"}`
	}
	refused := func(reason string) string { return `syncrelay_refusals_total{reason="` + reason + `"}` }
	return map[string]string{
		"a flood of messages":                        closed("too_many_messages"),
		"a flood of pings":                           closed("too_many_messages"),
		"a flood of pongs":                           closed("too_many_messages"),
		"a flood of fragments":                       closed("too_many_messages"),
		"a flood of empty fragments":                 closed("too_many_messages"),
		"a flood of nonsense":                        closed("malformed_messages"),
		"giant frames":                               closed("message_too_large"),
		"half-open connections":                      refused("no_request"),
		"slow headers":                               refused("no_request"),
		"huge headers":                               refused("no_request"),
		"slow readers":                               closed("slow"),
		"replays again and again":                    refused("too_many_replays"),
		"replays from far back, and pings meanwhile": refused("too_many_replays"),
		"resumes again and again":                    refused("connecting_too_fast"), // before they are too many
		"connection churn":                           refused("connecting_too_fast"),
		"bad tokens":                                 refused("too_many_failed_tokens"),
	}
}

// Each kind of hostile client, alone, is let go or refused by the limit that is
// meant for it, and not once only. What that spares the others is what
// TestHonestClientsAreServedAmongHostileOnes measures.
func TestEachHostileClientMeetsTheLimitThatIsMeantForIt(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the clients come from addresses of 127.0.0.0/8, which only Linux has without ado")
	}
	all := attacks()
	if kinds, ends := slices.Sorted(maps.Keys(all)), slices.Sorted(maps.Keys(fates())); !slices.Equal(kinds, ends) {
		t.Fatalf("there are hostile clients of the kinds %q, and it is known how %q end", kinds, ends)
	}
	for name, series := range fates() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := besieged(t)
			token := sign(t, jwt.MapClaims{"user_id": 100, "role": "cadet", "cadet_id": 1})
			ctx, cancel := context.WithCancel(t.Context())
			var group sync.WaitGroup
			for range 2 {
				group.Go(func() { all[name](ctx, w.addr, "127.66.0.1", token) })
			}
			defer group.Wait()
			defer cancel()
			relaytest.Wait(t, series, func() bool {
				n, _ := w.metric(t, series)
				return n >= 2
			})
		})
	}
}
