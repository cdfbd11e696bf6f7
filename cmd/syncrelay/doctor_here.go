package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/stream"
)

const (
	variableURL         = configs.VariableURL
	variableDatabaseURL = "SYNCRELAY_DATABASE_URL"
)

// checkHere checks what serve would run with on this machine. Settings that can't
// be read are faults like any other: what can be checked without them is.
func (d *doctor) checkHere(ctx context.Context, s streams) []outbox.Check {
	settings, checks := d.checkSettings(s)
	checks = append(checks, checkKeys(ctx, settings.Auth),
		checkCertificate("tls_certificate", "listen.tls_cert_file", settings.Listen.TLSCertFile, settings.Listen.TLSKeyFile),
		checkCertificate("ops_tls_certificate", "listen.ops_tls_cert_file", settings.Listen.OpsTLSCertFile, settings.Listen.OpsTLSKeyFile),
		checkAddress(ctx, "listen_address", "listen.address", settings.Listen.Address),
		checkAddress(ctx, "listen_ops_address", "listen.ops_address", settings.Listen.OpsAddress),
		checkOpenFiles(settings.Limits.Connections, openFiles()))
	if settings.Database.URL.Empty() {
		return append(append(checks, outbox.LeftOut()...), identityLeftOut)
	}
	options := outbox.Options{
		URL: settings.Database.URL.Reveal(), Slot: settings.Database.Slot, Publication: settings.Database.Publication, OwnerTimeout: settings.Database.OwnerTimeout,
	}
	database := outbox.Diagnose(ctx, options, outbox.Expectations{WALWarning: int64(settings.Database.WALWarning), LongTransaction: d.longTransaction})
	checks = append(checks, database...)
	if database[0].State != outbox.CheckOK {
		return append(checks, identityLeftOut)
	}
	return append(checks, checkIdentity(ctx, settings.Auth, options))
}

var identityLeftOut = outbox.Check{Name: "identity_query", State: outbox.CheckLeftOut, Found: "what it needs is missing"}

// checkSettings loads the settings as far as they can be: each mistake is a check.
func (d *doctor) checkSettings(s streams) (configs.Settings, []outbox.Check) {
	const name = "settings"
	var checks []outbox.Check
	settings, err := configs.Load(d.config, s.environ)
	for _, problem := range each(err) {
		checks = append(checks, outbox.Fail(name, "%v", problem))
	}
	if err != nil && settings.Listen.Address == "" { // the file could not be read at all
		settings, _ = configs.Load("", s.environ) // whose mistakes would be told twice
	}
	for _, problem := range each(settings.Require("database.url", configs.AnyKey)) {
		checks = append(checks, outbox.Fail(name, "%v", problem))
	}
	for _, warning := range settings.Warnings() {
		found, mend, _ := strings.Cut(warning, ": use ")
		c := outbox.Warn(name, "%s", found)
		if mend != "" {
			c = c.By("use %s", mend)
		}
		checks = append(checks, c)
	}
	if len(checks) == 0 {
		from := "the environment"
		if d.config != "" {
			from = d.config + " and the environment"
		}
		checks = append(checks, outbox.OK(name, "the settings of %s can be used", from))
	}
	return settings, checks
}

// each takes a joined error apart.
func each(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range joined.Unwrap() {
			all = append(all, each(one)...)
		}
		return all
	}
	return []error{err}
}

// fetchTimeout bounds the fetching of an identity provider's keys.
const fetchTimeout = 10 * time.Second

