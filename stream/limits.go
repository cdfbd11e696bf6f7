package stream

import (
	"time"
)

// NoLimit as a limit stands for none.
const NoLimit = -1

// Limits bound what clients can take of the relay. Zero stands for the default
// of each, [NoLimit] for none.
//
// The defaults let in whatever an honest crowd does (a school behind one
// address, all of whose tabs come back at once after a restart), and bound what
// one address or one user can cost.
type Limits struct {
	// Connections bounds the connections at once: in all (50,000), of one IP
	// address (50,000: it may be a proxy's; an IPv6 one counts by its /64 network),
	// and of one user (20,000).
	Connections, ConnectionsPerIP, ConnectionsPerUser int
	// ConnectRatePerIP and ConnectBurstPerIP bound new connections of one
	// address, per second and at once; default 2,000 and 50,000, so that
	// everybody may come back at once, and again.
	ConnectRatePerIP  float64
	ConnectBurstPerIP int
	// FailedAuthRatePerIP and FailedAuthBurstPerIP bound how many tokens that were
	// made up get an answer of their own, from one address; default 100 and 10,000.
	// Who has a good one is let in whatever others of the address do.
	FailedAuthRatePerIP  float64
	FailedAuthBurstPerIP int

	// Replays bounds the replays and resumes under way at once: in all (50,000),
	// and of one user (20,000: all of a user's connections may come back at once).
	Replays, ReplaysPerUser int
	// ReplayRatePerUser and ReplayBurstPerUser bound how many one user asks for
	// that need the database, per second and at once; default 1,000 and 50,000.
	ReplayRatePerUser  float64
	ReplayBurstPerUser int
	// ReplayPageRatePerUser and ReplayPageBurstPerUser bound how many pages of the
	// log, of 1024 events at most, are read from the database for one user's
	// replays, per second and at once; default 250 and 50,000. Who is over them is
	// served more slowly.
	ReplayPageRatePerUser  float64
	ReplayPageBurstPerUser int

	// MessageBytes bounds the length of a client's message; default 4096, at most
	// [MaxMessageBytes].
	MessageBytes int
	// MessageRate and MessageBurst bound what a client sends on a WebSocket, in
	// messages, pings and pongs that nobody asked for a second; default 50 and
	// 500. A message may come in 256 fragments at least.
	MessageRate  float64
	MessageBurst int

	// HeaderBytes bounds the header of a request: a token and what browsers and
	// proxies add; default 16 KiB. HeaderTimeout is how long it may take to come
	// in, with the handshake of TLS before it; default 5 s.
	HeaderBytes   int
	HeaderTimeout time.Duration
}

// MaxMessageBytes is the most that Limits.MessageBytes can be.
const MaxMessageBytes = largeBuffer - 1

func (l *Limits) complete() {
	for _, n := range []struct {
		value     *int
		otherwise int
	}{
		{&l.Connections, 50_000}, {&l.ConnectionsPerIP, 50_000}, {&l.ConnectionsPerUser, 20_000},
		{&l.ConnectBurstPerIP, 50_000}, {&l.FailedAuthBurstPerIP, 10_000},
		{&l.Replays, 50_000}, {&l.ReplaysPerUser, 20_000}, {&l.ReplayBurstPerUser, 50_000}, {&l.ReplayPageBurstPerUser, 50_000},
		{&l.MessageBytes, 4 << 10}, {&l.MessageBurst, 500}, {&l.HeaderBytes, 16 << 10},
	} {
		if *n.value == 0 {
			*n.value = n.otherwise
		}
	}
	for _, r := range []struct {
		value     *float64
		otherwise float64
	}{
		{&l.ConnectRatePerIP, 2_000}, {&l.FailedAuthRatePerIP, 100}, {&l.ReplayRatePerUser, 1_000},
		{&l.ReplayPageRatePerUser, 250}, {&l.MessageRate, 50},
	} {
		if *r.value == 0 {
			*r.value = r.otherwise
		}
	}
	if l.HeaderTimeout <= 0 {
		l.HeaderTimeout = 5 * time.Second
	}
	if l.MessageBytes < 0 || l.MessageBytes > MaxMessageBytes {
		l.MessageBytes = MaxMessageBytes
	}
	if l.HeaderBytes < 0 {
		l.HeaderBytes = 1 << 20
	}
}

// over reports whether one more than n is over a limit.
func over(n, limit int) bool { return limit >= 0 && n >= limit }
