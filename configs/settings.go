package configs

import (
	"fmt"
	"log/slog"
	"time"
)

// Settings are all settings, checked. Section 2 of the contract fixes the names
// of the most important ones.
type Settings struct {
	Database  Database
	Listen    Listen
	Auth      Auth
	Origins   Origins
	Retention Retention
	Drain     Drain
	Memory    Memory
	Stream    Stream
	Log       Log
}

// Database is the database that the relay reads from and keeps its journal in.
type Database struct {
	URL         Secret
	Slot        string
	Publication string
}

// Listen says where the relay listens.
type Listen struct {
	// Address is for clients, OpsAddress for metrics and profiles.
	Address    string
	OpsAddress string
}

// Auth says who may connect.
type Auth struct {
	HMACSecret Secret
	// Identity is claims or database.
	Identity string
	// StaffRoles see what concerns any cadet.
	StaffRoles []string
}

// Origins says from which sites browsers may connect.
type Origins struct {
	// Allowed are exact origins, patterns such as https://*.example.org, or *;
	// empty is the relay's own host only.
	Allowed []string
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

// Warnings are settings that work and are not wise, one line each.
func (s Settings) Warnings() (lines []string) {
	// RFC 7518 §3.2: a key for HS256 must be as long as the hash, at least.
	const shortest = 32
	if n := len(s.Auth.HMACSecret.Reveal()); n > 0 && n < shortest {
		lines = append(lines, fmt.Sprintf("auth.hmac_secret is %d bytes long; a secret of fewer than %d can be guessed: use one from `openssl rand -base64 48`", n, shortest))
	}
	for _, origin := range s.Origins.Allowed {
		if origin == "*" {
			lines = append(lines, "origins.allowed is *: pages of any site may connect with a token that they hold")
		}
	}
	return lines
}
