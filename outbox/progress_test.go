package outbox_test

import (
	"log/slog"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// However long a relay reads before it serves, the log says how far it has come.
func TestLongReadingIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log lines
	w.options.Logger = slog.New(slog.NewTextHandler(&log, nil))
	const rows = 30_000
	write := func() {
		t.Helper()
		w.exec(`INSERT INTO sync_events (event_type, payload) SELECT 'x', jsonb_build_object('n', n) FROM generate_series(1, $1::int) n`, rows)
	}
	often := relay.Options{TellInterval: 2 * time.Millisecond, FlushInterval: 2 * time.Millisecond}
	write()
	r := w.start(often)
	steps := regexp.MustCompile(`msg="reading a backlog" rows=(\d+) rows_per_second=(\d+) for=`).FindAllStringSubmatch(log.String(), -1)
	if len(steps) == 0 {
		t.Fatalf("the reading of a backlog is not told:\n%s", log.String())
	}
	last := 0
	for _, m := range steps {
		n, err := strconv.Atoi(m[1])
		if err != nil || n < last || n > rows || m[2] == "0" {
			t.Errorf("told %q after %d rows", m[0], last)
		}
		last = n
	}
	r.stop()
	w.waitForFreeSlot()
	write()
	w.start(often)
	waitForJournal(w, 2*rows)
	if !regexp.MustCompile(`msg="catching up" bytes_left=[1-9]\d* bytes_per_second=\d+ for=`).MatchString(log.String()) {
		t.Errorf("catching up is not told:\n%s", log.String())
	}
}
