package stream

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func proxies(t testing.TB, trusted ...string) *Proxies {
	t.Helper()
	p, err := NewProxies(trusted)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTheClientIsTheRightmostHopThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		peer         string
		forwardedFor []string
		forwarded    []string
		want         string
	}{
		{"192.0.2.7:1234", nil, nil, "192.0.2.7"},
		{"192.0.2.7:1234", []string{"203.0.113.9"}, []string{"for=203.0.113.9"}, "192.0.2.7"}, // a stranger's word
		{"10.0.0.1:1234", nil, nil, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9"}, nil, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"1.1.1.1, 203.0.113.9"}, nil, "203.0.113.9"}, // the left one is made up
		{"10.0.0.1:1234", []string{"1.1.1.1", "203.0.113.9"}, nil, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"203.0.113.9, 10.3.4.5"}, nil, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"10.3.4.5, 10.9.9.9"}, nil, "10.3.4.5"},
		{"10.0.0.1:1234", []string{"203.0.113.9:5678"}, nil, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"2001:db8:9::1"}, nil, "2001:db8:9::1"},
		{"10.0.0.1:1234", []string{"[2001:db8:9::1]:80"}, nil, "2001:db8:9::1"},
		{"10.0.0.1:1234", []string{"[2001:db8:9::1]"}, nil, "2001:db8:9::1"},
		{"10.0.0.1:1234", []string{"::ffff:203.0.113.9"}, nil, "203.0.113.9"},
		{"[::ffff:10.0.0.1]:1234", []string{"203.0.113.9"}, nil, "203.0.113.9"},
		{"[2001:db8::5]:1234", []string{"203.0.113.9"}, nil, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"203.0.113.9, unknown"}, nil, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9, unknown, 10.2.2.2"}, nil, "10.2.2.2"},
		{"10.0.0.1:1234", []string{""}, nil, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9,"}, nil, "10.0.0.1"},
		{"10.0.0.1:1234", nil, []string{"for=203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1234", nil, []string{`For="[2001:db8:9::1]:4711";proto=https`}, "2001:db8:9::1"},
		{"10.0.0.1:1234", nil, []string{`for=1.1.1.1, for=203.0.113.9;by=10.0.0.1, for=10.7.7.7`}, "203.0.113.9"},
		{"10.0.0.1:1234", nil, []string{`for="a, for=1.1.1.1";proto=http`}, "10.0.0.1"},
		{"10.0.0.1:1234", nil, []string{`for=203.0.113.9;host="x;for=1.1.1.1"`}, "203.0.113.9"},
		{"10.0.0.1:1234", nil, []string{`for=203.0.113.9;for=1.1.1.1`}, "10.0.0.1"},
		{"10.0.0.1:1234", nil, []string{`for=203.0.113.9, for="1.1.1.1`}, "10.0.0.1"},
		{"10.0.0.1:1234", nil, []string{`for=203.0.113.9, for=_hidden`}, "10.0.0.1"},
		{"10.0.0.1:1234", nil, []string{`for=203.0.113.9, proto=https`}, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9"}, []string{"for=203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"203.0.113.9"}, []string{"for=1.1.1.1"}, "10.0.0.1"}, // one of them is made up
		{"@", []string{"203.0.113.9"}, nil, "invalid IP"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.RemoteAddr = c.peer
		r.Header["X-Forwarded-For"], r.Header["Forwarded"] = c.forwardedFor, c.forwarded
		if got := proxies(t, "10.0.0.0/8", " 2001:db8::5 ", "").client(r); got.String() != c.want {
			t.Errorf("from %s, X-Forwarded-For %q, Forwarded %q: got %s, want %s", c.peer, c.forwardedFor, c.forwarded, got, c.want)
		}
	}
}

func TestSettingsThatAreNoNetworkAreRefused(t *testing.T) {
	t.Parallel()
	for _, entry := range []string{"proxy.example.org", "10.0.0.0/33", "10.0.0", "*", "fe80::1%eth0"} {
		if _, err := NewProxies([]string{entry}); err == nil || !strings.Contains(err.Error(), "allowed are") {
			t.Errorf("%q: got %v", entry, err)
		}
	}
}

func TestLimitsCountAnIPv6CustomerAsOne(t *testing.T) {
	t.Parallel()
	for from, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::", "2001:db8:1:2::9": "2001:db8:1:2::",
	} {
		if got := household(netip.MustParseAddr(from)); got.String() != want {
			t.Errorf("%s counts as %s, want %s", from, got, want)
		}
	}
}

// FuzzForwarded: whatever the headers say, the client of an unknown peer is that
// peer; and of a proxy's it is the proxy, or an address that stands in the header.
func FuzzForwarded(f *testing.F) {
	for _, seed := range []string{"203.0.113.9", "1.1.1.1, 203.0.113.9:80", "[2001:db8::1]:80", `for="[2001:db8::1]:1";by=x, for=10.1.1.1`, `for="\"`, "unknown,,"} {
		f.Add(seed, "")
		f.Add("", seed)
	}
	p := proxies(f, "10.0.0.0/8")
	f.Fuzz(func(t *testing.T, forwardedFor, forwarded string) {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		if forwardedFor != "" {
			r.Header["X-Forwarded-For"] = []string{forwardedFor}
		}
		if forwarded != "" {
			r.Header["Forwarded"] = []string{forwarded}
		}
		r.RemoteAddr = "192.0.2.7:80"
		if got := p.client(r); got.String() != "192.0.2.7" {
			t.Fatalf("%q, %q: a stranger says it is %s", forwardedFor, forwarded, got)
		}
		r.RemoteAddr = "10.0.0.1:80"
		got := p.client(r)
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Fatalf("%q, %q: the client is %v", forwardedFor, forwarded, got)
		}
		if got.String() != "10.0.0.1" && forwardedFor == "" && forwarded == "" {
			t.Fatalf("the client is %s, and nobody said so", got)
		}
	})
}

func TestNetworksInTheFormOfIPv6AreThoseOfIPv4(t *testing.T) {
	t.Parallel()
	p, err := NewProxies([]string{"::ffff:10.0.0.0/104", "::ffff:192.0.2.1"})
	if err != nil {
		t.Fatal(err)
	}
	for peer, trusted := range map[string]bool{
		"10.1.2.3:80": true, "[::ffff:10.1.2.3]:80": true, "192.0.2.1:80": true, "[::ffff:192.0.2.1]:80": true,
		"11.0.0.1:80": false, "[::ffff:11.0.0.1]:80": false, "192.0.2.2:80": false, "[2001:db8::1]:80": false,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.RemoteAddr = peer
		r.Header.Set("X-Forwarded-For", "203.0.113.9")
		if got := p.client(r).String() == "203.0.113.9"; got != trusted {
			t.Errorf("%s is trusted: %v, want %v", peer, got, trusted)
		}
	}
	if _, err := NewProxies([]string{"::ffff:0.0.0.0/90"}); err == nil || !strings.Contains(err.Error(), "/96 and up") {
		t.Errorf("half of a network: %v", err)
	}
}
