package configs

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

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
	// from takes the file that a secret came from; nil if that is read once.
	from func(s *Settings, path string)
}

// keys is the table of all settings.
var keys = []key{
	{path: "database.url", secret: true, allowed: "postgres://user:password@host:5432/database", set: setDatabaseURL}, //nolint:gosec // an example
	{path: "database.slot", normal: "syncrelay", allowed: "1 to 63 of a-z, 0-9 and _", set: matching(slotName, func(s *Settings) *string { return &s.Database.Slot })},
	{path: "database.publication", normal: "syncrelay", allowed: "1 to 63 characters", set: matching(publicationName, func(s *Settings) *string { return &s.Database.Publication })},
	{path: "database.owner_timeout", normal: "30s", allowed: "a duration of 1s or more, such as 30s", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Database.OwnerTimeout })},
	{path: "database.wal_warning", normal: "1GiB", allowed: "a size from 1MiB to 1TiB, such as 1GiB", set: size(1<<20, 1<<40, func(s *Settings) *int { return &s.Database.WALWarning })},
	{path: "listen.address", normal: ":8000", allowed: "host:port or :port, the port from 0 to 65535", set: address(func(s *Settings) *string { return &s.Listen.Address })},
	{path: "listen.ops_address", normal: "127.0.0.1:8001", allowed: "host:port or :port, the port from 0 to 65535", set: address(func(s *Settings) *string { return &s.Listen.OpsAddress })},
	{path: "listen.tls_cert_file", allowed: "a PEM file with the certificate and those between it and the root, together with listen.tls_key_file", set: text(func(s *Settings) *string { return &s.Listen.TLSCertFile })},
	{path: "listen.tls_key_file", allowed: "a PEM file with the certificate's private key", set: text(func(s *Settings) *string { return &s.Listen.TLSKeyFile })},
	{path: "listen.ops_tls_cert_file", allowed: "as listen.tls_cert_file, together with listen.ops_tls_key_file", set: text(func(s *Settings) *string { return &s.Listen.OpsTLSCertFile })},
	{path: "listen.ops_tls_key_file", allowed: "as listen.tls_key_file", set: text(func(s *Settings) *string { return &s.Listen.OpsTLSKeyFile })},
	{path: "listen.trusted_proxies", allowed: "a list of networks such as 10.0.0.0/8, or single addresses", set: setProxies},
	{path: "auth.hmac_secret", secret: true, allowed: "any text that is not empty", set: func(s *Settings, v string) error { s.Auth.HMACSecret = Secret{v}; return nil }, from: func(s *Settings, path string) { s.Auth.HMACSecretFile = path }},
	{path: "auth.hmac_previous_secret", secret: true, allowed: "any text that is not empty", set: func(s *Settings, v string) error { s.Auth.HMACPreviousSecret = Secret{v}; return nil }, from: func(s *Settings, path string) { s.Auth.HMACPreviousSecretFile = path }},
	{path: "auth.public_key_file", allowed: "the path of a PEM file with public keys or certificates", set: matching(anyText, func(s *Settings) *string { return &s.Auth.PublicKeyFile })},
	{path: "auth.jwks_url", allowed: "an address such as https://login.example.org/.well-known/jwks.json, without a user", set: setJWKSURL},
	{path: "auth.jwks_refresh", normal: "10m", allowed: "a duration of 1s or more, such as 10m", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Auth.JWKSRefresh })},
	{path: "auth.algorithms", allowed: "a list of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA (all that the keys are good for, if it is not set)", set: setAlgorithms},
	{path: "auth.issuer", allowed: "a text that is not empty", set: matching(anyText, func(s *Settings) *string { return &s.Auth.Issuer })},
	{path: "auth.audience", allowed: "a text that is not empty", set: matching(anyText, func(s *Settings) *string { return &s.Auth.Audience })},
	{path: "auth.leeway", normal: "0s", allowed: "a duration from 0s to 5m, such as 10s", set: setLeeway},
	{path: "auth.claims.user_id", normal: "user_id", allowed: "the name of a claim, another for each", set: matching(anyText, func(s *Settings) *string { return &s.Auth.Claims.UserID })},
	{path: "auth.claims.role", normal: "role", allowed: "the name of a claim, another for each", set: matching(anyText, func(s *Settings) *string { return &s.Auth.Claims.Role })},
	{path: "auth.claims.cadet_id", normal: "cadet_id", allowed: "the name of a claim, another for each", set: matching(anyText, func(s *Settings) *string { return &s.Auth.Claims.CadetID })},
	{path: "auth.claims.is_approved", normal: "is_approved", allowed: "the name of a claim, another for each", set: matching(anyText, func(s *Settings) *string { return &s.Auth.Claims.IsApproved })},
	{path: "auth.identity", normal: "claims", allowed: "claims or database", set: oneOf([]string{"claims", "database"}, func(s *Settings) *string { return &s.Auth.Identity })},
	{path: "auth.identity_query", normal: "SELECT id, role, cadet_id, is_approved FROM demo.users WHERE id = ANY ($1)", allowed: "a query of $1, a bigint[] of user IDs, that gives user ID, role, cadet ID or null, and approval", set: setIdentityQuery},
	{path: "auth.identity_refresh", normal: "1m", allowed: "a duration of 1s or more, such as 1m", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Auth.IdentityRefresh })},
	{path: "auth.tickets", normal: "50000", allowed: "a whole number from 1 to 100000000", set: number(func(s *Settings) *int { return &s.Auth.Tickets })},
	{path: "auth.tickets_per_user", normal: "1000", allowed: "a whole number from 1 to 100000000", set: number(func(s *Settings) *int { return &s.Auth.TicketsPerUser })},
	{path: "auth.staff_roles", normal: "admin,training_staff", allowed: "a list of roles, each 1 to 64 of letters, digits, _ and -", set: setStaffRoles},
	{path: "origins.allowed", allowed: "a list of origins such as https://grades.example.org, patterns such as https://*.example.org, or * (names in ASCII: https://xn--bcher-kva.example)", set: setOrigins},
	{path: "console.enabled", normal: "false", allowed: "true or false", set: boolean(func(s *Settings) *bool { return &s.Console.Enabled })},
	{path: "retention.window", normal: "168h", allowed: "a duration of 1s or more, such as 168h or 7d", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Retention.Window })},
	{path: "retention.interval", normal: "10m", allowed: "a duration of 100ms or more, such as 10m", set: duration(100*time.Millisecond, func(s *Settings) *time.Duration { return &s.Retention.Interval })},
	{path: "drain.timeout", normal: "15s", allowed: "a duration of 0s or more, such as 15s", set: duration(0, func(s *Settings) *time.Duration { return &s.Drain.Timeout })},
	{path: "memory.ring_events", normal: "65536", allowed: "a whole number from 1 to 100000000", set: number(func(s *Settings) *int { return &s.Memory.RingEvents })},
	{path: "memory.ring_bytes", normal: "64MiB", allowed: "a size from 1MiB to 1TiB, such as 64MiB", set: size(1<<20, 1<<40, func(s *Settings) *int { return &s.Memory.RingBytes })},
	{path: "stream.heartbeat", normal: "15s", allowed: "a duration of 1s or more, such as 15s", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Stream.Heartbeat })},
	{path: "stream.ping_interval", normal: "25s", allowed: "a duration from 1s to 30s, such as 25s", set: setPingInterval},
	{path: "stream.write_timeout", normal: "10s", allowed: "a duration of 1s or more, such as 10s", set: duration(time.Second, func(s *Settings) *time.Duration { return &s.Stream.WriteTimeout })},
	{path: "stream.compression", normal: "false", allowed: "true or false", set: boolean(func(s *Settings) *bool { return &s.Stream.Compression })},
	{path: "limits.connections", normal: "50000", allowed: allowedLimit, set: limit(func(s *Settings) *int { return &s.Limits.Connections })},
	{path: "limits.connections_per_ip", normal: "50000", allowed: allowedLimit, set: limit(func(s *Settings) *int { return &s.Limits.ConnectionsPerIP })},
	{path: "limits.connections_per_user", normal: "20000", allowed: allowedLimit, set: limit(func(s *Settings) *int { return &s.Limits.ConnectionsPerUser })},
	{path: "limits.connect_rate_per_ip", normal: "2000", allowed: allowedRate, set: rate(func(s *Settings) *float64 { return &s.Limits.ConnectRatePerIP })},
	{path: "limits.connect_burst_per_ip", normal: "50000", allowed: allowedBurst, set: number(func(s *Settings) *int { return &s.Limits.ConnectBurstPerIP })},
	{path: "limits.failed_auth_rate_per_ip", normal: "100", allowed: allowedRate, set: rate(func(s *Settings) *float64 { return &s.Limits.FailedAuthRatePerIP })},
	{path: "limits.failed_auth_burst_per_ip", normal: "10000", allowed: allowedBurst, set: number(func(s *Settings) *int { return &s.Limits.FailedAuthBurstPerIP })},
	{path: "limits.replays", normal: "50000", allowed: allowedLimit, set: limit(func(s *Settings) *int { return &s.Limits.Replays })},
	{path: "limits.replays_per_user", normal: "20000", allowed: allowedLimit, set: limit(func(s *Settings) *int { return &s.Limits.ReplaysPerUser })},
	{path: "limits.replay_rate_per_user", normal: "1000", allowed: allowedRate, set: rate(func(s *Settings) *float64 { return &s.Limits.ReplayRatePerUser })},
	{path: "limits.replay_burst_per_user", normal: "50000", allowed: allowedBurst, set: number(func(s *Settings) *int { return &s.Limits.ReplayBurstPerUser })},
	{path: "limits.replay_page_rate_per_user", normal: "250", allowed: allowedRate, set: rate(func(s *Settings) *float64 { return &s.Limits.ReplayPageRatePerUser })},
	{path: "limits.replay_page_burst_per_user", normal: "50000", allowed: allowedBurst, set: number(func(s *Settings) *int { return &s.Limits.ReplayPageBurstPerUser })},
	{path: "limits.message_bytes", normal: "4KiB", allowed: "a size from 1KiB to 31KiB, such as 4KiB", set: size(1<<10, 31<<10, func(s *Settings) *int { return &s.Limits.MessageBytes })},
	{path: "limits.message_rate", normal: "50", allowed: allowedRate, set: rate(func(s *Settings) *float64 { return &s.Limits.MessageRate })},
	{path: "limits.message_burst", normal: "500", allowed: allowedBurst, set: number(func(s *Settings) *int { return &s.Limits.MessageBurst })},
	{path: "limits.header_bytes", normal: "16KiB", allowed: "a size from 1KiB to 1MiB, such as 16KiB", set: size(1<<10, 1<<20, func(s *Settings) *int { return &s.Limits.HeaderBytes })},
	{path: "limits.header_timeout", normal: "5s", allowed: "a duration of 100ms or more, such as 5s", set: duration(100*time.Millisecond, func(s *Settings) *time.Duration { return &s.Limits.HeaderTimeout })},
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

