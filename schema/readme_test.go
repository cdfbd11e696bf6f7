package schema_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

func TestStatementsOfTheReadmeRun(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) < 3 {
		t.Fatalf("only %d blocks of SQL were found", len(blocks))
	}
	u := pgtest.Database(t)
	migrate(t, u)
	conn := connect(t, u)
	for _, block := range blocks {
		// Several statements at once, as psql sends them.
		if _, err := conn.PgConn().Exec(t.Context(), block[1]).ReadAll(); err != nil {
			t.Errorf("%v:\n%s", err, block[1])
		}
	}
	if n := value(t, conn, `SELECT count(*)::text FROM sync_events`); n != "9" {
		t.Errorf("the statements wrote %s rows, want 9", n)
	}
}
