package pgtest

import (
	"context"
	"regexp"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Judge is an independent witness: a slot of its own, with the server's plugin
// test_decoding, tells which rows of sync_events have committed, in which order.
type Judge struct {
	url, slot string
}

// NewJudge makes a judge of what commits from now on.
func NewJudge(t testing.TB, databaseURL string) *Judge {
	t.Helper()
	j := &Judge{url: databaseURL}
	conn := j.connect(t)
	defer func() { _ = conn.Close(context.Background()) }()
	j.slot = conn.Config().Database + "_judge"
	if _, err := conn.Exec(t.Context(), `SELECT pg_create_logical_replication_slot($1, 'test_decoding')`, j.slot); err != nil {
		t.Fatalf("make the judge's slot: %v", err)
	}
	return j // the slot is dropped with the database
}

func (j *Judge) connect(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), j.url)
	if err != nil {
		t.Fatalf("connect the judge: %v", err)
	}
	return conn
}

// insertion is how test_decoding writes an insert into the table or a partition.
var insertion = regexp.MustCompile(`^table [a-z]+\.sync_events[^:]*: INSERT: id\[[a-z]+\]:(\d+) `)

// Committed returns the ids of the rows, in the order of their commits.
func (j *Judge) Committed(t testing.TB) (ids []int64) {
	t.Helper()
	conn := j.connect(t)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), `SELECT data FROM pg_logical_slot_peek_changes($1, NULL, NULL)`, j.slot)
	if err != nil {
		t.Fatalf("ask the judge: %v", err)
	}
	changes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("ask the judge: %v", err)
	}
	for _, change := range changes {
		if m := insertion.FindStringSubmatch(change); m != nil {
			id, err := strconv.ParseInt(m[1], 10, 64)
			if err != nil {
				t.Fatalf("read what the judge says: %v", err)
			}
			ids = append(ids, id)
		}
	}
	return ids
}
