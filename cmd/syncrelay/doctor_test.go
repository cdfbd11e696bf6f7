package main

import (
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/outbox"
)

// examine runs doctor, as a program does.
func examine(t testing.TB, environ []string, args ...string) report {
	t.Helper()
	var out, errs output
	code := run(t.Context(), append([]string{"doctor", "--json"}, args...), streams{&out, &errs, environ})
	var r report
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	if (code != 0) != (r.Fails > 0) {
		t.Errorf("exit code %d, with %d that fail", code, r.Fails)
	}
	return r
}

// local are settings with which nothing fails on this machine.
func local(databaseURL string) []string {
	return []string{
		"SYNCRELAY_DATABASE_URL=" + databaseURL, "SYNCRELAY_AUTH_HMAC_SECRET=" + testSecret, "SYNCRELAY_LIMITS_CONNECTIONS=1000",
		"SYNCRELAY_LISTEN_ADDRESS=127.0.0.1:0", "SYNCRELAY_LISTEN_OPS_ADDRESS=127.0.0.1:0",
	}
}

// pair writes a certificate and its key into files.
func pair(t *testing.T, until time.Time) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: until.Add(-48 * time.Hour), NotAfter: until, DNSNames: []string{"localhost"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

func TestDoctorNamesWhatIsWrongWithTheSettings(t *testing.T) {
	t.Parallel()
	databaseURL := newDatabase(t).url
	certFile, keyFile := pair(t, time.Now().Add(365*24*time.Hour))
	_, otherKey := pair(t, time.Now().Add(365*24*time.Hour))
	soonCert, soonKey := pair(t, time.Now().Add(24*time.Hour))
	oldCert, oldKey := pair(t, time.Now().Add(-time.Hour))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := func(text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "settings.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	secretless := slices.Clip(slices.DeleteFunc(local(databaseURL), func(entry string) bool { return strings.HasPrefix(entry, "SYNCRELAY_AUTH_HMAC_SECRET=") }))
	for _, c := range []struct {
		environ []string
		args    []string
		check   string
		state   outbox.CheckState
		found   string
		mend    string
	}{
		{local(databaseURL), nil, "settings", outbox.CheckOK, "the settings of the environment can be used", ""},
		{append(local(databaseURL), "SYNCRELAY_DATABSE_SLOT=x"), nil, "settings", outbox.CheckFails, "SYNCRELAY_DATABSE_SLOT (environment): unknown key; did you mean SYNCRELAY_DATABASE_SLOT?", ""},
		{append(local(databaseURL), "SYNCRELAY_RETENTION_WINDOW=long"), nil, "settings", outbox.CheckFails, `retention.window (environment SYNCRELAY_RETENTION_WINDOW): found "long"; allowed is a duration`, ""},
		{local(databaseURL), []string{"--config", file("log: [")}, "settings", outbox.CheckFails, "not YAML", ""},
		{local(databaseURL), []string{"--config", "/nowhere"}, "settings", outbox.CheckFails, "open /nowhere", ""},
		{local(databaseURL)[1:], nil, "settings", outbox.CheckFails, "database.url (environment SYNCRELAY_DATABASE_URL): found nothing", ""},
		{secretless, nil, "settings", outbox.CheckFails, "auth.hmac_secret (environment SYNCRELAY_AUTH_HMAC_SECRET): found nothing", ""},
		{append(local(databaseURL), "SYNCRELAY_AUTH_HMAC_SECRET=short"), nil, "settings", outbox.CheckWarning, "auth.hmac_secret is 5 bytes long", "openssl rand -base64 48"},
		{append(local(databaseURL), "SYNCRELAY_DATABASE_URL=mysql://u:hunter2@db/x"), nil, "settings", outbox.CheckFails, "database.url", ""},
		{append(secretless, "SYNCRELAY_AUTH_PUBLIC_KEY_FILE=/nowhere"), nil, "token_keys", outbox.CheckFails, "open /nowhere", "correct the setting"},
		{append(secretless, "SYNCRELAY_AUTH_PUBLIC_KEY_FILE="+keyFile), nil, "token_keys", outbox.CheckFails, "which the relay must not have", "correct the setting"},
		{append(secretless, "SYNCRELAY_AUTH_PUBLIC_KEY_FILE="+certFile), nil, "token_keys", outbox.CheckOK, "1 public key(s) of " + certFile, ""},
		{append(secretless, "SYNCRELAY_AUTH_JWKS_URL=http://127.0.0.1:1/nobody"), nil, "token_keys", outbox.CheckFails, "can't be fetched", "http://127.0.0.1:1/nobody"},
		{append(local(databaseURL), "SYNCRELAY_AUTH_JWKS_URL=http://127.0.0.1:1/nobody"), nil, "token_keys", outbox.CheckWarning, "can't be fetched", "http://127.0.0.1:1/nobody"},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_TLS_CERT_FILE="+certFile, "SYNCRELAY_LISTEN_TLS_KEY_FILE="+keyFile), nil, "tls_certificate", outbox.CheckOK, "is good until", ""},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_TLS_CERT_FILE="+certFile, "SYNCRELAY_LISTEN_TLS_KEY_FILE="+otherKey), nil, "tls_certificate", outbox.CheckFails, "private key does not match", "correct listen.tls_cert_file"},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_TLS_CERT_FILE=/nowhere", "SYNCRELAY_LISTEN_TLS_KEY_FILE="+keyFile), nil, "tls_certificate", outbox.CheckFails, "open /nowhere", "make the files readable"},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_TLS_CERT_FILE="+soonCert, "SYNCRELAY_LISTEN_TLS_KEY_FILE="+soonKey), nil, "tls_certificate", outbox.CheckWarning, "ends soon", "renew it"},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_OPS_TLS_CERT_FILE="+oldCert, "SYNCRELAY_LISTEN_OPS_TLS_KEY_FILE="+oldKey), nil, "ops_tls_certificate", outbox.CheckFails, "has ended", "renew it"},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_ADDRESS="+taken.Addr().String()), nil, "listen_address", outbox.CheckFails, "address already in use", "set listen.address to another address"},
		{append(local(databaseURL), "SYNCRELAY_LISTEN_OPS_ADDRESS="+taken.Addr().String()), nil, "listen_ops_address", outbox.CheckFails, "address already in use", "set listen.ops_address to another address"},
		{append(local(databaseURL), "SYNCRELAY_LIMITS_CONNECTIONS=100000000"), nil, "open_files", outbox.CheckWarning, "limits.connections is 100000000", "LimitNOFILE=125000200"},
		{local("postgres://u:hunter2@127.0.0.1:1/x"), nil, "database", outbox.CheckFails, "the database at 127.0.0.1:1 can't be reached", "start it, or correct database.url"},
	} {
		r := examine(t, c.environ, c.args...)
		got := find(r, c.check)
		if got.State != c.state || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Mend, c.mend) {
			t.Errorf("%s is %s, %q, %q; want %s, %q, %q", c.check, got.State, got.Found, got.Mend, c.state, c.found, c.mend)
		}
		if text := fmt.Sprint(r); strings.Contains(text, "hunter2") || strings.Contains(text, testSecret) {
			t.Errorf("a secret is in %s", text)
		}
		// What is broken in one place keeps nothing else from being looked at.
		if database := find(r, "database"); c.check != "database" && c.check != "settings" && database.State != outbox.CheckOK {
			t.Errorf("with %s broken, the database is not looked at: %+v", c.check, database)
		}
	}
}

