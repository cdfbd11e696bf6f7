package configs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// key is one setting. All values are texts until set has parsed them, so that
// the file and the environment follow one rule.
type key struct {
	path string
	// normal is the default, as one would write it; empty if there is none.
	normal string
	// secret values can also come from a file (path_file) and are never shown.
	secret bool
	// allowed ends the sentence "allowed is …".
	allowed string
	set     func(s *Settings, value string) error
}

// keys is the table of all settings.
var keys = []key{
	{path: "database.url", secret: true, allowed: "postgres://user:password@host:5432/database", set: setDatabaseURL}, //nolint:gosec // an example
	{path: "database.slot", normal: "syncrelay", allowed: "1 to 63 of a-z, 0-9 and _", set: matching(slotName, func(s *Settings) *string { return &s.Database.Slot })},
	{path: "database.publication", normal: "syncrelay", allowed: "1 to 63 characters", set: matching(publicationName, func(s *Settings) *string { return &s.Database.Publication })},
	{path: "listen.address", normal: ":8000", allowed: "host:port or :port, the port from 0 to 65535", set: address(func(s *Settings) *string { return &s.Listen.Address })},
	{path: "listen.ops_address", normal: "127.0.0.1:8001", allowed: "host:port or :port, the port from 0 to 65535", set: address(func(s *Settings) *string { return &s.Listen.OpsAddress })},
	{path: "auth.hmac_secret", secret: true, allowed: "any text that is not empty", set: func(s *Settings, v string) error { s.Auth.HMACSecret = Secret{v}; return nil }},
	{path: "auth.identity", normal: "claims", allowed: "claims or database", set: oneOf([]string{"claims", "database"}, func(s *Settings) *string { return &s.Auth.Identity })},
	{path: "auth.staff_roles", normal: "admin,training_staff", allowed: "a list of roles, each 1 to 64 of letters, digits, _ and -", set: setStaffRoles},
	{path: "origins.allowed", allowed: "a list of origins such as https://grades.example.org, patterns such as https://*.example.org, or *", set: setOrigins},
	{path: "retention.window", normal: "168h", allowed: "a duration of 1s or more, such as 168h or 7d", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Retention.Window })},
	{path: "retention.interval", normal: "10m", allowed: "a duration of 100ms or more, such as 10m", set: duration(100*time.Millisecond, func(s *Settings) *time.Duration { return &s.Retention.Interval })},
	{path: "drain.timeout", normal: "15s", allowed: "a duration of 0s or more, such as 15s", set: duration(0, func(s *Settings) *time.Duration { return &s.Drain.Timeout })},
	{path: "memory.ring_events", normal: "65536", allowed: "a whole number from 1 to 100000000", set: number(func(s *Settings) *int { return &s.Memory.RingEvents })},
	{path: "memory.ring_bytes", normal: "64MiB", allowed: "a size from 1MiB to 1TiB, such as 64MiB", set: setRingBytes},
	{path: "stream.heartbeat", normal: "15s", allowed: "a duration of 1s or more, such as 15s", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Stream.Heartbeat })},
	{path: "log.level", normal: "info", allowed: "debug, info, warn or error", set: setLevel},
	{path: "log.format", allowed: "text or json (text on a terminal, else json, if it is not set)", set: oneOf([]string{"text", "json", ""}, func(s *Settings) *string { return &s.Log.Format })},
}

// environment is the name of the key's environment variable.
func (k key) environment() string { return variable(k.path) }

// variablePrefix begins the name of every environment variable that is a setting.
const variablePrefix = "SYNCRELAY_"

func variable(path string) string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

// fileSuffix makes the key that names a file with a secret in it.
const fileSuffix = "_file"

// errNotAllowed: the value is none of what is allowed.
var errNotAllowed = errors.New("not allowed")

var (
	slotName        = regexp.MustCompile(`^[a-z0-9_]{1,63}$`) // pg_create_logical_replication_slot
	publicationName = regexp.MustCompile(`^[^\x00-\x1f]{1,63}$`)
	roleName        = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`) // the contract, section 6
)

func setDatabaseURL(s *Settings, value string) error {
	// The parser's own error holds the value, and so the password.
	if _, err := pgconn.ParseConfig(value); err != nil {
		return errNotAllowed
	}
	s.Database.URL = Secret{value}
	return nil
}

func matching(pattern *regexp.Regexp, field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if !pattern.MatchString(value) {
			return errNotAllowed
		}
		*field(s) = value
		return nil
	}
}

func oneOf(allowed []string, field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		for _, a := range allowed {
			if value == a {
				*field(s) = value
				return nil
			}
		}
		return errNotAllowed
	}
}

func address(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		_, port, err := net.SplitHostPort(value)
		if err != nil {
			return errNotAllowed
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return errNotAllowed
		}
		*field(s) = value
		return nil
	}
}

func duration(least time.Duration, field func(*Settings) *time.Duration) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		d, err := parseDuration(value)
		if err != nil || d < least {
			return errNotAllowed
		}
		*field(s) = d
		return nil
	}
}

// parseDuration is time.ParseDuration, and days.
func parseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("count the days: %w", err)
		}
		return time.Duration(n) * 24 * time.Hour, nil
	}
	return time.ParseDuration(text)
}

func number(field func(*Settings) *int) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 100_000_000 {
			return errNotAllowed
		}
		*field(s) = n
		return nil
	}
}

var sizeText = regexp.MustCompile(`^(\d{1,15})\s*(|B|kB|KB|KiB|MB|MiB|GB|GiB|TiB)$`)

var sizeUnits = map[string]int{
	"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "KiB": 1 << 10, "MB": 1e6, "MiB": 1 << 20, "GB": 1e9, "GiB": 1 << 30, "TiB": 1 << 40,
}

func setRingBytes(s *Settings, value string) error {
	m := sizeText.FindStringSubmatch(value)
	if m == nil {
		return errNotAllowed
	}
	n, err := strconv.Atoi(m[1])
	unit := sizeUnits[m[2]]
	if err != nil || n > 1<<40/unit || n*unit < 1<<20 {
		return errNotAllowed
	}
	s.Memory.RingBytes = n * unit
	return nil
}

func setLevel(s *Settings, value string) error {
	level, ok := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}[value]
	if !ok {
		return errNotAllowed
	}
	s.Log.Level = level
	return nil
}

// list splits a value at its commas.
func list(value string) (items []string) {
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func setStaffRoles(s *Settings, value string) error {
	roles := list(value)
	for _, role := range roles {
		if !roleName.MatchString(role) {
			return errNotAllowed
		}
	}
	s.Auth.StaffRoles = roles
	return nil
}

func setOrigins(s *Settings, value string) error {
	origins := list(value)
	for _, origin := range origins {
		if !validOrigin(origin) {
			return errNotAllowed
		}
	}
	s.Origins.Allowed = origins
	return nil
}

// validOrigin reports whether a text is *, an origin, or a pattern of origins
// whose first label is *.
func validOrigin(text string) bool {
	if text == "*" {
		return true
	}
	u, err := url.Parse(strings.Replace(text, "://*.", "://", 1))
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && !strings.Contains(u.Host, "*") &&
		u.User == nil && u.Path == "" && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && !strings.HasSuffix(text, "#")
}
