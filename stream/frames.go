package stream

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// The messages of the protocol that are not events, and their form in JSON
// (CONTRACT, section 4). Events come encoded from the relay.

// pong answers a client's ping with the timestamp that it carried.
type pong struct{ timestamp json.RawMessage }

// renewed says that a new token's identity holds from here on.
type renewed struct{ relay.Established }

// expiring says that the client's token ends soon, and in how long.
type expiring struct{ left time.Duration }

// typeTokenExpiring is its type.
const typeTokenExpiring = relay.TypeTokenExpiring

// heartbeat keeps a connection, and what stands between, from falling asleep: a
// ping frame on a WebSocket, a comment in an event stream.
type heartbeat struct{}

type establishedMessage struct {
	Type        string `json:"type"`
	Message     string `json:"message"`
	UserID      int64  `json:"user_id"`
	Role        string `json:"role"`
	CadetID     *int64 `json:"cadet_id,omitempty"`
	LastEventID int64  `json:"last_event_id"`
	Epoch       string `json:"epoch"`
	Renewed     bool   `json:"renewed,omitempty"`
}

type replayCompleteMessage struct {
	Type          string `json:"type"`
	Requested     int64  `json:"requested"`
	Count         int64  `json:"count"`
	LastEventID   int64  `json:"last_event_id"`
	Truncated     bool   `json:"truncated"`
	OldestEventID int64  `json:"oldest_event_id"`
}

type expiringMessage struct {
	Type      string `json:"type"`
	ExpiresIn int64  `json:"expires_in"` // seconds
}

type errorMessage struct {
	Type    string `json:"type"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// control encodes a control message as one JSON object on one line and names
// its type. transport is what connection_established calls the connection.
func control(m relay.Control, transport string, id relay.Identity) (eventType string, text []byte, err error) {
	var message any
	switch m := m.(type) {
	case relay.Established:
		eventType, message = relay.TypeConnectionEstablished, established(m, transport, id)
	case renewed:
		e := established(m.Established, transport, id)
		e.Renewed = true
		eventType, message = relay.TypeConnectionEstablished, e
	case relay.ReplayComplete:
		eventType = relay.TypeReplayComplete
		message = replayCompleteMessage{eventType, m.Requested, m.Count, m.LastEventID, m.Truncated, m.OldestEventID}
	case relay.Failure:
		eventType = relay.TypeError
		message = errorMessage{eventType, m.Code, m.Message}
	case expiring:
		eventType = typeTokenExpiring
		message = expiringMessage{eventType, int64(m.left.Round(time.Second) / time.Second)}
	case pong:
		// The timestamp goes back byte for byte, which json.Marshal would not do.
		text = append(text, `{"type":"pong","timestamp":`...)
		text = append(text, m.timestamp...)
		return relay.TypePong, append(text, '}'), nil
	default:
		return "", nil, fmt.Errorf("a control message of the unknown kind %T", m)
	}
	text, err = json.Marshal(message)
	return eventType, text, err
}

func established(m relay.Established, transport string, id relay.Identity) establishedMessage {
	e := establishedMessage{
		Type: relay.TypeConnectionEstablished, Message: transport + " connection established",
		UserID: id.UserID, Role: id.Role, LastEventID: m.LastEventID, Epoch: m.Epoch,
	}
	if id.HasCadet {
		e.CadetID = &id.CadetID
	}
	return e
}

// Frame types of RFC 6455, section 5.2, with the bit of a last fragment.
const (
	frameText  = 0x81
	frameClose = 0x88
	framePing  = 0x89
	framePong  = 0x8a
	// framePacked is the bit of a frame whose payload is compressed (RFC 7692, section 6).
	framePacked = 0x40
)

// maxFrameHeader is the longest header of an unmasked frame, in bytes.
const maxFrameHeader = 10

// appendFrameHeader appends the header of an unmasked frame with length bytes of
// payload (RFC 6455, section 5.2).
func appendFrameHeader(b []byte, frame byte, length int) []byte {
	switch {
	case length <= 125:
		return append(b, frame, byte(length)) //nolint:gosec // it fits
	case length < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, frame, 126), uint16(length))
	default:
		return binary.BigEndian.AppendUint64(append(b, frame, 127), uint64(length))
	}
}

// maxControlPayload bounds the payload of a control frame (RFC 6455, section
// 5.5), in bytes.
const maxControlPayload = 125

// appendCloseFrame appends a close frame. What is too long of the text is cut.
func appendCloseFrame(b []byte, code int, text string) []byte {
	text = cut(text, maxControlPayload-2)
	b = appendFrameHeader(b, frameClose, 2+len(text))
	b = binary.BigEndian.AppendUint16(b, uint16(code)) //nolint:gosec // a close code
	return append(b, text...)
}

// appendSSE appends a named event of an event stream. With an id the browser
// will resume from there when it reconnects.
func appendSSE(b []byte, id int64, eventType string, text []byte) []byte {
	if id >= 0 {
		b = append(b, "id: "...)
		b = strconv.AppendInt(b, id, 10)
		b = append(b, '\n')
	}
	b = append(b, "event: "...)
	b = append(b, eventType...)
	b = append(b, "\ndata: "...)
	b = append(b, text...)
	return append(b, "\n\n"...)
}

// Codes of the error message that answers a client's frame. The connection
// goes on; see also relay's codes.
const (
	codeMalformed       = "malformed_message"
	codeUnknownType     = "unknown_type"
	codeTooManyRequests = "too_many_requests"
)

// clientFrame is a message of a client's.
type clientFrame struct {
	kind        string
	timestamp   json.RawMessage // ping: any JSON value
	lastEventID json.RawMessage // replay_request
	token       string          // auth
}

// errUnknownType: the message is well formed, and of a type that isn't known.
var errUnknownType = errors.New("unknown type")

// parseClientFrame reads a client's message. An error is fit for the client to
// see; it is errUnknownType or means that the message is malformed.
func parseClientFrame(text []byte) (clientFrame, error) {
	f := clientFrame{timestamp: json.RawMessage("null")}
	var kind, token json.RawMessage
	err := eachMember(text, func(name string, value json.RawMessage) error {
		switch name {
		case "type":
			kind = value
		case "timestamp":
			f.timestamp = value
		case "last_event_id":
			f.lastEventID = value
		case "token":
			token = value
		}
		return nil
	})
	if err != nil {
		return clientFrame{}, err
	}
	if len(kind) == 0 || kind[0] != '"' || json.Unmarshal(kind, &f.kind) != nil {
		return clientFrame{}, fmt.Errorf("type is %s; %s", describe(kind), allowedTypes)
	}
	switch f.kind {
	case "ping", "replay_request":
		return f, nil
	case "auth":
		if len(token) == 0 || token[0] != '"' || json.Unmarshal(token, &f.token) != nil {
			return clientFrame{}, errors.New("token is no text") // and is not repeated, whatever it is
		}
		return f, nil
	default:
		return f, fmt.Errorf("%w %s; %s", errUnknownType, quote(f.kind), allowedTypes)
	}
}

const allowedTypes = `allowed are "ping", "replay_request" and "auth"`

// replayAfter reads a replay_request's last_event_id: a JSON number of decimal
// digits only. A number with a fraction or an exponent, or the text of a number,
// is none, as it comes from a client that has lost count.
func (f *clientFrame) replayAfter() (int64, error) {
	n, ok := wholeNumber(string(f.lastEventID))
	if !ok || n > relay.MaxEventID {
		return 0, fmt.Errorf("last_event_id is %s; %s", describe(f.lastEventID), allowedEventIDs)
	}
	return n, nil
}
