package configs

import (
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"time"
)

// Settings are all settings, checked. Section 2 of the contract fixes the names
// of the most important ones.
type Settings struct {
	Database  Database
	Listen    Listen
	Auth      Auth
	Origins   Origins
	Console   Console
	Retention Retention
	Drain     Drain
	Memory    Memory
	Stream    Stream
	Limits    Limits
	Log       Log
}

// Database is the database that the relay reads from and keeps its journal in.
type Database struct {
	URL         Secret
	Slot        string
	Publication string
	// OwnerTimeout is how long the owner may be silent before another relay
	// takes over.
	OwnerTimeout time.Duration
	// WALWarning is how many bytes of log the server may keep because of the
	// slot before the relay warns.
	WALWarning int
}

// Listen says where the relay listens.
type Listen struct {
	// Address is for clients, OpsAddress for metrics and profiles.
	Address    string
	OpsAddress string
	// TLSCertFile and TLSKeyFile make Address speak TLS, OpsTLSCertFile and
	// OpsTLSKeyFile OpsAddress; empty is plain HTTP.
	TLSCertFile, TLSKeyFile       string
	OpsTLSCertFile, OpsTLSKeyFile string
	// TrustedProxies are networks whose word about a client's address counts.
	TrustedProxies []string
}

// Auth says who may connect.
type Auth struct {
	// HMACSecret signs tokens, or HMACPreviousSecret while one is changed for
	// the other, or the keys of PublicKeyFile or JWKSURL.
	HMACSecret         Secret
	HMACPreviousSecret Secret
	// HMACSecretFile and HMACPreviousSecretFile are where these came from, if they
	// came from files, which may change.
	HMACSecretFile         string
	HMACPreviousSecretFile string
	PublicKeyFile          string
	JWKSURL                string
	// JWKSRefresh is how often the keys of JWKSURL are fetched.
	JWKSRefresh time.Duration
	// Algorithms that count; empty is all that the keys are good for.
	Algorithms []string
	// Issuer and Audience must be a token's, if they are not empty.
	Issuer, Audience string
	// Leeway is how far clocks may differ.
	Leeway time.Duration
	Claims Claims
	// Identity is claims or database.
	Identity string
	// IdentityQuery asks the database who users are, and IdentityRefresh is how
	// often those who are connected are asked for.
	IdentityQuery   string
	IdentityRefresh time.Duration
	// Tickets and TicketsPerUser bound the tickets that wait to be used.
	Tickets, TicketsPerUser int
	// StaffRoles see what concerns any cadet.
	StaffRoles []string
}

// Claims are the names of the claims that say who somebody is.
type Claims struct{ UserID, Role, CadetID, IsApproved string }

// Origins says from which sites browsers may connect.
type Origins struct {
	// Allowed are exact origins, patterns such as https://*.example.org, or *;
	// empty is the relay's own host only.
	Allowed []string
}

// Console is the page at / that shows what the relay does.
type Console struct {
	Enabled bool
}

// Retention says for how long events are kept.
type Retention struct {
	Window   time.Duration
	Interval time.Duration
}

// Drain says how the relay ends.
type Drain struct {
	Timeout time.Duration
}

// Memory bounds the part of the log that is kept in memory.
type Memory struct {
	RingEvents int
	RingBytes  int
}

// Stream is about connections.
type Stream struct {
	// Heartbeat is how often an idle connection is written to.
	Heartbeat time.Duration
	// PingInterval is the time between pings on a WebSocket.
	PingInterval time.Duration
	// WriteTimeout is how long a client may take nothing of what is written to it.
	WriteTimeout time.Duration
	// Compression compresses events for the WebSockets that offer it.
	Compression bool
}

// Log says what is logged, and how.
type Log struct {
	Level slog.Level
	// Format is text, json, or empty: text on a terminal, else json.
	Format string
}

// Secret is a text that is shown nowhere: every way of printing it prints
// [hidden]. Reveal is the one way to use it.
type Secret struct{ value string }

// NewSecret makes a secret.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal is the text itself.
func (s Secret) Reveal() string { return s.value }

// Empty reports whether there is no secret.
func (s Secret) Empty() bool { return s.value == "" }

const hidden = "[hidden]"

// String hides the text.
func (s Secret) String() string {
	if s.Empty() {
		return ""
	}
	return hidden
}

// Format hides the text, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText hides the text from JSON, YAML and slog.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue hides the text.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Warnings are settings that work and are not wise, one line each.
func (s Settings) Warnings() (lines []string) {
	// RFC 7518 §3.2: a key for HS256 must be as long as the hash, at least.
	const shortest = 32
	for _, secret := range []struct {
		path  string
		value Secret
	}{{"auth.hmac_secret", s.Auth.HMACSecret}, {"auth.hmac_previous_secret", s.Auth.HMACPreviousSecret}} {
		if n := len(secret.value.Reveal()); n > 0 && n < shortest {
			lines = append(lines, fmt.Sprintf("%s is %d bytes long; a secret of fewer than %d can be guessed: use one from `openssl rand -base64 48`", secret.path, n, shortest))
		}
	}
	if u, err := url.Parse(s.Auth.JWKSURL); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		lines = append(lines, "auth.jwks_url is not https: whoever is on the way can put in keys of their own")
	}
	for _, origin := range s.Origins.Allowed {
		if origin == "*" {
			lines = append(lines, "origins.allowed is *: pages of any site may connect with a token that they hold")
		}
	}
	return lines
}
