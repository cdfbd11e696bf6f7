package stream_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// authority signs the certificates of a test into files.
type authority struct {
	cert              *x509.Certificate
	key               *ecdsa.PrivateKey
	certFile, keyFile string
	serial            int64
	failures          atomic.Int64 // that its certificates met
}

// failed counts a failure.
func (a *authority) failed(component string) {
	if component == "tls" {
		a.failures.Add(1)
	}
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	dir := t.TempDir()
	a := &authority{certFile: filepath.Join(dir, "tls.crt"), keyFile: filepath.Join(dir, "tls.key")}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the tests"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.issue(t)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue writes a new certificate and returns its serial number.
func (a *authority) issue(t *testing.T) int64 {
	t.Helper()
	a.serial++
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1000 + a.serial), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.certFile, "CERTIFICATE", der)
	writePEM(t, a.keyFile, "PRIVATE KEY", private)
	return template.SerialNumber.Int64()
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// client is how a client trusts the authority.
func (a *authority) client() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool}
}

func (a *authority) certificate(t *testing.T, logger *slog.Logger) *stream.Certificate {
	t.Helper()
	c, err := stream.NewCertificate(stream.CertificateOptions{CertFile: a.certFile, KeyFile: a.keyFile, Logger: logger, Interval: 10 * time.Millisecond, Failed: a.failed})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// dialTLS connects a WebSocket over TLS and takes its connection_established.
func (w *world) dialTLS(t *testing.T, a *authority) *wsClient {
	t.Helper()
	dialer := &websocket.Dialer{TLSClientConfig: a.client()}
	conn, _, err := dialer.Dial("wss://"+w.addr+"/ws/updates/?token="+sign(t, cadet17), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	c := &wsClient{conn, conn.Subprotocol()}
	nextOf(t, c, "connection_established")
	return c
}

// http2Client speaks HTTP/2 and counts the connections that it opens.
func http2Client(t *testing.T, a *authority, opened *atomic.Int64) *http.Transport {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: a.client(), ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			opened.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// stream opens an event stream over HTTP/2.
func (w *world) stream2(t *testing.T, transport http.RoundTripper) *sseClient {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+w.addr+"/api/events?token="+sign(t, cadet17), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
		t.Fatalf("got %s %s", response.Proto, response.Status)
	}
	return &sseClient{Response: response, lines: bufio.NewReader(response.Body)}
}

func TestTLSServesWebSocketsAndManyStreamsOnOneConnection(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	c := a.certificate(t, nil)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: c, OpsTLS: c}})
	ws := w.dialTLS(t, a)
	var opened atomic.Int64
	transport := http2Client(t, a, &opened)
	streams := make([]*sseClient, 100)
	for i := range streams {
		streams[i] = w.stream2(t, transport)
		nextOf(t, streams[i], "connection_established")
	}
	w.Insert(grade(17), grade(17))
	for _, s := range streams {
		wantEvents(t, s, 1, 2)
	}
	wantEvents(t, ws, 1, 2)
	if opened.Load() != 1 {
		t.Errorf("%d streams took %d connections", len(streams), opened.Load())
	}
	w.wantMetric(t, `syncrelay_connections{transport="sse"}`, 100)
	_ = streams[0].Body.Close()
	w.wantMetric(t, `syncrelay_connections{transport="sse"}`, 99)

	ops := &http.Client{Transport: http2Client(t, a, new(atomic.Int64))}
	response, err := ops.Get("https://" + w.ops + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("ops: %s", response.Status)
	}
}

func TestOldVersionsOfTLSAndPlainHTTPAreRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: a.certificate(t, nil)}})
	for version, good := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		config := a.client()
		config.MinVersion, config.MaxVersion = version, version
		conn, err := tls.Dial("tcp", w.addr, config)
		if (err == nil) != good {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	if response := w.get(t, "/healthz", nil); response.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP was answered with %s", response.Status)
	}
}

func TestAStreamOfHTTP2OutlivesTheWriteDeadlineWhenNothingIsWritten(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: a.certificate(t, nil), WriteTimeout: 200 * time.Millisecond, Heartbeat: time.Hour}})
	s := w.stream2(t, http2Client(t, a, new(atomic.Int64)))
	nextOf(t, s, "connection_established")
	waitUntil(time.Now().Add(600 * time.Millisecond)) // three deadlines
	w.Insert(grade(17))
	wantEvents(t, s, 1)
}

