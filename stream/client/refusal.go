package client

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/syncrelay/syncrelay/stream"
)

// RefusalError is an answer that is no stream, or what a relay said at the end of one.
type RefusalError struct {
	// Code is the reason's short name, as the protocol's table has it; empty if it
	// is not known, because the answer is not a relay's.
	Code string
	// Message is the reason's text.
	Message string
	// Status is the HTTP status, if that was the answer, and CloseCode that of a
	// WebSocket.
	Status, CloseCode int
	// RetryAfter is how long the relay asks to wait.
	RetryAfter time.Duration
}

// Error is one line.
func (r *RefusalError) Error() string {
	switch {
	case r.Status != 0 && r.Code == "":
		return fmt.Sprintf("answered with HTTP status %d: %s", r.Status, r.Message)
	case r.Code != "":
		return fmt.Sprintf("%s (%s)", r.Message, r.Code)
	default:
		return fmt.Sprintf("closed with code %d: %s", r.CloseCode, r.Message)
	}
}

// OfToken reports whether another token may be let in.
func (r *RefusalError) OfToken() bool {
	switch r.Code {
	case "no_token", "invalid_token", "token_expired", "session_revoked":
		return true
	}
	return false
}

// Permanent reports whether connecting again as before is no use.
func (r *RefusalError) Permanent() bool {
	switch r.Code {
	case "":
		return r.Status > 0 && r.Status < 500 && r.Status != http.StatusRequestTimeout && r.Status != http.StatusTooManyRequests
	case "identity_changed":
		return false // the same token, and another role: connect again
	case "not_approved", "unknown_user", "origin_forbidden", "bad_request", "other_user":
		return true
	}
	return r.OfToken()
}

// refusedByClose is the refusal that a close frame stands for. A close frame has
// the reason's code and text, but not its name.
func refusedByClose(code int, text string) *RefusalError {
	r := &RefusalError{CloseCode: code, Message: text}
	longest := 0
	for _, known := range stream.Reasons() {
		if known.Code == code && len(known.Text) > longest && (text == known.Text || strings.HasPrefix(text, known.Text+":")) {
			r.Code, longest = known.Label, len(known.Text)
		}
	}
	if r.Message == "" {
		r.Message = "no reason given"
	}
	return r
}

// maxRefusal bounds what is read of an answer that is no stream.
const maxRefusal = 4 << 10

// refusedByStatus is the refusal that an HTTP answer stands for: a relay's own has
// a JSON body, and anything else comes from what is in between.
func refusedByStatus(response *http.Response) *RefusalError {
	r := &RefusalError{Status: response.StatusCode, Message: http.StatusText(response.StatusCode)}
	if to := response.Header.Get("Location"); to != "" {
		r.Message += ", to " + to
	}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		r.RetryAfter = time.Duration(min(seconds, int(time.Hour/time.Second))) * time.Second
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	var body message
	if err == nil && json.Unmarshal(text, &body) == nil && body.Type == typeError && body.Code != "" {
		r.Code, r.Message = body.Code, body.Message
	} else if response.StatusCode == http.StatusOK {
		kind, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
		r.Message = fmt.Sprintf("of type %q, which is no stream of events; is this a relay's address?", kind)
	}
	return r
}

// refusedInStream is the refusal that an error event of an event stream stands for
// if nothing follows it; nil if the stream goes on.
func refusedInStream(data []byte) error {
	m := message{Code: codeInvalidLastEventID}
	_ = json.Unmarshal(data, &m) // what is no JSON is told when it is taken in
	if m.Code == codeInvalidLastEventID {
		return nil
	}
	return &RefusalError{Code: m.Code, Message: m.Message}
}
