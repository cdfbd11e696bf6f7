package outbox

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/syncrelay/syncrelay/relay"
)

// Types of logical replication messages that a publication of inserts brings
// (Postgres manual, "Logical Replication Message Formats").
const (
	messageBegin    = 'B'
	messageCommit   = 'C'
	messageInsert   = 'I'
	messageRelation = 'R'
)

// field is a column of sync_events that means something to the relay.
type field uint8

const (
	fieldNone field = iota
	fieldID
	fieldType
	fieldCadetID
	fieldUserIDs
	fieldRoles
	fieldPayload
	fieldCreatedAt
)

var fieldNames = map[string]field{
	"id": fieldID, "event_type": fieldType, "cadet_id": fieldCadetID, "user_ids": fieldUserIDs,
	"roles": fieldRoles, "payload": fieldPayload, "created_at": fieldCreatedAt,
}

// relation is what the stream told of a table: which of its columns is which
// field. A table of somebody else's that the publication has too is ignored.
type relation struct {
	name    string
	ignored bool
	columns []relationColumn
}

type relationColumn struct {
	field field
	oid   uint32
}

// decoder decodes the messages of pgoutput, protocol version 1. A row that it
// returns is valid until the next call.
type decoder struct {
	table     string // schema and name of the table whose rows are events
	relations map[uint32]*relation
	types     *pgtype.Map
	row       relay.Row
	users     []int64
	roles     []string
	lastType  string // rows mostly repeat their event_type: one string serves
}

func newDecoder(table pgx.Identifier) *decoder {
	return &decoder{table: strings.Join(table, "."), relations: make(map[uint32]*relation), types: pgtype.NewMap()}
}

// errShort: a message ended before its last field.
var errShort = errors.New("the message is too short")

// reader reads the fields of a message. After the first failure it returns zero
// values and err is set.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.err = errShort
		return nil
	}
	part := r.b[:n:n]
	r.b = r.b[n:]
	return part
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) text() string {
	for i, c := range r.b {
		if c == 0 {
			s := string(r.b[:i])
			r.b = r.b[i+1:]
			return s
		}
	}
	r.err = errShort
	return ""
}

// begin decodes a Begin message, without its type byte.
func (d *decoder) begin(b []byte) (relay.Transaction, error) {
	r := reader{b: b}
	tx := relay.Transaction{Commit: relay.LSN(r.uint64()), CommittedAt: serverTime(r.uint64())}
	r.uint32() // xid
	return tx, r.err
}

// commit decodes a Commit message and returns the position after the record.
func (d *decoder) commit(b []byte) (relay.LSN, error) {
	r := reader{b: b}
	r.byte()   // flags, unused
	r.uint64() // the position of the record, known from Begin
	end := relay.LSN(r.uint64())
	r.uint64() // the time of the commit, known from Begin
	return end, r.err
}

// relation decodes a Relation message: the server sends it before the first row
// of a table, and again when the table has changed.
func (d *decoder) relation(b []byte) error {
	r := reader{b: b}
	id := r.uint32()
	rel := &relation{name: r.text() + "." + r.text()}
	r.byte() // replica identity
	n := int(r.uint16())
	var found [fieldCreatedAt + 1]bool
	for range n {
		r.byte() // flags
		name := r.text()
		oid := r.uint32()
		r.uint32() // type modifier
		f := fieldNames[name]
		found[f] = true
		rel.columns = append(rel.columns, relationColumn{f, oid})
		if r.err != nil {
			break
		}
	}
	if r.err != nil {
		return r.err
	}
	rel.ignored = rel.name != d.table
	if !rel.ignored && (!found[fieldID] || !found[fieldType]) {
		return fmt.Errorf("table %s has no column id or event_type, so its rows are no events", rel.name)
	}
	d.relations[id] = rel
	return nil
}

