package outbox

import (
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/syncrelay/syncrelay/relay"
)

// oldServer plays a server of version 14, which no supported system has: it
// answers every query with its version.
func oldServer(t *testing.T) (databaseURL string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go playOldServer(conn)
		}
	}()
	return "postgres://relay:hunter2@" + l.Addr().String() + "/grades?sslmode=disable"
}

func playOldServer(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(ready)
	for b.Flush() == nil {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		switch msg.(type) {
		case *pgproto3.Parse:
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Describe:
			b.Send(&pgproto3.ParameterDescription{})
			b.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{
				{Name: []byte("number"), DataTypeOID: pgtype.Int4OID}, {Name: []byte("name"), DataTypeOID: pgtype.TextOID},
			}})
		case *pgproto3.Bind:
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			b.Send(&pgproto3.DataRow{Values: [][]byte{be(140011, 4), []byte("14.11")}})
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		case *pgproto3.Sync:
			b.Send(ready)
		}
	}
}

func TestServerBefore15IsRefused(t *testing.T) {
	t.Parallel()
	_, err := connect(t.Context(), oldServer(t), nil)
	if err == nil || err.Error() != "the server is PostgreSQL 14.11; to mend it: use PostgreSQL 15 or later" || !relay.IsPermanent(err) {
		t.Errorf("got %v", err)
	}
}

func TestDatabaseThatIsNotThereIsNamedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close() // nobody listens there now
	_, err = connect(t.Context(), "postgres://relay:hunter2@"+address+"/grades", nil)
	if err == nil || !strings.Contains(err.Error(), "the database at "+address+" can't be reached") || strings.Contains(err.Error(), "\n") || relay.IsPermanent(err) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"mysql://u:hunter2@db/x", "postgres://u:hunter2@db:port/x", "::"} {
		if _, err := connect(t.Context(), bad, nil); err == nil || strings.Contains(err.Error(), "hunter2") || !relay.IsPermanent(err) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}
