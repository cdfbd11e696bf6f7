package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// follower is what outlives a connection.
type follower struct {
	o         Options
	each      func(Event) error
	base      *url.URL
	transport *http.Transport
	// cursor is the event up to which everything was handed out; below 0 while it
	// is not known, because the relay has not said yet where its newest one is.
	cursor int64
	token  string // the one in use
	// established: the present connection has been, or the last one was.
	established bool
	// excused: a bad token was forgiven, because there was another.
	excused bool
	head    int64 // the newest event, as the present connection was told
}

// connect connects once, and follows until the connection ends.
func (f *follower) connect(ctx context.Context) error {
	token, err := f.o.Token(ctx)
	switch {
	case err != nil && f.token == "":
		return &stoppedError{fmt.Errorf("get a token: %w", err)}
	case err != nil: // it may be that its file is being written
		return fmt.Errorf("get a token: %w", err)
	}
	f.token = token
	if f.o.SSE {
		return f.followEvents(ctx)
	}
	return f.followWebSocket(ctx)
}

// address is that of a transport, with the place to begin at.
func (f *follower) address(path string) *url.URL {
	u := *f.base
	u.Path += path
	if f.cursor >= 0 {
		u.RawQuery = "last_event_id=" + strconv.FormatInt(f.cursor, 10)
	}
	return &u
}

// message is any message of the relay's.
type message struct {
	Type        string `json:"type"`
	EventID     int64  `json:"event_id"`
	CadetID     *int64 `json:"cadet_id"`
	UserID      int64  `json:"user_id"`
	Role        string `json:"role"`
	LastEventID int64  `json:"last_event_id"`
	Renewed     bool   `json:"renewed"`
	Count       int64  `json:"count"`
	Truncated   bool   `json:"truncated"`
	Code        string `json:"code"`
	Message     string `json:"message"`
}

// Types of control messages.
const (
	typeEstablished    = "connection_established"
	typeReplayComplete = "replay_complete"
	typeError          = "error"
	typeExpiring       = "token_expiring"
)

// codeInvalidLastEventID is that of an error that answers the place to begin at.
const codeInvalidLastEventID = "invalid_last_event_id"

// take takes in one message. expiring is called when the relay says that the token
// ends soon.
func (f *follower) take(text []byte, expiring func()) error {
	var m message
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("the relay sent what is no message of its protocol: %w", err)
	}
	if m.EventID > 0 { // also one whose type is a word that the protocol came to use later
		if err := f.each(Event{ID: m.EventID, Type: m.Type, CadetID: m.CadetID, JSON: text}); err != nil {
			return &stoppedError{err}
		}
		f.cursor = m.EventID
		return nil
	}
	n := Notice{LastEventID: m.LastEventID, UserID: m.UserID, Role: m.Role, CadetID: m.CadetID}
	switch m.Type {
	case typeEstablished:
		n.Kind = Connected
		if m.Renewed {
			n.Kind = Renewed
		}
		f.established, f.head = true, m.LastEventID
		if f.cursor < 0 {
			f.cursor = m.LastEventID
		}
	case typeReplayComplete:
		n.Kind, n.Count, n.Truncated = CaughtUp, m.Count, m.Truncated
		f.cursor = m.LastEventID
	case typeExpiring:
		expiring()
		return nil
	case typeError:
		n.Err = &RefusalError{Code: m.Code, Message: m.Message}
		n.Kind, n.LastEventID = Failed, f.cursor
		if m.Code == codeInvalidLastEventID {
			// Nothing was sent yet, and what is comes after the newest event.
			f.cursor = f.head
			n.Kind, n.LastEventID = Reset, f.head
		}
	default:
		return nil // one that came with a later relay
	}
	f.o.Notice(n)
	return nil
}
