package outbox

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
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

func TestClocksThatDifferAreTold(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Database(t)
	for skew, want := range map[time.Duration]string{
		0: "the server's clock and this machine's differ by ", time.Hour: "behind this machine's", -time.Hour: "ahead of this machine's",
	} {
		checks := Diagnose(t.Context(), Options{URL: databaseURL}, Expectations{Now: func() time.Time { return time.Now().Add(skew) }})
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == "clock" })
		if c := checks[i]; (c.State == CheckOK) != (skew == 0) || !strings.Contains(c.Found, want) || (c.Mend == "") != (skew == 0) {
			t.Errorf("clocks that differ by %s: %+v", skew, c)
		}
	}
}

func TestServerBefore15IsDiagnosed(t *testing.T) {
	t.Parallel()
	checks := Diagnose(t.Context(), Options{URL: oldServer(t)}, Expectations{})
	if c := checks[0]; c.Name != "database" || c.State != CheckFails || c.Found != "the server is PostgreSQL 14.11" || c.Mend != "use PostgreSQL 15 or later" {
		t.Errorf("got %+v", c)
	}
	for _, c := range checks[1:] {
		if c.State != CheckLeftOut {
			t.Errorf("got %+v, want that it is left out", c)
		}
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
