package outbox

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// encoded is a row as the server may send it: the form of each column is chosen by
// a bit.
type encoded struct {
	id, cadet, micros        int64
	eventType, payload       string
	users                    []*int64
	roles                    []*string
	numbersAsText, smallID   bool
	arraysAsText, noUsers    bool
	noCadet, noCreated       bool
	payloadAsText, plainText bool
}

// columns writes the row down. A column that nobody knows stands between the others.
func (e encoded) columns(t *testing.T) []column {
	t.Helper()
	number := func(name string, n int64, null, small bool) column {
		switch {
		case null:
			return column{name, pgtype.Int8OID, 'n', nil}
		case e.numbersAsText:
			return column{name, pgtype.Int8OID, 't', strconv.AppendInt(nil, n, 10)}
		case small:
			return column{name, pgtype.Int4OID, 'b', be(uint64(uint32(n)), 4)}
		default:
			return column{name, pgtype.Int8OID, 'b', be(uint64(n), 8)}
		}
	}
	array := func(name string, oid uint32, value any, null bool) column {
		if null {
			return column{name, oid, 'n', nil}
		}
		kind, format := byte('b'), int16(pgtype.BinaryFormatCode)
		if e.arraysAsText {
			kind, format = 't', pgtype.TextFormatCode
		}
		b, err := pgtype.NewMap().Encode(oid, format, value, nil)
		if err != nil {
			t.Fatal(err)
		}
		return column{name, oid, kind, b}
	}
	payload := column{"payload", pgtype.JSONBOID, 'b', append([]byte{1}, e.payload...)}
	if e.payloadAsText {
		payload.kind, payload.value = 't', []byte(e.payload)
	}
	if e.plainText {
		payload = column{"payload", pgtype.TextOID, 'b', []byte(e.payload)}
	}
	created := column{"created_at", pgtype.TimestamptzOID, 'b', be(uint64(e.micros), 8)}
	if e.noCreated {
		created.kind, created.value = 'n', nil
	}
	return []column{
		array("roles", pgtype.TextArrayOID, pgtype.FlatArray[*string](e.roles), false),
		number("id", e.id, false, e.smallID),
		{"event_type", pgtype.TextOID, 'b', []byte(e.eventType)},
		{"processed", pgtype.TextOID, 't', []byte(e.eventType)},
		payload,
		number("cadet_id", e.cadet, e.noCadet, false),
		created,
		array("user_ids", pgtype.Int8ArrayOID, pgtype.FlatArray[*int64](e.users), e.noUsers),
	}
}

// created is when the row says that it was made, reckoned by the calendar.
func (e encoded) created(committed time.Time) time.Time {
	switch {
	case e.noCreated:
		return committed
	case e.micros == math.MaxInt64:
		return time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	case e.micros == math.MinInt64:
		return time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	const day = 24 * 60 * 60 * 1_000_000
	return time.Date(2000, 1, 1+int(e.micros/day), 0, 0, 0, int(e.micros%day)*1000, time.UTC)
}

// What the server encodes comes back: the oracle writes a row in one of the forms
// in which the server may send it, and the decoder must read that row.
func FuzzDecodedIsWhatWasEncoded(f *testing.F) {
	f.Add(int64(1), int64(17), int64(1_000_000), "grade_update", `{"merits": 3}`, []byte("12345678\x00\x00\x00\x00\x00\x00\x00\x05"), "*,a b", uint8(0))
	f.Add(int64(-1), int64(0), int64(math.MaxInt64), "", `not JSON`, []byte(nil), "", uint8(0xdf))
	f.Add(int64(math.MinInt64), int64(math.MaxInt64), int64(math.MinInt64), "pong", "\xff\"\\", []byte("\x80\x00\x00\x00\x00\x00\x00\x00"), `"{},NULL,\`, uint8(0x55))
	f.Add(int64(-2), int64(1)<<32, int64(-1), "é", `"a"`, []byte("1"), ",,", uint8(0xaa))
	f.Fuzz(func(t *testing.T, id, cadet, micros int64, eventType, payload string, userBytes []byte, roles string, form uint8) {
		bit := func(n int) bool { return form>>n&1 == 1 }
		e := encoded{
			id: id, cadet: cadet, micros: micros, eventType: eventType, payload: payload,
			numbersAsText: bit(0), smallID: bit(1), arraysAsText: bit(2), noUsers: bit(3),
			noCadet: bit(4), noCreated: bit(5), payloadAsText: bit(6), plainText: bit(7),
		}
		if e.smallID && !e.numbersAsText {
			e.id = int64(int32(id))
		}
		e.users = []*int64{}
		var users []int64 // without the NULLs
		for chunk := range slices.Chunk(userBytes, 8) {
			if len(chunk) < 8 {
				e.users = append(e.users, nil)
				continue
			}
			n := int64(binary.LittleEndian.Uint64(chunk))
			e.users, users = append(e.users, &n), append(users, n)
		}
		if e.noUsers {
			users = nil
		}
		names := strings.Split(strings.ToValidUTF8(roles, "?"), ",") // as all text that the server sends
		for i := range names {
			e.roles = append(e.roles, &names[i])
		}
		committed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		d := newDecoder(pgx.Identifier{"public", "sync_events"})
		columns := e.columns(t)
		if err := d.relation(relationMessage(columns)); err != nil {
			t.Fatal(err)
		}
		row, err := d.insert(insertMessage(columns), committed)
		if err != nil || row.Fault != nil {
			t.Fatalf("%v, %v", err, row)
		}
		if row.ID != e.id || row.Type != eventType || row.HasCadet == e.noCadet || row.HasCadet && row.CadetID != cadet {
			t.Errorf("encoded was %+v, decoded is %+v", e, row)
		}
		if !slices.Equal(row.UserIDs, users) || !slices.Equal(row.Roles, names) {
			t.Errorf("encoded were users %v and roles %q, decoded are %v and %q", users, names, row.UserIDs, row.Roles)
		}
		if want := e.created(committed); !row.CreatedAt.Equal(want) {
			t.Errorf("encoded was the time %s, decoded is %s", want, row.CreatedAt)
		}
		if !e.plainText || json.Valid([]byte(payload)) {
			if string(row.Payload) != payload {
				t.Errorf("encoded was the payload %q, decoded is %q", payload, row.Payload)
			}
			return
		}
		var text string
		if err := json.Unmarshal(row.Payload, &text); err != nil || text != strings.ToValidUTF8(payload, "\uFFFD") {
			t.Errorf("encoded was the text %q, decoded is %q (%v)", payload, row.Payload, err)
		}
	})
}