func checkKeys(ctx context.Context, s configs.Auth) outbox.Check {
	const name = "token_keys"
	if s.HMACSecret.Empty() && s.HMACPreviousSecret.Empty() && s.PublicKeyFile == "" && s.JWKSURL == "" {
		return outbox.Check{Name: name, State: outbox.CheckLeftOut, Found: "there are no keys to check tokens with"}
	}
	verifier, err := newVerifier(s, nil, nil)
	if err != nil {
		return outbox.Fail(name, "%v", err).By("correct the setting that it names")
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	keys, err := verifier.Fetch(ctx)
	if err != nil {
		c := outbox.Warn(name, "the keys of auth.jwks_url can't be fetched: %v", err)
		if keys.Secrets+keys.File == 0 {
			c.State = outbox.CheckFails // there are no others, and the relay would not be ready
		}
		return c.By("see to it that %s can be fetched from this machine, or correct auth.jwks_url", s.JWKSURL)
	}
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{keys.Secrets, "shared secret(s)"}, {keys.File, "public key(s) of " + s.PublicKeyFile}, {keys.Remote, "public key(s) of " + s.JWKSURL}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return outbox.OK(name, "tokens are checked with %s", strings.Join(parts, ", "))
}

// soonEnds is how long before its end a certificate is warned of.
const soonEnds = 14 * 24 * time.Hour

func checkCertificate(name, key, certFile, keyFile string) outbox.Check {
	switch {
	case certFile == "" && keyFile == "":
		return outbox.OK(name, "none: plain HTTP, for a proxy in front of it")
	case certFile == "" || keyFile == "":
		return outbox.Check{Name: name, State: outbox.CheckLeftOut, Found: "one of the two settings is missing"}
	}
	c, err := stream.NewCertificate(stream.CertificateOptions{CertFile: certFile, KeyFile: keyFile, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return outbox.Fail(name, "%v", err).By("correct %s and its key, or make the files readable for this user", key)
	}
	until := c.NotAfter().UTC().Format(time.RFC3339)
	switch left := time.Until(c.NotAfter()); {
	case left <= 0:
		return outbox.Fail(name, "the certificate %s has ended at %s: no client will take it", certFile, until).By("renew it; the relay reads the files again by itself")
	case left < soonEnds:
		return outbox.Warn(name, "the certificate %s ends soon, at %s", certFile, until).By("renew it; the relay reads the files again by itself")
	}
	return outbox.OK(name, "the certificate %s is good until %s", certFile, until)
}

// checkAddress tries to listen. Where a relay does already, that is fine.
func checkAddress(ctx context.Context, name, key, address string) outbox.Check {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err == nil {
		_ = l.Close() // it is only tried
		return outbox.OK(name, "%s can be listened on", address)
	}
	if answersAsRelay(ctx, address) {
		return outbox.OK(name, "a relay listens on %s already", address)
	}
	return outbox.Fail(name, "%s can't be listened on: %v", address, err).By("set %s to another address, or stop what listens there", key)
}

// answersAsRelay reports whether what listens on an address has a relay's
// readiness.
func answersAsRelay(ctx context.Context, address string) bool {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for _, scheme := range []string{"http", "https"} {
		if status, err := readiness(ctx, scheme+"://"+net.JoinHostPort(host, port), true); err == nil && status.Phase != "" {
			return true
		}
	}
	return false
}

// filesBesides is how many files a relay needs besides its clients' sockets.
const filesBesides = 200

func checkOpenFiles(connections int, limit uint64) outbox.Check {
	const name = "open_files"
	need := uint64(connections) + uint64(connections)/4 + filesBesides //nolint:gosec // it is not negative
	switch {
	case limit == 0:
		return outbox.OK(name, "the limit is not known on this system")
	case connections == 0:
		return outbox.OK(name, "%d files may be open here, and limits.connections is 0, which is no limit", limit)
	case limit < need:
		return outbox.Warn(name, "%d files may be open here, and limits.connections is %d, which wants %d", limit, connections, need).
			By("ulimit -n %d, or LimitNOFILE=%d in the unit, or set limits.connections to %d", need, need, max(1, (int(limit)-filesBesides)*4/5)) //nolint:gosec // it is small here
	}
	return outbox.OK(name, "%d files may be open here, enough for limits.connections, %d", limit, connections)
}

func checkIdentity(ctx context.Context, s configs.Auth, o outbox.Options) outbox.Check {
	const name = "identity_query"
	if s.Identity != identityFromDatabase {
		return outbox.OK(name, "tokens say who users are (auth.identity is claims)")
	}
	directory, err := outbox.NewDirectory(o, s.IdentityQuery)
	if err != nil {
		return outbox.CheckError(name, err)
	}
	defer directory.Close()
	people, err := directory.People(ctx, []int64{1})
	var p *outbox.Problem
	switch {
	case errors.As(err, &p):
		return outbox.CheckError(name, p)
	case err != nil:
		return outbox.Fail(name, "%v", err).By("correct auth.identity_query; configs/README.md has examples")
	}
	return outbox.OK(name, "the query can be asked; of user 1 it gives %d rows", len(people))
}

// status is what /readyz answers.
type status struct {
	Status string `json:"status"`
	Phase  string `json:"phase"`
	Reason string `json:"reason"`
}

// readyTimeout bounds the question.
const readyTimeout = 5 * time.Second

// readiness asks a relay whether it is ready. Of this machine's own, whose name is
// hardly the one in its certificate, the certificate is not checked.
func readiness(ctx context.Context, base string, own bool) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/readyz", http.NoBody)
	if err != nil {
		return s, fmt.Errorf("ask whether the relay is ready: %w", err)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: own, //nolint:gosec // nothing is told to it
	}}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return s, fmt.Errorf("ask whether the relay is ready: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if err := decodeStatus(response, &s); err != nil {
		return s, err
	}
	return s, nil
}