func TestDoctorIsContentWhereARelayRuns(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	environ := append(p.settings(), "SYNCRELAY_LISTEN_ADDRESS="+p.address(), "SYNCRELAY_LISTEN_OPS_ADDRESS="+p.daemon.ops.Addr().String(), "NO_COLOR=")
	text := mustRun(t, environ, "doctor", "--url", "http://"+p.address(), "--watch", "1s")
	for _, want := range []string{
		"ok       listen_address         a relay listens on " + p.address(), "ok       listen_ops_address     a relay listens on ",
		"ok       slot                   a relay streams from slot", "ok       owner                  another relay owns this database",
		"ok       public_ready ", "ok       public_websocket       the first message came after ", "and it lasts (1s watched)", "ok       public_sse ", " 0 fail: serve would work\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it says\n%s\nwant %q in it", text, want)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Errorf("there are colours in it: %q", text)
	}
	// Who only has an address and a token can look at the way there.
	text = mustRun(t, []string{"SYNCRELAY_TOKEN=" + staffToken(t)}, "doctor", "--url", "http://"+p.address(), "--color", "always")
	if strings.Contains(text, "database") || !strings.Contains(text, "3 checks, 0 warnings, 0 fail: the way to the relay is clear\n") || !strings.Contains(text, green+"ok      "+plain) {
		t.Errorf("with an address only it says\n%q", text)
	}
}

