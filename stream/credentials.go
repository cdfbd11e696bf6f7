package stream

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/syncrelay/syncrelay/relay"
)

// bearer is the subprotocol whose next neighbour in the list is a token.
const bearer = "bearer"

// token finds a request's token. Of several, a header's wins over the URL's, as
// it is the one that was set on purpose for this request: first Authorization,
// then (on a WebSocket) the subprotocol pair, then the query. Cookies are never
// read, so that another site can't ride on one.
func token(r *http.Request, query url.Values) string {
	if value := authorization(r); value != "" {
		return value
	}
	protocols := subprotocols(r)
	if i := slices.Index(protocols, bearer); i >= 0 && i+1 < len(protocols) {
		return protocols[i+1]
	}
	return query.Get("token")
}

// authorization is the token of the header Authorization, empty if there is none.
func authorization(r *http.Request) string {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, bearer) {
		return ""
	}
	return strings.TrimSpace(value)
}

// subprotocols lists what the client offers, over all of the header's lines.
func subprotocols(r *http.Request) []string {
	var list []string
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for name := range strings.SplitSeq(line, ",") {
			if name = strings.TrimSpace(name); name != "" {
				list = append(list, name)
			}
		}
	}
	return list
}

// start is where a client wants to begin: the Last-Event-ID header, which a
// browser's EventSource sets by itself when it reconnects, wins over the URL
// that the page gave it once.
func start(r *http.Request, query url.Values, header bool) relay.Start {
	if header {
		if id := strings.TrimSpace(r.Header.Get("Last-Event-ID")); id != "" {
			return startAfter(id)
		}
	}
	for _, name := range [...]string{"last_event_id", "lastEventId", "lastEventID"} {
		if id := query.Get(name); id != "" {
			return startAfter(id)
		}
		if !header {
			break // the other spellings are EventSource's
		}
	}
	return relay.Start{}
}

// startAfter reads a last event ID.
func startAfter(id string) relay.Start {
	n, ok := wholeNumber(id)
	if !ok || n > relay.MaxEventID {
		return relay.Start{Invalid: fmt.Sprintf("last_event_id is %s; %s", quote(id), allowedEventIDs)}
	}
	return relay.Start{Resume: true, After: n}
}

const allowedEventIDs = "allowed are whole numbers from 0 to the newest event"
