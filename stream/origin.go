package stream

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"unicode"
)

// Origins decides which web pages may connect (RFC 6454 says what an origin is).
// It is safe for use by many at once.
type Origins struct {
	any      bool
	exact    map[origin]struct{}
	suffixes []origin // host is ".example.org"
}

// origin is a web origin. The port is never empty.
type origin struct{ scheme, host, port string }

// NewOrigins makes the list of settings' origins.allowed. Each entry is an
// origin (https://app.example.org, with the port if it isn't the scheme's
// own), a pattern for all hosts below one (https://*.example.org), or * for
// any. Without entries only pages from the relay's own host may connect.
func NewOrigins(allowed []string) (*Origins, error) {
	o := &Origins{exact: make(map[origin]struct{})}
	for _, entry := range allowed {
		entry = strings.TrimSpace(entry)
		switch {
		case entry == "":
		case entry == "*":
			o.any = true
		default:
			if strings.ContainsFunc(entry, func(r rune) bool { return r > unicode.MaxASCII }) {
				return nil, fmt.Errorf("%s has letters that no browser sends; allowed is the name in its form for machines, as https://xn--bcher-kva.example", quote(entry))
			}
			scheme, rest, _ := strings.Cut(entry, "://")
			below, pattern := strings.CutPrefix(rest, "*.")
			if pattern {
				rest = below
			}
			from, ok := parseOrigin(scheme + "://" + rest)
			if !ok || strings.Contains(from.host, "*") {
				return nil, fmt.Errorf("%s is no origin; allowed are https://host, https://host:port, https://*.host and * for any", quote(entry))
			}
			if pattern {
				from.host = "." + from.host
				o.suffixes = append(o.suffixes, from)
			} else {
				o.exact[from] = struct{}{}
			}
		}
	}
	return o, nil
}

// parseOrigin reads scheme://host or scheme://host:port, and nothing more.
func parseOrigin(s string) (origin, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Hostname() == "" || u.User != nil || u.Opaque != "" ||
		u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#") {
		return origin{}, false
	}
	from := origin{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: u.Port()}
	if from.port == "" {
		if strings.HasSuffix(u.Host, ":") {
			return origin{}, false
		}
		from.port = defaultPort(from.scheme)
	}
	return from, true
}

func defaultPort(scheme string) string {
	switch scheme {
	case "http", "ws":
		return "80"
	case "https", "wss":
		return "443"
	default:
		return "none"
	}
}

// Allow reports whether the request may connect as far as its origin goes. One
// without the header passes: every browser sends it with a WebSocket's
// handshake and with a request to another site, so it is no page of another site.
func (o *Origins) Allow(r *http.Request) bool {
	values := r.Header.Values("Origin")
	switch {
	case len(values) == 0:
		return true
	case len(values) > 1:
		return false
	}
	from, ok := parseOrigin(values[0])
	if !ok { // "null" too, the origin of pages that have none
		return false
	}
	if o.any || len(o.exact) == 0 && len(o.suffixes) == 0 && sameHost(from, r) {
		return true
	}
	if _, ok := o.exact[from]; ok {
		return true
	}
	for _, s := range o.suffixes {
		if from.scheme == s.scheme && from.port == s.port && strings.HasSuffix(from.host, s.host) && len(from.host) > len(s.host) {
			return true
		}
	}
	return false
}

// sameHost reports whether a page came from the host and port that the request
// goes to. Behind a proxy that ends TLS the request's own scheme is not known;
// the page's is taken for it.
func sameHost(from origin, r *http.Request) bool {
	scheme := from.scheme
	if r.TLS != nil {
		scheme = "https"
	}
	if scheme != "http" && scheme != "https" {
		return false
	}
	to, ok := parseOrigin(scheme + "://" + r.Host)
	return ok && to.host == from.host && to.port == from.port
}
