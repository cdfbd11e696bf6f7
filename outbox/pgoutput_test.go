package outbox

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// column of a message that the tests build.
type column struct {
	name  string
	oid   uint32
	kind  byte // 'n', 'b' or 't'
	value []byte
}

func be(n uint64, size int) []byte {
	return binary.BigEndian.AppendUint64(nil, n)[8-size:]
}

func relationMessage(columns []column) []byte {
	b := append(be(7, 4), "public\x00sync_events\x00d"...)
	b = append(b, be(uint64(len(columns)), 2)...)
	for _, c := range columns {
		b = append(append(append(b, 0), c.name...), 0)
		b = append(append(b, be(uint64(c.oid), 4)...), 0xff, 0xff, 0xff, 0xff)
	}
	return b
}

func insertMessage(columns []column) []byte {
	b := append(append(be(7, 4), 'N'), be(uint64(len(columns)), 2)...)
	for _, c := range columns {
		b = append(b, c.kind)
		if c.kind != 'n' {
			b = append(append(b, be(uint64(len(c.value)), 4)...), c.value...)
		}
	}
	return b
}

func own() []column {
	return []column{
		{"id", pgtype.Int8OID, 'b', be(42, 8)},
		{"event_type", pgtype.TextOID, 'b', []byte("grade_update")},
		{"cadet_id", pgtype.Int8OID, 'b', be(17, 8)},
		{"user_ids", pgtype.Int8ArrayOID, 't', []byte("{5,NULL,6}")},
		{"roles", pgtype.TextArrayOID, 't', []byte(`{"*","a b"}`)},
		{"payload", pgtype.JSONBOID, 'b', []byte("\x01{\"merits\": 3}")},
		{"created_at", pgtype.TimestamptzOID, 'b', be(1_000_000, 8)},
		{"processed", pgtype.BoolOID, 'b', []byte{1}},
	}
}

func TestRowsOfOurOwnTableAndOfAdoptedOnesAreDecoded(t *testing.T) {
	t.Parallel()
	committed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	adopted := func(change func(c []column)) []column {
		c := own()
		change(c)
		return c
	}
	for name, c := range map[string]struct {
		columns []column
		payload string
		created time.Time
	}{
		"our own": {own(), `{"merits": 3}`, time.Date(2000, 1, 1, 0, 0, 1, 0, time.UTC)},
		"integers and text": {adopted(func(c []column) {
			c[0] = column{"id", pgtype.Int4OID, 'b', be(42, 4)}
			c[1].oid = pgtype.VarcharOID
			c[2] = column{"cadet_id", pgtype.Int2OID, 'b', be(17, 2)}
			c[5] = column{"payload", pgtype.TextOID, 'b', []byte(`not JSON`)}
			c[6] = column{"created_at", pgtype.TimestamptzOID, 'n', nil}
		}), `"not JSON"`, committed},
		"all as text": {adopted(func(c []column) {
			c[0] = column{"id", pgtype.Int8OID, 't', []byte("42")}
			c[2] = column{"cadet_id", pgtype.Int8OID, 't', []byte("17")}
			c[5] = column{"payload", pgtype.JSONOID, 't', []byte("[1]")}
			c[6] = column{"created_at", pgtype.TimestamptzOID, 't', []byte("2026-01-02 03:04:05+00")}
		}), `[1]`, committed},
		"infinity": {adopted(func(c []column) { c[6].value = be(math.MaxInt64, 8) }), `{"merits": 3}`, time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)},
	} {
		d := newDecoder(pgx.Identifier{"public", "sync_events"})
		if err := d.relation(relationMessage(c.columns)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		row, err := d.insert(insertMessage(c.columns), committed)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if row.ID != 42 || row.Type != "grade_update" || row.CadetID != 17 || !row.HasCadet || len(row.UserIDs) != 2 || len(row.Roles) != 2 ||
			string(row.Payload) != c.payload || !row.CreatedAt.Equal(c.created) {
			t.Errorf("%s: got %+v with payload %s", name, row, row.Payload)
		}
	}
}

func TestBrokenMessagesAreErrors(t *testing.T) {
	t.Parallel()
	columns := own()
	d := newDecoder(pgx.Identifier{"public", "sync_events"})
	if _, err := d.insert(insertMessage(columns), time.Time{}); err == nil {
		t.Error("a row without a description was taken")
	}
	for _, missing := range []int{0, 1} {
		if err := d.relation(relationMessage(append(append([]column{}, columns[:missing]...), columns[missing+1:]...))); err == nil {
			t.Errorf("a table without %s was taken", columns[missing].name)
		}
	}
	if err := d.relation(relationMessage(columns)); err != nil {
		t.Fatal(err)
	}
	whole := insertMessage(columns)
	for n := range whole {
		if _, err := d.insert(whole[:n], time.Time{}); err == nil {
			t.Errorf("a row cut after %d of %d bytes was taken", n, len(whole))
		}
	}
	if _, err := d.insert(insertMessage(columns[:3]), time.Time{}); err == nil {
		t.Error("a row of fewer columns than described was taken")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(relationMessage(own()), insertMessage(own()))
	f.Add([]byte{}, []byte{0, 0, 0, 7, 'N', 0xff, 0xff})
	f.Fuzz(func(_ *testing.T, relation, insert []byte) {
		d := newDecoder(pgx.Identifier{"public", "sync_events"})
		_ = d.relation(relationMessage(own()))
		_ = d.relation(relation)
		_, _ = d.insert(insert, time.Time{})
		_, _ = d.begin(insert)
		_, _ = d.commit(insert)
	})
}

func BenchmarkDecode(b *testing.B) {
	columns := own()
	columns[3], columns[4] = column{"user_ids", pgtype.Int8ArrayOID, 'n', nil}, column{"roles", pgtype.TextArrayOID, 'n', nil}
	d := newDecoder(pgx.Identifier{"public", "sync_events"})
	if err := d.relation(relationMessage(columns)); err != nil {
		b.Fatal(err)
	}
	message := insertMessage(columns)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.insert(message, time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeRow is what decoding a row of our own table costs: of a cadet,
// and one for users and roles. The usual one must not allocate.
func BenchmarkDecodeRow(b *testing.B) {
	usual := own()
	usual[3].kind, usual[4].kind = 'n', 'n'
	for name, columns := range map[string][]column{"cadet": usual, "users": own()} {
		b.Run(name, func(b *testing.B) {
			d := newDecoder(pgx.Identifier{"public", "sync_events"})
			if err := d.relation(relationMessage(columns)); err != nil {
				b.Fatal(err)
			}
			message := insertMessage(columns)
			now := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.insert(message, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
