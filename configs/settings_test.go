package configs

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const secretURL = "postgres://relay:hunter2@db/grades"

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "settings.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReferenceFileListsEveryKeyWithItsDefault(t *testing.T) {
	t.Parallel()
	fromFile, err := Load("syncrelay.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(fromFile, defaults) {
		t.Errorf("the reference says %+v, the defaults are %+v", fromFile, defaults)
	}
	text, err := os.ReadFile("syncrelay.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		name := k.path[strings.LastIndex(k.path, ".")+1:]
		line := "\n" + strings.Repeat("  ", strings.Count(k.path, "."))
		if k.normal == "" {
			line += "# "
		}
		line += name + ":"
		if !strings.Contains(string(text), line) {
			t.Errorf("the reference lacks %q", line)
		}
	}
}

func TestReadmeListsEveryKey(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), table()) {
		t.Errorf("the README's table of settings should be:\n%s", table())
	}
}

func table() string {
	var b strings.Builder
	for _, k := range keys {
		normal := "none"
		if k.normal != "" {
			normal = "`" + k.normal + "`"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", k.path, k.environment(), normal, k.allowed)
	}
	return b.String()
}

func TestContractNamesAndDefaults(t *testing.T) {
	t.Parallel()
	s, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Settings{
		Database: Database{Slot: "syncrelay", Publication: "syncrelay", OwnerTimeout: 30 * time.Second, WALWarning: 1 << 30},
		Listen:   Listen{Address: ":8000", OpsAddress: "127.0.0.1:8001"},
		Auth: Auth{
			Identity: "claims", StaffRoles: []string{"admin", "training_staff"}, JWKSRefresh: 10 * time.Minute,
			IdentityQuery: "SELECT id, role, cadet_id, is_approved FROM demo.users WHERE id = ANY ($1)", IdentityRefresh: time.Minute, Tickets: 50_000, TicketsPerUser: 1_000,
			Claims: Claims{UserID: "user_id", Role: "role", CadetID: "cadet_id", IsApproved: "is_approved"},
		},
		Retention: Retention{Window: 168 * time.Hour, Interval: 10 * time.Minute},
		Drain:     Drain{Timeout: 15 * time.Second},
		Memory:    Memory{RingEvents: 65536, RingBytes: 64 << 20},
		Stream:    Stream{Heartbeat: 15 * time.Second, PingInterval: 25 * time.Second, WriteTimeout: 10 * time.Second},
		Limits: Limits{
			Connections: 50_000, ConnectionsPerIP: 50_000, ConnectionsPerUser: 20_000, ConnectRatePerIP: 2_000, ConnectBurstPerIP: 50_000,
			FailedAuthRatePerIP: 100, FailedAuthBurstPerIP: 10_000, Replays: 50_000, ReplaysPerUser: 20_000, ReplayRatePerUser: 1_000,
			ReplayBurstPerUser: 50_000, ReplayPageRatePerUser: 250, ReplayPageBurstPerUser: 50_000, MessageBytes: 4096, MessageRate: 50,
			MessageBurst: 500, HeaderBytes: 16 << 10, HeaderTimeout: 5 * time.Second,
		},
		Log: Log{Level: slog.LevelInfo},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

func TestEnvironmentWinsOverFileOverDefault(t *testing.T) {
	t.Parallel()
	file := write(t, "database:\n  slot: from_file\n  publication: from_file\norigins:\n  allowed: [\"https://a.example.org\", 'https://*.example.org']\nretention: {window: 7d}\n")
	s, err := Load(file, []string{"SYNCRELAY_DATABASE_SLOT=from_env", "SYNCRELAY_ORIGINS_ALLOWED=", "OTHER=1", "SYNCRELAY_TEST_X=1", "SYNCRELAY_MEMORY_RING_BYTES=2GiB"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Database.Slot != "from_env" || s.Database.Publication != "from_file" || s.Listen.Address != ":8000" ||
		len(s.Origins.Allowed) != 0 || s.Retention.Window != 168*time.Hour || s.Memory.RingBytes != 2<<30 {
		t.Errorf("got %+v", s)
	}
}

func TestEveryKeyCanComeFromTheEnvironment(t *testing.T) {
	t.Parallel()
	values := map[string]string{
		"database.url": secretURL, "database.slot": "s2", "database.publication": "p2", "database.owner_timeout": "3s", "database.wal_warning": "2MiB", "listen.address": "0.0.0.0:9000",
		"listen.ops_address": "[::1]:9001", "auth.hmac_secret": "x", "auth.identity": "database",
		"auth.hmac_previous_secret": "y", "auth.public_key_file": "/etc/keys.pem", "auth.jwks_url": "https://login.example.org/keys", "auth.jwks_refresh": "1m",
		"auth.algorithms": "RS256, EdDSA", "auth.issuer": "https://login.example.org/", "auth.audience": "grades", "auth.leeway": "5m", "auth.identity_query": "SELECT * FROM people($1)", "auth.identity_refresh": "30s", "auth.tickets": "5", "auth.tickets_per_user": "1",
		"auth.claims.user_id": "sub", "auth.claims.role": "https://grades.example.org/role", "auth.claims.cadet_id": "cadet", "auth.claims.is_approved": "approved", "auth.staff_roles": "a, b-c",
		"origins.allowed": "https://a.example.org, https://*.b.example.org:8443", "retention.window": "2s", "retention.interval": "100ms",
		"drain.timeout": "0s", "memory.ring_events": "5", "memory.ring_bytes": "1048576", "stream.heartbeat": "1s", "log.level": "debug", "log.format": "json",
		"listen.tls_cert_file": "c.pem", "listen.tls_key_file": "k.pem", "listen.ops_tls_cert_file": "c.pem", "listen.ops_tls_key_file": "k.pem",
		"listen.trusted_proxies": "10.0.0.0/8, ::1", "stream.ping_interval": "30s", "stream.write_timeout": "1s", "stream.compression": "true",
		"limits.connections": "0", "limits.connections_per_ip": "1", "limits.connections_per_user": "1", "limits.connect_rate_per_ip": "0.5",
		"limits.connect_burst_per_ip": "1", "limits.failed_auth_rate_per_ip": "0", "limits.failed_auth_burst_per_ip": "1", "limits.replays": "1",
		"limits.replays_per_user": "1", "limits.replay_rate_per_user": "1", "limits.replay_burst_per_user": "1", "limits.replay_page_rate_per_user": "1",
		"limits.replay_page_burst_per_user": "1", "limits.message_bytes": "8KiB", "limits.message_rate": "1", "limits.message_burst": "1",
		"limits.header_bytes": "1KiB", "limits.header_timeout": "1s", "console.enabled": "true",
	}
	defaults, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		s, err := Load("", []string{k.environment() + "=" + values[k.path]})
		if err != nil && !strings.Contains(err.Error(), "both or none") {
			t.Errorf("%s=%s: %v", k.environment(), values[k.path], err)
		}
		if reflect.DeepEqual(s, defaults) {
			t.Errorf("%s=%s changed nothing", k.environment(), values[k.path])
		}
	}
}

func TestBadSettingsAreOneLineEachWithKeyFoundAndAllowed(t *testing.T) {
	t.Parallel()
	empty := write(t, "")
	for name, c := range map[string]struct {
		file string
		env  []string
		want []string
	}{
		"an unknown key":              {file: "databse:\n  url: x\n", want: []string{"databse.url (", ":2): unknown key", "did you mean database.url?"}},
		"an unknown key in a section": {file: "log:\n  levl: info\n", want: []string{"log.levl", ":2)", "did you mean log.level?"}},
		"an unknown variable":         {env: []string{"SYNCRELAY_DATABASE_URI=x"}, want: []string{"SYNCRELAY_DATABASE_URI (environment): unknown key", "did you mean SYNCRELAY_DATABASE_URL?"}},
		"a section that is a value":   {file: "database: x\n", want: []string{"database (", ":1): unknown key"}},
		"a value that is a section":   {file: "log:\n  level:\n    a: b\n", want: []string{"log.level.a"}},
		"not YAML":                    {file: "a: [\n", want: []string{"settings.yaml: not YAML", "line"}},
		"a key twice":                 {file: "log:\n  level: info\n  level: warn\n", want: []string{"already defined", "line 3"}},
		"a list at the top":           {file: "- a\n", want: []string{"not a YAML map"}},
		"a bad slot":                  {env: []string{"SYNCRELAY_DATABASE_SLOT=Sync-Relay"}, want: []string{"database.slot (environment SYNCRELAY_DATABASE_SLOT)", `found "Sync-Relay"`, "a-z, 0-9 and _"}},
		"a bad slot in the file":      {file: "database:\n  slot: ''\n", want: []string{"database.slot (", "settings.yaml:2)", `found ""`}},
		"a bad publication":           {env: []string{"SYNCRELAY_DATABASE_PUBLICATION=" + strings.Repeat("x", 64)}, want: []string{"database.publication", "1 to 63"}},
		"a bad address":               {env: []string{"SYNCRELAY_LISTEN_ADDRESS=8000"}, want: []string{"listen.address", `found "8000"`, "host:port"}},
		"a bad port":                  {env: []string{"SYNCRELAY_LISTEN_OPS_ADDRESS=:99999"}, want: []string{"listen.ops_address", "65535"}},
		"the same address twice":      {env: []string{"SYNCRELAY_LISTEN_OPS_ADDRESS=:8000"}, want: []string{"listen.ops_address", "another address"}},
		"a bad identity":              {env: []string{"SYNCRELAY_AUTH_IDENTITY=ldap"}, want: []string{"auth.identity", `found "ldap"`, "claims or database"}},
		"a query of nobody":           {env: []string{"SYNCRELAY_AUTH_IDENTITY_QUERY=SELECT 1"}, want: []string{"auth.identity_query", `found "SELECT 1"`, "$1"}},
		"a refresh too often":         {env: []string{"SYNCRELAY_AUTH_IDENTITY_REFRESH=0s"}, want: []string{"auth.identity_refresh", `found "0s"`, "1s or more"}},
		"a bad role":                  {env: []string{"SYNCRELAY_AUTH_STAFF_ROLES=a b"}, want: []string{"auth.staff_roles", `found "a b"`}},
		"a bad algorithm":             {env: []string{"SYNCRELAY_AUTH_ALGORITHMS=HS256,none"}, want: []string{"auth.algorithms", `found "HS256,none"`, "HS512"}},
		"an empty key file":           {env: []string{"SYNCRELAY_AUTH_PUBLIC_KEY_FILE="}, want: []string{"auth.public_key_file", `found ""`, "PEM"}},
		"an empty issuer":             {env: []string{"SYNCRELAY_AUTH_ISSUER="}, want: []string{"auth.issuer", `found ""`, "not empty"}},
		"an empty audience":           {env: []string{"SYNCRELAY_AUTH_AUDIENCE="}, want: []string{"auth.audience", `found ""`, "not empty"}},
		"a key set's path":            {env: []string{"SYNCRELAY_AUTH_JWKS_URL=/keys"}, want: []string{"auth.jwks_url", `found "/keys"`, "https://"}},
		"a key set in a file":         {env: []string{"SYNCRELAY_AUTH_JWKS_URL=file:///keys"}, want: []string{"auth.jwks_url", "https://"}},
		"a key set and a user":        {env: []string{"SYNCRELAY_AUTH_JWKS_URL=https://a:b@login.example.org/"}, want: []string{"auth.jwks_url", "without a user"}},
		"a key set too often":         {env: []string{"SYNCRELAY_AUTH_JWKS_REFRESH=1ms"}, want: []string{"auth.jwks_refresh", "1s or more"}},
		"a leeway of an hour":         {env: []string{"SYNCRELAY_AUTH_LEEWAY=1h"}, want: []string{"auth.leeway", `found "1h"`, "0s to 5m"}},
		"a claim for two things":      {env: []string{"SYNCRELAY_AUTH_CLAIMS_ROLE=user_id"}, want: []string{"auth.claims.role", `found "user_id"`, "is auth.claims.user_id too"}},
		"a claim with a meaning":      {env: []string{"SYNCRELAY_AUTH_CLAIMS_CADET_ID=exp"}, want: []string{"auth.claims.cadet_id", `found "exp"`, "meaning of its own"}},
		"an unknown claim":            {file: "auth:\n  claims:\n    user: sub\n", want: []string{"auth.claims.user (", ":3): unknown key"}},
		"an old secret and its file":  {env: []string{"SYNCRELAY_AUTH_HMAC_PREVIOUS_SECRET=hunter2", "SYNCRELAY_AUTH_HMAC_PREVIOUS_SECRET_FILE=/x"}, want: []string{"auth.hmac_previous_secret", "one of them"}},
		"an origin with a path":       {env: []string{"SYNCRELAY_ORIGINS_ALLOWED=https://a.example.org/x"}, want: []string{"origins.allowed", "https://grades.example.org"}},
		"an origin without its port":  {env: []string{"SYNCRELAY_ORIGINS_ALLOWED=https://a.example.org:"}, want: []string{"origins.allowed"}},
		"an origin without scheme":    {env: []string{"SYNCRELAY_ORIGINS_ALLOWED=a.example.org"}, want: []string{"origins.allowed"}},
		"a pattern in the middle":     {env: []string{"SYNCRELAY_ORIGINS_ALLOWED=https://a.*.example.org"}, want: []string{"origins.allowed"}},
		"a duration without unit":     {env: []string{"SYNCRELAY_RETENTION_WINDOW=7"}, want: []string{"retention.window", `found "7"`, "168h or 7d"}},
		"a duration below 0":          {env: []string{"SYNCRELAY_RETENTION_INTERVAL=-1s"}, want: []string{"retention.interval", "100ms or more"}},
		"a bad drain":                 {env: []string{"SYNCRELAY_DRAIN_TIMEOUT=soon"}, want: []string{"drain.timeout", `found "soon"`}},
		"a bad heartbeat":             {env: []string{"SYNCRELAY_STREAM_HEARTBEAT=1ms"}, want: []string{"stream.heartbeat", "1s or more"}},
		"a certificate without key":   {env: []string{"SYNCRELAY_LISTEN_TLS_CERT_FILE=x"}, want: []string{"listen.tls_key_file", "both or none"}},
		"an ops key without its pair": {env: []string{"SYNCRELAY_LISTEN_OPS_TLS_KEY_FILE=x"}, want: []string{"listen.ops_tls_cert_file", "both or none"}},
		"a bad proxy":                 {env: []string{"SYNCRELAY_LISTEN_TRUSTED_PROXIES=10.0.0.0/8,proxy"}, want: []string{"listen.trusted_proxies", "10.0.0.0/8"}},
		"a bad ping interval":         {env: []string{"SYNCRELAY_STREAM_PING_INTERVAL=31s"}, want: []string{"stream.ping_interval", "1s to 30s"}},
		"a bad limit":                 {env: []string{"SYNCRELAY_LIMITS_CONNECTIONS=-1"}, want: []string{"limits.connections", "0 for no limit"}},
		"a bad rate":                  {env: []string{"SYNCRELAY_LIMITS_MESSAGE_RATE=NaN"}, want: []string{"limits.message_rate", "0 for no limit"}},
		"a long message":              {env: []string{"SYNCRELAY_LIMITS_MESSAGE_BYTES=1MiB"}, want: []string{"limits.message_bytes", "31KiB"}},
		"a bad number":                {env: []string{"SYNCRELAY_MEMORY_RING_EVENTS=0"}, want: []string{"memory.ring_events", `found "0"`}},
		"a bad size":                  {env: []string{"SYNCRELAY_MEMORY_RING_BYTES=1 cup"}, want: []string{"memory.ring_bytes", `found "1 cup"`, "64MiB"}},
		"a bad level":                 {env: []string{"SYNCRELAY_LOG_LEVEL=loud"}, want: []string{"log.level", `found "loud"`, "debug, info, warn or error"}},
		"a bad format":                {env: []string{"SYNCRELAY_LOG_FORMAT=xml"}, want: []string{"log.format", `found "xml"`, "text or json"}},
		"a bad URL":                   {env: []string{"SYNCRELAY_DATABASE_URL=postgres://relay:hunter2@db:port/x"}, want: []string{"database.url", "postgres://user:password@host"}},
		"an empty secret":             {env: []string{"SYNCRELAY_AUTH_HMAC_SECRET="}, want: []string{"auth.hmac_secret", "found an empty text"}},
		"a secret and its file":       {env: []string{"SYNCRELAY_AUTH_HMAC_SECRET=hunter2", "SYNCRELAY_AUTH_HMAC_SECRET_FILE=/x"}, want: []string{"auth.hmac_secret", "one of them"}},
		"a secret's file is missing":  {env: []string{"SYNCRELAY_AUTH_HMAC_SECRET_FILE=/nowhere/secret"}, want: []string{"auth.hmac_secret_file", "no such file"}},
		"a secret's file is empty":    {env: []string{"SYNCRELAY_AUTH_HMAC_SECRET_FILE=" + empty}, want: []string{"auth.hmac_secret_file", "is empty"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := ""
			if c.file != "" {
				file = write(t, c.file)
			}
			_, err := Load(file, c.env)
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("not one line, or a secret in it: %q", err)
			}
		})
	}
}

func TestEveryMistakeIsReported(t *testing.T) {
	t.Parallel()
	_, err := Load(write(t, "log: {level: loud, format: xml}\n"), []string{"SYNCRELAY_X=1"})
	if n := len(strings.Split(err.Error(), "\n")); n != 3 {
		t.Errorf("%d lines, want 3: %v", n, err)
	}
}

func TestMissingFileAndMissingRequiredKeysAreNamed(t *testing.T) {
	t.Parallel()
	if _, err := Load("/nowhere/settings.yaml", nil); err == nil || !strings.Contains(err.Error(), "/nowhere/settings.yaml") {
		t.Errorf("got %v", err)
	}
	s, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Require("database.url", "auth.hmac_secret")
	for _, want := range []string{"database.url (environment SYNCRELAY_DATABASE_URL): found nothing", "auth.hmac_secret (environment SYNCRELAY_AUTH_HMAC_SECRET): found nothing"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestSecretsComeFromFilesAndAreShownNowhere(t *testing.T) {
	t.Parallel()
	s, err := Load("", []string{"SYNCRELAY_AUTH_HMAC_SECRET_FILE=" + write(t, "hunter2\n"), "SYNCRELAY_DATABASE_URL=" + secretURL})
	if err != nil {
		t.Fatal(err)
	}
	if s.Auth.HMACSecret.Reveal() != "hunter2" || s.Database.URL.Reveal() != secretURL {
		t.Fatal("the secrets were not read")
	}
	asJSON, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("settings", "all", s, "secret", s.Auth.HMACSecret)
	for _, shown := range []string{string(asJSON), logged.String(), fmt.Sprint(s), fmt.Sprintf("%+v %#v %s %q %x", s, s, s.Auth.HMACSecret, s.Auth.HMACSecret, s.Auth.HMACSecret)} {
		if strings.Contains(shown, "hunter2") || strings.Contains(shown, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("a secret is shown: %s", shown)
		}
	}
	if w := s.Warnings(); len(w) != 1 || !strings.Contains(w[0], "7 bytes") {
		t.Errorf("warnings %v, want one of the short secret", w)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add("log: {level: info}", "SYNCRELAY_DATABASE_SLOT", "x")
	f.Add("a: &a [*a]", "SYNCRELAY_MEMORY_RING_BYTES", "9999999999999 TiB")
	f.Add("? [a]: b", "SYNCRELAY_ORIGINS_ALLOWED", "https://*.*")
	f.Fuzz(func(t *testing.T, text, name, value string) {
		path := filepath.Join(t.TempDir(), "f.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Load(path, []string{name + "=" + value})
		if err == nil && (s.Database.Slot == "" || s.Retention.Window <= 0 || s.Memory.RingBytes < 1<<20) {
			t.Errorf("taken without an error: %+v", s)
		}
	})
}

func TestVariablesOfAKubernetesServiceOfTheRelaysNameAreNoSettings(t *testing.T) {
	t.Parallel()
	service := []string{
		"SYNCRELAY_SERVICE_HOST=10.0.0.11", "SYNCRELAY_SERVICE_PORT=8000", "SYNCRELAY_SERVICE_PORT_HTTP=8000", "SYNCRELAY_PORT=tcp://10.0.0.11:8000",
		"SYNCRELAY_PORT_8000_TCP=tcp://10.0.0.11:8000", "SYNCRELAY_PORT_8000_TCP_PROTO=tcp", "SYNCRELAY_PORT_8000_TCP_PORT=8000",
		"SYNCRELAY_PORT_8000_TCP_ADDR=10.0.0.11", "SYNCRELAY_PORT_53_UDP=udp://10.0.0.11:53",
	}
	if _, err := Load("", service); err != nil {
		t.Errorf("they stop the start: %v", err)
	}
	for _, slip := range []string{"SYNCRELAY_PORT=8000", "SYNCRELAY_SERVICE=x", "SYNCRELAY_SERVICE_HOSTS=x", "SYNCRELAY_PORT_TCP=x", "SYNCRELAY_PORT_8000_TCP_HOST=x", "SYNCRELAY_LISTEN_PORT=8000"} {
		if _, err := Load("", []string{slip}); err == nil || !strings.Contains(err.Error(), "unknown key") {
			t.Errorf("%s: got %v, want an unknown key", slip, err)
		}
	}
}

func TestNamesThatNoBrowserSendsAndHalfMappedNetworksAreRefused(t *testing.T) {
	t.Parallel()
	for entry, good := range map[string]bool{
		"SYNCRELAY_ORIGINS_ALLOWED=https://bücher.example": false, "SYNCRELAY_ORIGINS_ALLOWED=https://*.bücher.example": false,
		"SYNCRELAY_ORIGINS_ALLOWED=https://xn--bcher-kva.example": true,
		"SYNCRELAY_LISTEN_TRUSTED_PROXIES=::ffff:10.0.0.0/104":    true, "SYNCRELAY_LISTEN_TRUSTED_PROXIES=::ffff:10.0.0.1": true,
		"SYNCRELAY_LISTEN_TRUSTED_PROXIES=::ffff:0.0.0.0/95": false, "SYNCRELAY_LISTEN_TRUSTED_PROXIES=::/0": true,
	} {
		if _, err := Load("", []string{entry}); (err == nil) != good {
			t.Errorf("%s: got %v", entry, err)
		}
	}
}
