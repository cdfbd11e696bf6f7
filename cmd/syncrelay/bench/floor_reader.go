package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// bareReader is the floor of latency and ingest: a pglogrepl reader that decodes
// the rows of a slot, and does nothing with them.
type bareReader struct {
	conn      *pgconn.PgConn
	relations map[uint32]*pglogrepl.RelationMessage
	want      int  // rows
	stamp     bool // when each row was decoded is wanted

	rows    []int64 // of the transaction that is being read
	decoded int
	times   map[int64]int64 // by the row's number
	end     pglogrepl.LSN
}

// readerResult is what a reader prints in the end.
type readerResult struct {
	Rows int `json:"rows"`
	// First and Last are when the first and the last row had been decoded, Unix
	// time in nanoseconds.
	First int64 `json:"first"`
	Last  int64 `json:"last"`
	// Times are when each row had been decoded with its transaction, in ns, by the number in its
	// payload.
	Times map[int64]int64 `json:"times,omitempty"`
}

// statusInterval is how often the reader tells the server where it stands.
const statusInterval = time.Second

// runReader reads args[1] rows from the slot args[0]; args[2] is "times" if it
// shall remember when each was decoded.
func runReader(ctx context.Context, url string, args []string, out io.Writer) error {
	want, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("how many rows to read is %q", args[1])
	}
	config, err := pgconn.ParseConfig(url)
	if err != nil {
		return fmt.Errorf("read the database's URL: %w", err)
	}
	config.RuntimeParams["replication"] = "database"
	r := &bareReader{relations: make(map[uint32]*pglogrepl.RelationMessage), want: want, stamp: args[2] == "times", times: make(map[int64]int64)}
	if r.conn, err = pgconn.ConnectConfig(ctx, config); err != nil {
		return err
	}
	defer func() { _ = r.conn.Close(context.WithoutCancel(ctx)) }()
	err = pglogrepl.StartReplication(ctx, r.conn, args[0], 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'syncrelay'"},
	})
	if err != nil {
		return fmt.Errorf("start the stream: %w", err)
	}
	fmt.Fprintln(out, "reading")
	result, err := r.read(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

func (r *bareReader) read(ctx context.Context) (result readerResult, err error) {
	due := time.Now().Add(statusInterval)
	for r.decoded < r.want {
		if time.Now().After(due) {
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, r.conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: r.end}); err != nil {
				return result, fmt.Errorf("tell the server where the reader stands: %w", err)
			}
			due = time.Now().Add(statusInterval)
			if err := r.conn.Conn().SetReadDeadline(due); err != nil {
				return result, fmt.Errorf("set a deadline: %w", err)
			}
		}
		message, err := r.conn.ReceiveMessage(context.Background())
		switch {
		case ctx.Err() != nil:
			return result, ctx.Err()
		case err != nil && pgconn.Timeout(err):
			continue
		case err != nil:
			return result, fmt.Errorf("receive: %w", err)
		}
		if err := r.message(message); err != nil {
			return result, err
		}
		if r.decoded > 0 && result.First == 0 {
			result.First = time.Now().UnixNano()
		}
	}
	result.Rows, result.Last, result.Times = r.decoded, time.Now().UnixNano(), r.times
	return result, nil
}

func (r *bareReader) message(message pgproto3.BackendMessage) error {
	data, ok := message.(*pgproto3.CopyData)
	if !ok {
		if failed, ok := message.(*pgproto3.ErrorResponse); ok {
			return pgconn.ErrorResponseToPgError(failed)
		}
		return nil
	}
	if len(data.Data) == 0 || data.Data[0] != pglogrepl.XLogDataByteID {
		return nil
	}
	x, err := pglogrepl.ParseXLogData(data.Data[1:])
	if err != nil {
		return err
	}
	m, err := pglogrepl.Parse(x.WALData)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *pglogrepl.RelationMessage:
		r.relations[m.RelationID] = m
	case *pglogrepl.InsertMessage:
		n, err := r.row(m)
		if err != nil {
			return err
		}
		r.rows = append(r.rows, n)
	case *pglogrepl.CommitMessage:
		r.end = m.TransactionEndLSN
		r.decoded += len(r.rows)
		if r.stamp {
			at := time.Now().UnixNano()
			for _, n := range r.rows {
				r.times[n] = at
			}
		}
		r.rows = r.rows[:0]
	}
	return nil
}

// row is the number in a row's payload.
func (r *bareReader) row(m *pglogrepl.InsertMessage) (int64, error) {
	relation := r.relations[m.RelationID]
	if relation == nil {
		return 0, errors.New("a row came before the description of its table")
	}
	at := slices.IndexFunc(relation.Columns, func(c *pglogrepl.RelationMessageColumn) bool { return c.Name == "payload" })
	if at < 0 || at >= len(m.Tuple.Columns) {
		return 0, errors.New("a row has no payload")
	}
	n, _ := number(m.Tuple.Columns[at].Data, rowKey)
	return n, nil
}

// reader is a running bareReader, seen from the bench.
type reader struct{ *child }

// startReader starts a reader of so many rows of a slot.
func (b *bench) startReader(ctx context.Context, db *database, slot string, rows int, times bool) (*reader, error) {
	mode := "count"
	if times {
		mode = "times"
	}
	c, err := b.spawn("the floor", append(slices.Clone(b.environ), floorURL+"="+db.url), false, "bench", "floor", floorReader, slot, strconv.Itoa(rows), mode)
	if err != nil {
		return nil, err
	}
	if _, err := c.line(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return &reader{c}, nil
}

// result waits for what the reader prints in the end.
func (r *reader) result(ctx context.Context) (result readerResult, err error) {
	line, err := r.line(ctx)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal([]byte(line), &result); err != nil {
		return result, fmt.Errorf("read what the floor has found: %w", err)
	}
	select {
	case <-r.ended:
	case <-ctx.Done():
		return result, context.Cause(ctx)
	}
	return result, nil
}
