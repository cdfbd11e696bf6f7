package relay

import (
	"bytes"
	"encoding/json"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// MaxEventID is the largest event ID: the largest whole number that a
// JavaScript number holds exactly (2^53 - 1).
const MaxEventID = 1<<53 - 1

// Row is a row of the outbox table as a writer inserted it.
//
// Whoever is handed a Row must copy what it keeps: a [Source] reuses the
// memory behind the slices.
type Row struct {
	// ID is the row's own id. It says nothing about commit order.
	ID int64
	// Type is the event_type.
	Type string
	// CadetID is the cadet that the row is about, if HasCadet.
	CadetID  int64
	HasCadet bool
	// UserIDs and Roles narrow or widen the audience; see [Audience].
	UserIDs []int64
	Roles   []string
	// Payload is one JSON value; nil stands for SQL's NULL.
	Payload []byte
	// CreatedAt is the row's created_at. RFC 3339 can write the years 1 to 9999;
	// what is outside of them (infinity is) is sent as their first or last
	// moment.
	CreatedAt time.Time
	// Fault, if not nil, says what of the row can't be read. It is given an ID,
	// so that the order is kept, and is sent to nobody.
	Fault error
}

// Event is a row that has been given an event ID, encoded. It is shared by
// everything that delivers it and never changes.
type Event struct {
	ID    int64
	RowID int64
	Type  string
	// CreatedAt is the row's created_at, the timestamp that clients see.
	CreatedAt time.Time
	// CommittedAt is when the row's transaction committed, by the database
	// server's clock; zero for an event that was read back from the journal.
	CommittedAt time.Time
	// Audience says who may see the event; it is empty for one that is never
	// sent (a reserved type).
	Audience Audience

	groups []Group // Audience's groups
	sse    []byte  // "id: …\ndata: …\n\n"; the JSON stands inside it
	json   []byte
	packed atomic.Pointer[packed]
}

// packed is a form of an event that is made when it is asked for first.
type packed struct {
	once sync.Once
	b    []byte
}

// JSON is the event as one JSON object on one line, as a WebSocket's text frame
// carries it. The caller must not change it.
func (e *Event) JSON() []byte { return e.json }

// SSE is the event as one block of a text/event-stream, with its final blank
// line. The caller must not change it.
func (e *Event) SSE() []byte { return e.sse }

// Packed is what pack makes of the event's JSON: for the first who asks, while
// others who do wait for it, and for as long as the event is kept. Whoever asks
// must bring the same pack, and not change what it made.
func (e *Event) Packed(pack func(json []byte) []byte) []byte {
	p := e.packed.Load()
	if p == nil {
		e.packed.CompareAndSwap(nil, new(packed))
		p = e.packed.Load()
	}
	p.once.Do(func() { p.b = pack(e.json) })
	return p.b
}

// Groups are the groups that the event is for, each once. The caller must not
// change the slice.
func (e *Event) Groups() []Group { return e.groups }

// Size is roughly what the event costs in memory, in bytes.
func (e *Event) Size() int { return len(e.sse) + len(e.Type) + 32*len(e.groups) + 160 }

// Event types that the protocol uses itself. A row that carries one (the table
// refuses most, unless it was adopted) is journaled and never sent.
const (
	TypePong                  = "pong"
	TypeError                 = "error"
	TypeConnectionEstablished = "connection_established"
	TypeReplayComplete        = "replay_complete"
	TypeTokenExpiring         = "token_expiring" //nolint:gosec // no credential
	// TypeSessionRevoked closes the connections of the row's user_ids. It is a
	// message to the relay: no client is sent it.
	TypeSessionRevoked = "session_revoked"
)

// ReservedType reports whether rows of this type must not reach a client
// because the protocol itself speaks with it, or because it is empty.
func ReservedType(eventType string) bool {
	switch eventType {
	case "", TypePong, TypeError, TypeConnectionEstablished, TypeReplayComplete, TypeTokenExpiring:
		return true
	}
	return false
}

// NewEvent encodes a row under its event ID. It copies what it keeps of the row.
func NewEvent(id int64, row *Row, committed time.Time) *Event {
	e := &Event{
		ID: id, RowID: row.ID, Type: row.Type,
		CreatedAt: row.CreatedAt, CommittedAt: committed,
	}
	switch {
	case row.Fault != nil || ReservedType(row.Type):
	case row.Type == TypeSessionRevoked:
		e.Audience.revoked = append([]int64(nil), row.UserIDs...)
	default:
		e.Audience = RowAudience(row)
		e.groups = e.Audience.Groups()
	}
	e.encode(row)
	return e
}

// envelope is about what the fixed parts of an encoded event take.
const envelope = 160

func (e *Event) encode(row *Row) {
	payload := row.Payload
	if payload == nil {
		payload = []byte("null")
	}
	if bytes.IndexByte(payload, '\n') >= 0 || bytes.IndexByte(payload, '\r') >= 0 {
		// Only a column of type json keeps line ends; an SSE block must not.
		var line bytes.Buffer
		if json.Compact(&line, payload) == nil {
			payload = line.Bytes()
		}
	}
	b := make([]byte, 0, len(payload)+len(row.Type)+envelope)
	b = append(b, "id: "...)
	b = strconv.AppendInt(b, e.ID, 10)
	b = append(b, "\ndata: "...)
	start := len(b)
	b = append(b, `{"type":`...)
	b = appendString(b, row.Type)
	b = append(b, `,"event_id":`...)
	b = strconv.AppendInt(b, e.ID, 10)
	if row.HasCadet {
		b = append(b, `,"cadet_id":`...)
		b = strconv.AppendInt(b, row.CadetID, 10)
	}
	b = append(b, `,"data":`...)
	if row.HasCadet && lacksCadetID(payload) {
		b = appendWithCadetID(b, payload, row.CadetID)
	} else {
		b = append(b, payload...)
	}
	b = append(b, `,"timestamp":"`...)
	b = writable(e.CreatedAt).AppendFormat(b, time.RFC3339Nano)
	b = append(b, `"}`...)
	end := len(b)
	b = append(b, "\n\n"...)
	e.sse, e.json = b, b[start:end:end]
}

// The first and the last moment that RFC 3339 can write, in microseconds as
// Postgres counts.
var (
	firstMoment = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	lastMoment  = time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
)

func writable(t time.Time) time.Time {
	t = t.UTC()
	switch {
	case t.Before(firstMoment):
		return firstMoment
	case t.After(lastMoment):
		return lastMoment
	}
	return t
}

// appendString appends s as a JSON string. Names of event types hardly ever
// need escaping, so that case is tried first.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			quoted, err := json.Marshal(s)
			if err != nil { // a string always has a JSON form
				quoted = []byte(`""`)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

var cadetKey = []byte(`"cadet_id"`)

// lacksCadetID reports whether payload is a JSON object without a member
// cadet_id of its own.
func lacksCadetID(payload []byte) bool {
	trimmed := bytes.TrimLeft(payload, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return false
	}
	if !bytes.Contains(trimmed, cadetKey) {
		// A key may be written with escapes only in a column of type json;
		// the worst that such a key does is to stand there twice.
		return true
	}
	return !hasTopLevelKey(trimmed, "cadet_id")
}

func hasTopLevelKey(object []byte, key string) bool {
	dec := json.NewDecoder(bytes.NewReader(object))
	if _, err := dec.Token(); err != nil {
		return false
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return false
		}
		if name == key {
			return true
		}
		var skip json.RawMessage
		if dec.Decode(&skip) != nil {
			return false
		}
	}
	return false
}

// appendWithCadetID appends the object with a member cadet_id before its others.
func appendWithCadetID(b, object []byte, cadet int64) []byte {
	open := bytes.IndexByte(object, '{')
	rest := bytes.TrimLeft(object[open+1:], " \t\r\n")
	b = append(b, `{"cadet_id": `...)
	b = strconv.AppendInt(b, cadet, 10)
	if len(rest) > 0 && rest[0] != '}' {
		b = append(b, `, `...)
	}
	return append(b, rest...)
}
