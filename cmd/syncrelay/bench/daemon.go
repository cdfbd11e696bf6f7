package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// daemon is the relay under measurement.
type daemon struct {
	*child
	public, ops string
}

// secret signs the tokens of the bench's clients. The daemons that know it live
// for seconds, on loopback, on a database of the bench's own.
const secret = "the bench's own secret, which guards nothing" //nolint:gosec // as it says

// serve starts a relay on a database and waits until it is ready. It has nothing
// but its defaults, and what is given.
func (b *bench) serve(ctx context.Context, db *database, settings ...string) (*daemon, error) {
	d, err := b.launch(ctx, db, settings...)
	if err != nil {
		return nil, err
	}
	if err := d.ready(ctx); err != nil {
		return nil, b.abandon(d, err)
	}
	return d, nil
}

// launch starts a relay and returns when it listens.
func (b *bench) launch(ctx context.Context, db *database, settings ...string) (*daemon, error) {
	environ := slices.Concat(b.environ, []string{
		"SYNCRELAY_DATABASE_URL=" + db.url, "SYNCRELAY_DATABASE_SLOT=" + db.name, "SYNCRELAY_AUTH_HMAC_SECRET=" + secret,
		"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0",
		"SYNCRELAY_DRAIN_TIMEOUT=1s", "SYNCRELAY_LOG_FORMAT=json",
	}, settings)
	c, err := b.spawn("the relay", environ, true, "serve")
	if err != nil {
		return nil, err
	}
	d := &daemon{child: c}
	for d.public == "" {
		line, err := c.line(ctx)
		if err != nil {
			return nil, b.abandon(d, err)
		}
		var entry struct {
			Msg     string `json:"msg"`
			Address string `json:"address"`
			Ops     string `json:"ops_address"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "listening" {
			d.public, d.ops = entry.Address, entry.Ops
		}
	}
	return d, nil
}

// abandon stops a relay that is of no use, and returns why.
func (b *bench) abandon(d *daemon, err error) error {
	if stopErr := d.stop(); stopErr != nil {
		b.progress("%v", stopErr)
	}
	return err
}

// readyPause is how often a relay is asked whether it is ready.
const readyPause = 5 * time.Millisecond

// ready waits until the relay streams.
func (d *daemon) ready(ctx context.Context) error {
	for {
		status, body, err := fetch(ctx, "http://"+d.public+"/readyz")
		if err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the relay is not ready: %s: %w", strings.TrimSpace(body), context.Cause(ctx))
		case <-d.ended:
			return d.failure()
		case <-time.After(readyPause):
		}
	}
}

// fetch reads a page.
func fetch(ctx context.Context, url string) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", fmt.Errorf("ask for %s: %w", url, err)
	}
	request.Close = true // a connection that is kept would be one more of the relay's
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(response.Body, longest))
	return response.StatusCode, string(text), err
}

// tidy has the relay collect its garbage, as reading its heap's profile does.
func (d *daemon) tidy(ctx context.Context) error {
	status, _, err := fetch(ctx, "http://"+d.ops+"/debug/pprof/heap?gc=1")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d", status)
	}
	if err != nil {
		return fmt.Errorf("have the relay collect its garbage: %w", err)
	}
	return nil
}