// obstacle is something that stands between clients and relays, and is set up wrong.
type obstacle struct {
	name    string
	check   string
	state   outbox.CheckState
	found   string
	mend    string
	handler func(relay http.Handler) http.Handler
}

var obstacles = []obstacle{
	{"lets the upgrade not pass", "public_websocket", outbox.CheckFails, "the WebSocket was not opened", "proxy_set_header Upgrade $http_upgrade",
		func(relay http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Header.Del("Upgrade")
				r.Header.Del("Connection")
				relay.ServeHTTP(w, r)
			})
		}},
	{"forbids WebSockets", "public_websocket", outbox.CheckFails, "HTTP status 403", "proxy_set_header Upgrade $http_upgrade",
		func(relay http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					http.Error(w, "<html>no</html>", http.StatusForbidden)
					return
				}
				relay.ServeHTTP(w, r)
			})
		}},
	{"holds the body back", "public_sse", outbox.CheckFails, "something on the way holds it back", "proxy_buffering off",
		func(relay http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/events") {
					w = &holding{ResponseWriter: w}
				}
				relay.ServeHTTP(w, r)
			})
		}},
	{"packs", "public_sse", outbox.CheckFails, "packed on its way (gzip)", "gzip off",
		func(relay http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/events") {
					w.Header().Set("Content-Encoding", "gzip")
					packed := gzip.NewWriter(w)
					defer packed.Close()
					w = &packing{w, packed}
				}
				relay.ServeHTTP(w, r)
			})
		}},
	{"cuts streams that last", "public_sse", outbox.CheckWarning, "was cut after", "proxy_read_timeout",
		func(relay http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/events") {
					ctx, cancel := context.WithTimeout(r.Context(), time.Second)
					defer cancel()
					r = r.WithContext(ctx)
				}
				relay.ServeHTTP(w, r)
			})
		}},
}

// holding is an answer of which nothing is passed on before its end.
type holding struct{ http.ResponseWriter }

func (h *holding) Write(p []byte) (int, error) { return len(p), nil }
func (h *holding) Flush()                      {}

// beginning is an answer of which the first half second is passed on, and the rest
// is gathered for later, as by what waits until a buffer is full.
type beginning struct {
	http.ResponseWriter
	begun time.Time
}

func (b *beginning) Write(p []byte) (int, error) {
	if b.begun.IsZero() {
		b.begun = time.Now()
	}
	if time.Since(b.begun) > time.Second/2 {
		return len(p), nil
	}
	return b.ResponseWriter.Write(p)
}

func (b *beginning) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// packing is an answer that is packed, and passed on when the packer likes to.
type packing struct {
	http.ResponseWriter
	to io.Writer
}

func (p *packing) Write(b []byte) (int, error) { return p.to.Write(b) }

// Flush passes the header on.
func (p *packing) Flush() { _ = http.NewResponseController(p.ResponseWriter).Flush() }

