package stream

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Proxies are the peers whose word counts about whom they speak for. The zero
// value trusts nobody. It is safe for use by many at once.
type Proxies struct{ networks []netip.Prefix }

// NewProxies makes the list of settings' listen.trusted_proxies: networks
// (10.0.0.0/8) and single addresses.
func NewProxies(trusted []string) (*Proxies, error) {
	p := &Proxies{}
	for _, entry := range trusted {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		network, err := netip.ParsePrefix(entry)
		if err != nil {
			address, err := netip.ParseAddr(entry)
			if err != nil || address.Zone() != "" {
				return nil, fmt.Errorf("%s is no network; allowed are 10.0.0.0/8, 2001:db8::/32 and single addresses", quote(entry))
			}
			network = netip.PrefixFrom(address, address.BitLen())
		}
		if network, err = unmapped(network); err != nil {
			return nil, fmt.Errorf("%s is no network: %w", quote(entry), err)
		}
		p.networks = append(p.networks, network.Masked())
	}
	return p, nil
}

// mappedBits is the length of what stands before an IPv4 address that is written as
// an IPv6 one (RFC 4291, section 2.5.5.2).
const mappedBits = 96

// unmapped is the IPv4 network that an IPv6 one stands for, as in ::ffff:10.0.0.0/104.
// Addresses of requests are unmapped, too.
func unmapped(network netip.Prefix) (netip.Prefix, error) {
	switch {
	case !network.Addr().Is4In6():
		return network, nil
	case network.Bits() < mappedBits:
		return network, fmt.Errorf("it holds IPv4 addresses and others; allowed after ::ffff: are /%d and up", mappedBits)
	}
	return netip.PrefixFrom(network.Addr().Unmap(), network.Bits()-mappedBits), nil
}

func (p *Proxies) trusts(address netip.Addr) bool {
	return slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Contains(address) })
}

// client is the address of the client that a request comes from. What the peer
// says of whom it forwards for counts only if it is a trusted proxy, and then
// the same is asked of the hop before it: so it is the hop farthest to the right
// that is not trusted, which everything to the left of it was written by.
//
// Two headers tell the way, of which a proxy writes one and may let the other
// pass as a client made it up. If both are there and don't agree, neither is
// believed, and the proxy is taken for the client.
func (p *Proxies) client(r *http.Request) netip.Addr {
	peer := parseHop(r.RemoteAddr)
	if !p.trusts(peer) {
		return peer
	}
	forwardedFor, forwarded := r.Header.Values("X-Forwarded-For"), r.Header.Values("Forwarded")
	if len(forwarded) == 0 {
		return p.walk(peer, splitHops(forwardedFor))
	}
	found := p.walk(peer, forwardedHops(forwarded))
	if len(forwardedFor) > 0 && p.walk(peer, splitHops(forwardedFor)) != found {
		return peer
	}
	return found
}

// walk goes from the peer to the left as long as it meets trusted proxies. A hop
// that is no address ends the way: what is to the left of it can't be judged.
func (p *Proxies) walk(peer netip.Addr, hops []string) netip.Addr {
	at := peer
	for _, hop := range slices.Backward(hops) {
		next := parseHop(hop)
		if !next.IsValid() {
			return at
		}
		if at = next; !p.trusts(at) {
			return at
		}
	}
	return at
}

// splitHops lists the entries of X-Forwarded-For, over all of its lines.
func splitHops(lines []string) []string {
	if len(lines) == 0 {
		return nil
	}
	return strings.Split(strings.Join(lines, ","), ",")
}

// forwardedHops lists what Forwarded says after for= (RFC 7239, section 4). An
// element without it, or with two, is a hop that is no address; a header that
// can't be read is one too.
func forwardedHops(lines []string) []string {
	elements, ok := splitQuoted(strings.Join(lines, ","), ',')
	if !ok {
		return []string{""}
	}
	hops := make([]string, len(elements))
	for i, element := range elements {
		pairs, _ := splitQuoted(element, ';') // the quotes are even, as a whole
		seen := false
		for _, pair := range pairs {
			name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
			if !strings.EqualFold(name, "for") {
				continue
			}
			if seen {
				hops[i] = ""
				break
			}
			seen = true
			hops[i] = unquote(value)
		}
	}
	return hops
}

// splitQuoted splits at a separator outside of quoted strings. ok is false if a
// quoted string does not end.
func splitQuoted(s string, separator byte) (parts []string, ok bool) {
	quotedString, begin := false, 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quotedString = !quotedString
		case quotedString && c == '\\':
			i++
		case !quotedString && c == separator:
			parts = append(parts, s[begin:i])
			begin = i + 1
		}
	}
	return append(parts, s[begin:]), !quotedString
}

// unquote takes the quotes off a quoted string. No address holds an escape.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// parseHop reads an address with or without a port, in all the ways in which
// proxies write them: 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1] and
// [2001:db8::1]:80. What is none, as "unknown", is the zero address.
func parseHop(s string) netip.Addr {
	s = strings.TrimSpace(s)
	if with, err := netip.ParseAddrPort(s); err == nil {
		return with.Addr().Unmap().WithZone("")
	}
	if inside, ok := strings.CutPrefix(s, "["); ok {
		if s, ok = strings.CutSuffix(inside, "]"); !ok {
			return netip.Addr{}
		}
	}
	address, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}
	}
	return address.Unmap().WithZone("")
}

// household is what limits count as one client: an IPv4 address, or the 64 bits
// of an IPv6 one that a single customer is given at least (RFC 6177).
func household(address netip.Addr) netip.Addr {
	if !address.Is6() {
		return address
	}
	network, err := address.Prefix(64)
	if err != nil { // it has no zone and more than 64 bits
		return address
	}
	return network.Addr()
}