// insert decodes an Insert message, and returns nil for a row of another table.
// committed stands in for a created_at that is NULL, which an adopted table may
// hold.
func (d *decoder) insert(b []byte, committed time.Time) (*relay.Row, error) {
	r := reader{b: b}
	id := r.uint32()
	rel := d.relations[id]
	if rel == nil && r.err == nil {
		return nil, fmt.Errorf("a row of table %d came before its description", id)
	}
	if rel != nil && rel.ignored {
		return nil, r.err
	}
	if kind := r.byte(); kind != 'N' && r.err == nil {
		return nil, fmt.Errorf("a new row begins with %q instead of 'N'", kind)
	}
	n := int(r.uint16())
	if r.err == nil && n != len(rel.columns) {
		return nil, fmt.Errorf("a row of %s has %d columns, its description %d", rel.name, n, len(rel.columns))
	}
	d.row = relay.Row{CreatedAt: committed}
	for i := range n {
		kind := r.byte()
		if kind == 'n' || kind == 'u' || r.err != nil {
			continue // NULL; or TOASTed and not sent, which an insert never is
		}
		value := r.take(int(r.uint32()))
		col := rel.columns[i]
		if r.err != nil || col.field == fieldNone {
			continue
		}
		format := int16(pgtype.TextFormatCode)
		if kind == 'b' {
			format = pgtype.BinaryFormatCode
		}
		switch err := d.set(col, format, value); {
		case err != nil && col.field == fieldID:
			return nil, fmt.Errorf("the id of a row of %s: %w", rel.name, err)
		case err != nil:
			// One row that nobody can read must not keep all others back.
			d.row.Fault = err
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	return &d.row, nil
}

// set decodes one column. The types of our own table in binary form come first;
// what an adopted table may have instead is left to pgx.
func (d *decoder) set(col relationColumn, format int16, value []byte) (err error) {
	binaryForm := format == pgtype.BinaryFormatCode
	switch col.field {
	case fieldID:
		d.row.ID, err = d.integer(col.oid, format, value)
	case fieldCadetID:
		d.row.CadetID, err = d.integer(col.oid, format, value)
		d.row.HasCadet = err == nil
	case fieldType:
		if col.oid == pgtype.BPCharOID { // char(n): its padding means nothing, as in a cast to text
			value = bytes.TrimRight(value, " ")
		}
		if string(value) != d.lastType { // no allocation: the compiler compares in place
			d.lastType = string(value)
		}
		d.row.Type = d.lastType
	case fieldPayload:
		d.row.Payload, err = payload(col.oid, binaryForm, value)
	case fieldCreatedAt:
		if binaryForm && len(value) == 8 && (col.oid == pgtype.TimestamptzOID || col.oid == pgtype.TimestampOID) {
			d.row.CreatedAt = serverTime(binary.BigEndian.Uint64(value))
			return nil
		}
		var t time.Time
		err = d.types.Scan(col.oid, format, value, &t)
		d.row.CreatedAt = t
	case fieldUserIDs:
		d.users, err = scanArray(d.types, col.oid, format, value, d.users)
		d.row.UserIDs = d.users
	case fieldRoles:
		d.roles, err = scanArray(d.types, col.oid, format, value, d.roles)
		d.row.Roles = d.roles
	case fieldNone:
	}
	return err
}

func (d *decoder) integer(oid uint32, format int16, value []byte) (int64, error) {
	if format == pgtype.BinaryFormatCode {
		switch len(value) {
		case 8:
			return int64(binary.BigEndian.Uint64(value)), nil //nolint:gosec // the server's int8 is signed
		case 4:
			return int64(int32(binary.BigEndian.Uint32(value))), nil //nolint:gosec // the server's int4 is signed
		case 2:
			return int64(int16(binary.BigEndian.Uint16(value))), nil //nolint:gosec // the server's int2 is signed
		}
	}
	var n int64
	err := d.types.Scan(oid, format, value, &n)
	return n, err
}

// scanArray decodes an array and leaves its NULLs out: they name nobody.
func scanArray[T any](types *pgtype.Map, oid uint32, format int16, value []byte, into []T) ([]T, error) {
	var elements pgtype.FlatArray[*T] // Postgres does not fix an array's dimensions
	if err := types.Scan(oid, format, value, &elements); err != nil {
		return nil, err
	}
	return present(elements, into[:0]), nil
}

// present appends an array's elements that are not NULL.
func present[T any](elements pgtype.FlatArray[*T], into []T) []T {
	for _, e := range elements {
		if e != nil {
			into = append(into, *e)
		}
	}
	return into
}

// jsonbVersion is the first byte of a jsonb value in binary form.
const jsonbVersion = 1

// payload returns a column's value as JSON.
func payload(oid uint32, binaryForm bool, value []byte) ([]byte, error) {
	switch oid {
	case pgtype.JSONBOID:
		if !binaryForm {
			return value, nil
		}
		if len(value) < 1 || value[0] != jsonbVersion {
			return nil, errors.New("the payload is not of version 1 of jsonb's binary form")
		}
		return value[1:], nil
	case pgtype.JSONOID:
		return value, nil
	default:
		// A table that keeps JSON as text: what is no JSON becomes a string.
		if json.Valid(value) {
			return value, nil
		}
		quoted, err := json.Marshal(strings.ToValidUTF8(string(value), "\uFFFD"))
		return quoted, err
	}
}

// serverEpoch is what the server counts microseconds from.
var serverEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// serverTime reads a timestamp as the server sends it: microseconds since 2000.
// Its infinities become the ends of what RFC 3339 can write.
func serverTime(us uint64) time.Time {
	switch n := int64(us); n { //nolint:gosec // the server's count is signed
	case math.MaxInt64:
		return time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.UTC)
	case math.MinInt64:
		return time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	default:
		// Not by way of microseconds since 1970: the server's last years, 294247 and
		// later, are too many of them for 64 bits.
		const second = int64(time.Second / time.Microsecond)
		return time.Unix(serverEpoch.Unix()+n/second, n%second*int64(time.Microsecond)).UTC()
	}
}
