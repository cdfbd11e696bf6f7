package stream

import "net/http"

// Reason is why a client was not let in, or why its connection ended: one
// reason, one close code, one label in the metrics, one row in README.md. A
// test holds this table and that page to each other.
type Reason struct {
	// Label is the reason's name: the label reason of
	// syncrelay_disconnects_total, the label outcome of
	// syncrelay_connects_total, and the code of an SSE error.
	Label string
	// Code is the WebSocket's close code (RFC 6455, section 7.4; 4000 and up
	// are ours); 0 if no close frame is sent, because nobody would read it.
	Code int
	// Status is the HTTP status when a request is refused for this reason; 0 if
	// it can't be.
	Status int
	// Text is what the client is told, in the close frame, the error event or
	// the HTTP body. More may follow after a colon.
	Text string
}

// The reasons. Why a client was not let in:
var (
	reasonNoToken      = &Reason{"no_token", 4001, http.StatusUnauthorized, "no token"}
	reasonInvalidToken = &Reason{"invalid_token", 4001, http.StatusUnauthorized, "invalid token"}
	reasonNotApproved  = &Reason{"not_approved", 4001, http.StatusForbidden, "user not approved"}
	reasonUnknownUser  = &Reason{"unknown_user", 4001, http.StatusForbidden, "user not known here"}
	reasonOrigin       = &Reason{"origin_forbidden", 0, http.StatusForbidden, "this origin is not allowed"}
	reasonBadRequest   = &Reason{"bad_request", 0, http.StatusBadRequest, "this request can't be answered"}
	reasonUnavailable  = &Reason{"unavailable", 1013, http.StatusServiceUnavailable, "the relay can't serve now: try again later"}
)

// Why one was not let in because of a limit:
var (
	reasonFull           = &Reason{"too_many_connections", 1013, http.StatusServiceUnavailable, "too many connections: try again later"}
	reasonFullIP         = &Reason{"too_many_connections_of_ip", 1013, http.StatusServiceUnavailable, "too many connections from this address"}
	reasonFullUser       = &Reason{"too_many_connections_of_user", 1013, http.StatusServiceUnavailable, "too many connections of this user"}
	reasonTooFast        = &Reason{"connecting_too_fast", 1013, http.StatusTooManyRequests, "too many new connections from this address: try again later"}
	reasonTooManyFailed  = &Reason{"too_many_failed_tokens", 1013, http.StatusTooManyRequests, "too many bad tokens from this address: try again later"}
	reasonTooManyReplays = &Reason{"too_many_replays", 1013, http.StatusServiceUnavailable, "too many replays: try again later"}
)

// Why one was not let in, or its connection ended:
var (
	reasonTokenExpired = &Reason{"token_expired", 4001, http.StatusUnauthorized, "token expired"}
	reasonRestarting   = &Reason{"restarting", 1012, http.StatusServiceUnavailable, "the relay is restarting: reconnect"}
	reasonRevoked      = &Reason{"session_revoked", 4001, http.StatusUnauthorized, "session revoked"}
	reasonInternal     = &Reason{"internal_error", 4000, http.StatusInternalServerError, "internal error"}
)

// Why a connection ended:
var (
	reasonNewEpoch      = &Reason{"new_epoch", 1012, http.StatusServiceUnavailable, "earlier event IDs can't be compared any more: reconnect"}
	reasonChanged       = &Reason{"identity_changed", 4001, http.StatusServiceUnavailable, "role or cadet has changed: reconnect"}
	reasonOtherUser     = &Reason{"other_user", 4001, 0, "the new token is another user's"}
	reasonTooMany       = &Reason{"too_many_messages", 1008, 0, "too many messages"}
	reasonMalformed     = &Reason{"malformed_messages", 1008, 0, "malformed messages"}
	reasonTooLarge      = &Reason{"message_too_large", 1009, 0, "the message is too long"}
	reasonNotUTF8       = &Reason{"invalid_utf8", 1007, 0, "a text message must be UTF-8"}
	reasonProtocolError = &Reason{"protocol_error", 1002, 0, "not as RFC 6455 wants it"}
	reasonClosed        = &Reason{"closed", 0, 0, "the client closed the connection"}
	reasonLost          = &Reason{"lost", 0, 0, "the connection broke"}
	reasonSilent        = &Reason{"silent", 0, 0, "the client did not answer a ping"}
	reasonSlow          = &Reason{"slow", 0, 0, "the client did not read for the length of the write deadline"}
)

// Refusals of a limit that are no answer to a client: one that it gets no answer
// from at all, or that has not asked for anything.
const (
	refusedSocket  = "too_many_sockets" // closed before anything was read
	refusedRequest = "no_request"       // no request came in its time, or one too large
)

// limitLabels are the values of the label reason of syncrelay_refusals_total.
func limitLabels() []string {
	labels := []string{refusedSocket, refusedRequest}
	for _, r := range []*Reason{
		reasonFull, reasonFullIP, reasonFullUser, reasonTooFast, reasonTooManyFailed, reasonTooManyReplays,
	} {
		labels = append(labels, r.Label)
	}
	return labels
}

// accepted is the outcome of a connect that is no refusal.
const accepted = "accepted"

// refusals are why a client is not let in, in the order of README.md: the values
// of the label outcome of syncrelay_connects_total, besides accepted.
func refusals() []*Reason {
	return []*Reason{
		reasonNoToken, reasonInvalidToken, reasonNotApproved, reasonUnknownUser, reasonOrigin, reasonBadRequest, reasonUnavailable,
		reasonFull, reasonFullIP, reasonFullUser, reasonTooFast, reasonTooManyFailed, reasonTooManyReplays,
		reasonTokenExpired, reasonRestarting, reasonInternal,
	}
}

// onlyEnds are why a connection ends, and is never refused, in the order of README.md.
func onlyEnds() []*Reason {
	return []*Reason{
		reasonRevoked, reasonNewEpoch, reasonChanged, reasonOtherUser, reasonTooMany, reasonMalformed, reasonTooLarge, reasonNotUTF8,
		reasonProtocolError, reasonClosed, reasonLost, reasonSilent, reasonSlow,
	}
}

// ends are why a connection ends: the values of the label reason of
// syncrelay_disconnects_total.
func ends() []*Reason {
	return append([]*Reason{
		reasonInvalidToken, reasonNotApproved, reasonUnknownUser, reasonUnavailable, reasonTokenExpired, reasonRestarting, reasonInternal,
	}, onlyEnds()...)
}

// Reasons lists all reasons in the order of README.md.
func Reasons() []Reason {
	all := append(refusals(), onlyEnds()...)
	list := make([]Reason, len(all))
	for i, r := range all {
		list[i] = *r
	}
	return list
}