// anyText is what an optional text must be if it is given: an empty one could only
// be a check that was left out by accident.
var anyText = regexp.MustCompile(`^[^\x00-\x1f]{1,1000}$`)

// algorithms are those of RFC 7518 and RFC 8037 that sign, but for none.
var algorithms = []string{
	"HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

func setAlgorithms(s *Settings, value string) error {
	names := list(value)
	for _, name := range names {
		if !slices.Contains(algorithms, name) {
			return errNotAllowed
		}
	}
	s.Auth.Algorithms = names
	return nil
}

func setJWKSURL(s *Settings, value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return errNotAllowed
	}
	s.Auth.JWKSURL = value
	return nil
}

func setIdentityQuery(s *Settings, value string) error {
	if !strings.Contains(value, "$1") || strings.ContainsRune(value, 0) {
		return errNotAllowed
	}
	s.Auth.IdentityQuery = value
	return nil
}

// maxLeeway is the most that clocks may differ: more would make expiry a fiction.
const maxLeeway = 5 * time.Minute

func setLeeway(s *Settings, value string) error {
	d, err := parseDuration(value)
	if err != nil || d < 0 || d > maxLeeway {
		return errNotAllowed
	}
	s.Auth.Leeway = d
	return nil
}

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

func boolean(field func(*Settings) *bool) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		if value != "true" && value != "false" {
			return errNotAllowed
		}
		*field(s) = value == "true"
		return nil
	}
}

func text(field func(*Settings) *string) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		*field(s) = value
		return nil
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

func size(least, most int, field func(*Settings) *int) func(*Settings, string) error {
	return func(s *Settings, value string) error {
		m := sizeText.FindStringSubmatch(value)
		if m == nil {
			return errNotAllowed
		}
		n, err := strconv.Atoi(m[1])
		unit := sizeUnits[m[2]]
		if err != nil || n > most/unit || n*unit < least {
			return errNotAllowed
		}
		*field(s) = n * unit
		return nil
	}
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
	if strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII }) {
		return false // browsers send such a name in its form for machines
	}
	u, err := url.Parse(strings.Replace(text, "://*.", "://", 1))
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && !strings.Contains(u.Host, "*") &&
		u.User == nil && u.Path == "" && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && !strings.HasSuffix(text, "#") && !strings.HasSuffix(text, ":")
}
