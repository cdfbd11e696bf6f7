package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/syncrelay/syncrelay/relay"
)

// Row is what a program writes into sync_events. Who receives it follows from
// CadetID, UserIDs and Roles: the cadet and the staff, those users, those roles,
// or the union; with none of them the staff only.
type Row struct {
	// Type is the event_type, such as grade_update. It must not be one that the
	// protocol uses itself (relay.ReservedType).
	Type string
	// CadetID is the cadet that the row is about; nil for none.
	CadetID *int64
	UserIDs []int64
	// Roles; the role * is everyone who is authenticated.
	Roles []string
	// Payload is marshalled to JSON; json.RawMessage stands for itself, and nil
	// for an empty object.
	Payload any
}

// Querier is what [Insert] needs of pgx: a transaction, most usefully, but a
// connection or a pool has it too.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const insertRow = `
INSERT INTO sync_events (event_type, cadet_id, user_ids, roles, payload)
VALUES ($1, $2, $3, $4, $5::jsonb) RETURNING id`

// Insert writes a row in the caller's transaction and returns its id. The event
// is sent when, and only if, the transaction commits. It needs the rights of
// syncrelay_writer and nothing else.
//
// The id says nothing about the order of events: that is the order of commits.
func Insert(ctx context.Context, tx Querier, row Row) (id int64, err error) {
	args, err := row.arguments()
	if err != nil {
		return 0, err
	}
	if err := tx.QueryRow(ctx, insertRow, args...).Scan(&id); err != nil {
		return 0, fmt.Errorf("insert a row of type %q into sync_events: %w", row.Type, err)
	}
	return id, nil
}

// SQLQuerier is what [InsertSQL] needs of database/sql: a *sql.Tx, most
// usefully, but a *sql.Conn or *sql.DB has it too.
type SQLQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// InsertSQL is [Insert] for programs that use database/sql with pgx's driver.
func InsertSQL(ctx context.Context, tx SQLQuerier, row Row) (id int64, err error) {
	args, err := row.arguments()
	if err != nil {
		return 0, err
	}
	if err := tx.QueryRowContext(ctx, insertRow, args...).Scan(&id); err != nil {
		return 0, fmt.Errorf("insert a row of type %q into sync_events: %w", row.Type, err)
	}
	return id, nil
}

// ErrReservedType: the event type is empty, or one that the protocol uses itself.
var ErrReservedType = errors.New("the event type is reserved")

// arguments checks the row and makes the statement's arguments.
func (r Row) arguments() ([]any, error) {
	if relay.ReservedType(r.Type) {
		return nil, fmt.Errorf("%w: found %q; allowed is any text but the empty one, %s, %s, %s, %s and %s", ErrReservedType, r.Type,
			relay.TypePong, relay.TypeError, relay.TypeConnectionEstablished, relay.TypeReplayComplete, relay.TypeTokenExpiring)
	}
	payload := []byte(`{}`)
	if r.Payload != nil {
		var err error
		if payload, err = json.Marshal(r.Payload); err != nil {
			return nil, fmt.Errorf("the payload of a row of type %q has no JSON form: %w", r.Type, err)
		}
	}
	return []any{r.Type, r.CadetID, r.UserIDs, r.Roles, string(payload)}, nil
}
