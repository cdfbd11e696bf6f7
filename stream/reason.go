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
	reasonOrigin       = &Reason{"origin_forbidden", 0, http.StatusForbidden, "this origin is not allowed"}
	reasonBadRequest   = &Reason{"bad_request", 0, http.StatusBadRequest, "this request can't be answered"}
	reasonUnavailable  = &Reason{"unavailable", 1013, http.StatusServiceUnavailable, "the relay can't serve now: try again later"}
)

// Why one was not let in, or its connection ended:
var (
	reasonTokenExpired = &Reason{"token_expired", 4001, http.StatusUnauthorized, "token expired"}
	reasonRestarting   = &Reason{"restarting", 1012, http.StatusServiceUnavailable, "the relay is restarting: reconnect"}
	reasonInternal     = &Reason{"internal_error", 4000, http.StatusInternalServerError, "internal error"}
)

// Why a connection ended:
var (
	reasonRevoked       = &Reason{"session_revoked", 4001, 0, "session revoked"}
	reasonOtherUser     = &Reason{"other_user", 4001, 0, "the new token is another user's"}
	reasonTooMany       = &Reason{"too_many_messages", 1008, 0, "too many messages"}
	reasonMalformed     = &Reason{"malformed_messages", 1008, 0, "malformed messages"}
	reasonTooLarge      = &Reason{"message_too_large", 1009, 0, "a message is at most 4096 bytes long"}
	reasonNotUTF8       = &Reason{"invalid_utf8", 1007, 0, "a text message must be UTF-8"}
	reasonProtocolError = &Reason{"protocol_error", 1002, 0, "not as RFC 6455 wants it"}
	reasonClosed        = &Reason{"closed", 0, 0, "the client closed the connection"}
	reasonLost          = &Reason{"lost", 0, 0, "the connection broke"}
	reasonSilent        = &Reason{"silent", 0, 0, "the client did not answer a ping"}
	reasonSlow          = &Reason{"slow", 0, 0, "the client did not read for the length of the write deadline"}
)

// accepted is the outcome of a connect that is no refusal.
const accepted = "accepted"

// Reasons lists all reasons in the order of README.md.
func Reasons() []Reason {
	all := []*Reason{
		reasonNoToken, reasonInvalidToken, reasonNotApproved, reasonOrigin, reasonBadRequest, reasonUnavailable,
		reasonTokenExpired, reasonRestarting, reasonInternal,
		reasonRevoked, reasonOtherUser, reasonTooMany, reasonMalformed, reasonTooLarge, reasonNotUTF8,
		reasonProtocolError, reasonClosed, reasonLost, reasonSilent, reasonSlow,
	}
	list := make([]Reason, len(all))
	for i, r := range all {
		list[i] = *r
	}
	return list
}