func TestASlowStreamOfHTTP2IsLetGoAndTheOthersOfItsConnectionGoOn(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: a.certificate(t, nil), WriteTimeout: 300 * time.Millisecond}})
	transport := http2Client(t, a, new(atomic.Int64))
	slow, quick := w.stream2(t, transport), w.stream2(t, transport)
	nextOf(t, slow, "connection_established")
	nextOf(t, quick, "connection_established")
	big := relay.Row{Type: "grade_update", CadetID: 17, HasCadet: true, Payload: textOf(900 << 10)}
	for id := int64(1); id <= 20; id++ {
		w.Insert(big)
		wantEvents(t, quick, id)
	}
	w.wantMetric(t, `syncrelay_disconnects_total{reason="slow",transport="sse"}`, 1)
	w.Insert(grade(17))
	wantEvents(t, quick, 21)
}

// serial is the serial number of the certificate that a new connection meets.
func (w *world) serial(t *testing.T, a *authority) int64 {
	t.Helper()
	conn, err := tls.Dial("tcp", w.addr, a.client())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestANewCertificateIsServedWithoutAnEndToConnections(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	a := newAuthority(t)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: a.certificate(t, slog.New(slog.NewTextHandler(&log, nil)))}})
	ws := w.dialTLS(t, a)
	sse := w.stream2(t, http2Client(t, a, new(atomic.Int64)))
	nextOf(t, sse, "connection_established")
	old := w.serial(t, a)

	// A file that is no certificate, and a key that is another's, change nothing.
	good, err := os.ReadFile(a.certFile)
	if err != nil {
		t.Fatal(err)
	}
	for i, bad := range []string{"no certificate", string(good) + "x", ""} {
		if err := os.WriteFile(a.certFile, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			writeOtherKey(t, a)
		}
		relaytest.Wait(t, "the error is logged", func() bool { return strings.Count(log.String(), "the old one stays") > i })
		if got := w.serial(t, a); got != old {
			t.Errorf("the certificate became %d", got)
		}
	}
	if err := os.Remove(a.certFile); err != nil {
		t.Fatal(err)
	}
	relaytest.Wait(t, "the missing file is logged", func() bool { return strings.Contains(log.String(), "no such file") })
	if n := strings.Count(log.String(), "level=ERROR"); n > 6 || int64(n) != a.failures.Load() {
		t.Errorf("%d errors were logged and %d counted for four faults", n, a.failures.Load())
	}

	renewed := a.issue(t)
	relaytest.Wait(t, "the new certificate is served", func() bool { return w.serial(t, a) == renewed })
	w.Insert(grade(17))
	wantEvents(t, ws, 1)
	wantEvents(t, sse, 1)
}

func writeOtherKey(t *testing.T, a *authority) {
	t.Helper()
	private, err := x509.MarshalPKCS8PrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, a.keyFile, "PRIVATE KEY", private)
}

func TestCertificateFilesThatAreNoGoodStopTheStart(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	writeOtherKey(t, a)
	for name, o := range map[string]stream.CertificateOptions{
		"missing":        {CertFile: filepath.Join(t.TempDir(), "x"), KeyFile: a.keyFile},
		"no certificate": {CertFile: a.keyFile, KeyFile: a.keyFile},
		"another's key":  {CertFile: a.certFile, KeyFile: a.keyFile},
	} {
		if _, err := stream.NewCertificate(o); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// One tab that is refused must not end the streams of the others.
func TestARefusalOnHTTP2LeavesTheConnection(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	w := newWorld(t, worldOptions{Options: stream.Options{TLS: a.certificate(t, nil), Limits: stream.Limits{ConnectionsPerUser: 2}}})
	var opened atomic.Int64
	transport := http2Client(t, a, &opened)
	first, second := w.stream2(t, transport), w.stream2(t, transport)
	nextOf(t, first, "connection_established")
	nextOf(t, second, "connection_established")
	for range 3 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+w.addr+"/api/events?token="+sign(t, cadet17), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		refused, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if refused.Header.Get("Retry-After") == "" || refused.Header.Get("Connection") != "" {
			t.Errorf("refused with %v", refused.Header)
		}
		wantError(t, refused, http.StatusServiceUnavailable, "too_many_connections_of_user")
	}
	w.Insert(grade(17))
	wantEvents(t, first, 1)
	wantEvents(t, second, 1)
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections were opened, want one", n)
	}
}
