package stream

import (
	"context"
	"log"
	"log/slog"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// noise is what strangers make, kept out of the log's way. What they did is
// counted and told in one line in an interval; each thing for itself is a line at
// debug level only, and not more of those in a second than can be read.
type noise struct {
	logger *slog.Logger
	lines  *rate.Limiter
	// faults bounds the lines of our own errors, which a stranger may have found
	// out how to cause.
	faults *rate.Limiter
	proxy  sync.Once // the warning of a proxy that is not trusted

	mu      sync.Mutex
	counts  map[string]int // by reason
	leftOut int            // lines that were one too many
}

// How many lines are written a second, and at once.
const (
	noiseRate, noiseBurst = 50, 500
	faultRate, faultBurst = 1, 20
)

func newNoise(logger *slog.Logger) *noise {
	return &noise{
		logger: logger, counts: make(map[string]int),
		lines: rate.NewLimiter(noiseRate, noiseBurst), faults: rate.NewLimiter(faultRate, faultBurst),
	}
}

// debugging reports whether lines about clients are written at all: what stands
// in them must not be made for nothing, for each of thousands.
func (n *noise) debugging() bool { return n.logger.Enabled(context.Background(), slog.LevelDebug) }

// debug writes a line about a client.
func (n *noise) debug(message string, attrs ...any) {
	if !n.debugging() {
		return
	}
	if n.lines.Allow() {
		n.logger.Debug(message, attrs...)
	} else {
		n.leaveOut()
	}
}

// fault writes a line about an error of ours.
func (n *noise) fault(attrs ...any) {
	if n.faults.Allow() {
		n.logger.Error("error in stream", attrs...)
	} else {
		n.leaveOut()
	}
}

func (n *noise) leaveOut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leftOut++
}

// count counts what will be told in the summary. There are as many reasons as
// this package knows.
func (n *noise) count(reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts[reason]++
}

// summarize writes the line, if there was anything.
func (n *noise) summarize() {
	n.mu.Lock()
	counts, leftOut := n.counts, n.leftOut
	n.counts, n.leftOut = make(map[string]int), 0
	n.mu.Unlock()
	if len(counts) == 0 && leftOut == 0 {
		return
	}
	reasons := make([]string, 0, len(counts))
	for reason := range counts {
		reasons = append(reasons, reason)
	}
	slices.Sort(reasons)
	attrs := make([]any, 0, len(reasons)+1)
	for _, reason := range reasons {
		attrs = append(attrs, slog.Int(reason, counts[reason]))
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("lines_left_out", leftOut))
	}
	n.logger.Info("clients were refused or let go", attrs...)
}

// run writes the summaries until ctx ends, and a last one then.
func (n *noise) run(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	defer n.summarize()
	for {
		select {
		case <-tick.C:
			n.summarize()
		case <-ctx.Done():
			return nil
		}
	}
}

// errorLog is what the HTTP server says, which is about what strangers do; our
// own faults are logged by guard.
func (n *noise) errorLog() *log.Logger { return log.New(errorLog{n}, "", 0) }

type errorLog struct{ noise *noise }

// Write is part of [io.Writer].
func (e errorLog) Write(line []byte) (int, error) {
	e.noise.debug("the HTTP server says", slog.String("what", shown(cut(strings.TrimSpace(string(line)), 200))))
	return len(line), nil
}

// warnOfProxy tells the operator, once, of what looks like a proxy of theirs
// that listen.trusted_proxies should name.
func (n *noise) warnOfProxy(p *Proxies, r *http.Request) {
	if r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == "" {
		return
	}
	peer := parseHop(r.RemoteAddr)
	if p.trusts(peer) || !private(peer) {
		return
	}
	n.proxy.Do(func() {
		n.logger.Warn("requests come through a proxy that listen.trusted_proxies does not name: its clients count as one address", slog.String("proxy", peer.String()))
	})
}

func private(a netip.Addr) bool { return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() }

// secretly is what a token, a ticket or a key could be a part of: letters and
// digits in a row, more than a word or a host's name has.
var secretly = regexp.MustCompile(`[A-Za-z0-9_+=-]{20,}`)

// shown is a stranger's text as it may stand in the log: without anything that
// could be a token which was put in the wrong place.
func shown(s string) string { return secretly.ReplaceAllString(s, "[…]") }

// logged is what a stranger sent, for the log: besides, quoted and cut.
func logged(s string) string { return quote(shown(s)) }