func TestDoctorFindsWhatStandsInTheWay(t *testing.T) {
	t.Parallel()
	p := newProduct(t)
	target, err := url.Parse("http://" + p.address())
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range obstacles {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			relay := httputil.NewSingleHostReverseProxy(target)
			relay.ErrorLog = log.New(io.Discard, "", 0)
			proxy := httptest.NewServer(o.handler(relay))
			t.Cleanup(proxy.Close)
			r := examine(t, []string{"SYNCRELAY_TOKEN=" + staffToken(t)}, "--url", proxy.URL, "--watch", "3s")
			for _, c := range r.Checks {
				switch {
				case c.Name == o.check && (c.State != o.state || !strings.Contains(c.Found, o.found) || !strings.Contains(c.Mend, o.mend)):
					t.Errorf("%s is %s, %q, %q; want %s, %q, %q", c.Name, c.State, c.Found, c.Mend, o.state, o.found, o.mend)
				case c.Name != o.check && c.State != outbox.CheckOK:
					t.Errorf("%s is %s, %q", c.Name, c.State, c.Found)
				}
			}
		})
	}
	t.Run("holds back all but the beginning", func(t *testing.T) {
		t.Parallel()
		relay := httputil.NewSingleHostReverseProxy(target)
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/events") {
				w = &beginning{ResponseWriter: w}
			}
			relay.ServeHTTP(w, r)
		}))
		t.Cleanup(proxy.Close)
		t.Cleanup(proxy.CloseClientConnections)
		r := examine(t, []string{"SYNCRELAY_TOKEN=" + staffToken(t)}, "--url", proxy.URL, "--watch", (longSilence + 2*time.Second).String())
		if c := find(r, "public_sse"); c.State != outbox.CheckWarning || !strings.Contains(c.Found, "no heartbeat came") || !strings.Contains(c.Mend, "proxy_buffering off") {
			t.Errorf("%+v", c)
		}
		if c := find(r, "public_websocket"); c.State != outbox.CheckOK {
			t.Errorf("%+v", c)
		}
	})
	t.Run("cuts quiet WebSockets", func(t *testing.T) {
		t.Parallel()
		p := newProduct(t) // which has no other clients
		between := newProxy(t, "quiet", p.address())
		done := make(chan report, 1)
		go func() {
			done <- examine(t, []string{"SYNCRELAY_TOKEN=" + staffToken(t)}, "--url", "http://"+between.Listen, "--watch", "20s")
		}()
		eventually(t, "both streams are open", func() bool {
			_, metrics := get(t, "http://"+p.daemon.ops.Addr().String()+"/metrics")
			return strings.Contains(metrics, `syncrelay_connections{transport="websocket"} 1`) && strings.Contains(metrics, `syncrelay_connections{transport="sse"} 1`)
		})
		between.cut()
		r := <-done
		for _, name := range []string{"public_websocket", "public_sse"} {
			if c := find(r, name); c.State != outbox.CheckWarning || !strings.Contains(c.Found, "was cut after") || !strings.Contains(c.Mend, "proxy_read_timeout") {
				t.Errorf("%+v", c)
			}
		}
	})
	t.Run("refuses the token", func(t *testing.T) {
		t.Parallel()
		r := examine(t, []string{"SYNCRELAY_TOKEN=a.b"}, "--url", "http://"+p.address())
		for _, name := range []string{"public_websocket", "public_sse"} {
			if c := find(r, name); c.State != outbox.CheckFails || !strings.Contains(c.Found, "the relay refuses: invalid token") {
				t.Errorf("%+v", c)
			}
		}
	})
}

// nginx as it comes, and as it is often set up: what it does wrong is found, what it
// passes is not blamed, and the guide's configuration has nothing to be found.
func TestDoctorFindsWhatARealProxyDoesWrong(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_STREAM_HEARTBEAT=5s", "SYNCRELAY_STREAM_PING_INTERVAL=5s")
	const upgrade = `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; `
	for _, c := range []struct {
		name, location string
		webSocket, sse outbox.CheckState
		found, mend    string
	}{
		{"as it comes", ``, outbox.CheckFails, outbox.CheckOK, "the WebSocket was not opened", "proxy_set_header Upgrade $http_upgrade"},
		{"packs events", upgrade + `gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;`, outbox.CheckOK, outbox.CheckFails, "packed on its way (gzip)", "gzip off"},
		{"cuts what is quiet", upgrade + `proxy_read_timeout 2s;`, outbox.CheckWarning, outbox.CheckWarning, "was cut after 2s", "proxy_read_timeout 3600s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			address := freeAddress(t)
			launchNginx(t, address, fmt.Sprintf("server { listen %s; access_log off; location / { proxy_pass http://%s; %s } }\n", address, p.address(), c.location))
			r := examine(t, []string{"SYNCRELAY_TOKEN=" + staffToken(t)}, "--url", "http://"+address, "--watch", "4s")
			for name, want := range map[string]outbox.CheckState{"public_ready": outbox.CheckOK, "public_websocket": c.webSocket, "public_sse": c.sse} {
				got := find(r, name)
				if got.State != want || want != outbox.CheckOK && (!strings.Contains(got.Found, c.found) || !strings.Contains(got.Mend, c.mend)) {
					t.Errorf("%s is %s, %q, %q; want %s, %q, %q", name, got.State, got.Found, got.Mend, want, c.found, c.mend)
				}
			}
		})
	}
	t.Run("as the guide says", func(t *testing.T) {
		t.Parallel()
		address, _ := startNginx(t, p.address())
		for _, check := range examine(t, []string{"SYNCRELAY_TOKEN=" + staffToken(t)}, "--url", "http://"+address, "--watch", "2s").Checks {
			if check.State != outbox.CheckOK {
				t.Errorf("%+v", check)
			}
		}
	})
}
