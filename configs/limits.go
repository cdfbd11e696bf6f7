package configs

import (
	"net/netip"
	"strconv"
	"time"
)

// Limits bound what clients can take; stream.Limits says what each means. Here a
// zero stands for no limit.
type Limits struct {
	Connections, ConnectionsPerIP, ConnectionsPerUser int

	ConnectRatePerIP     float64
	ConnectBurstPerIP    int
	FailedAuthRatePerIP  float64
	FailedAuthBurstPerIP int

	Replays, ReplaysPerUser int
	ReplayRatePerUser       float64
	ReplayBurstPerUser      int
	ReplayPageRatePerUser   float64
	ReplayPageBurstPerUser  int

	MessageBytes int
	MessageRate  float64
	MessageBurst int

	HeaderBytes   int
	HeaderTimeout time.Duration
}

const (
	allowedLimit = "a whole number from 0 to 100000000, 0 for no limit"
	allowedRate  = "a number a second from 0.001 to 1000000, or 0 for no limit"
	allowedBurst = "a whole number from 1 to 100000000"
)

// limit is a number that may be none.
func limit(field func(*Settings) *int) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if value == "0" {
			*field(s) = 0
			return nil
		}
		return number(field)(s, value)
	}
}

// rate is a number a second.
func rate(field func(*Settings) *float64) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		perSecond, err := strconv.ParseFloat(value, 64)
		if err != nil || !(perSecond == 0 || perSecond >= 0.001 && perSecond <= 1e6) {
			return errNotAllowed
		}
		*field(s) = perSecond
		return nil
	}
}

// maxPingInterval lets a dead peer be found within a minute: it may have died
// right after it answered a ping, and has not answered the next one when the one
// after that is due.
const maxPingInterval = 30 * time.Second

func setPingInterval(s *Settings, value string) error {
	field := func(s *Settings) *time.Duration { return &s.Stream.PingInterval }
	if err := duration(time.Second, field)(s, value); err != nil || s.Stream.PingInterval > maxPingInterval {
		return errNotAllowed
	}
	return nil
}

func setProxies(s *Settings, value string) error {
	proxies := list(value)
	for _, p := range proxies {
		address, err := netip.ParseAddr(p)
		if err == nil && address.Zone() == "" {
			continue
		}
		network, err := netip.ParsePrefix(p)
		if err != nil || network.Addr().Is4In6() && network.Bits() < 96 { // which are IPv4 addresses and others
			return errNotAllowed
		}
	}
	s.Listen.TrustedProxies = proxies
	return nil
}
