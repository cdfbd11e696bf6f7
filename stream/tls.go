package stream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Certificate is a certificate and its key from two PEM files, read again when
// they change: a renewed certificate is served without a restart, and without an
// end to the connections that are there. Files that are no good are logged, and
// the last good ones stay.
type Certificate struct {
	certFile, keyFile string
	logger            *slog.Logger
	failed            func(component string)
	interval          time.Duration
	now               atomic.Pointer[tls.Certificate]

	mu   sync.Mutex // held while the files are read: two listeners may share a certificate
	seen [2][]byte  // what was read last, good or not
}

// CertificateOptions say where a certificate is.
type CertificateOptions struct {
	// CertFile holds the certificate, with those between it and the root, KeyFile
	// its private key.
	CertFile, KeyFile string
	Logger            *slog.Logger
	// Failed is told of files that are no good; default nobody.
	Failed func(component string)
	// Interval is how often the files are looked at; default 5 s.
	Interval time.Duration
}

// NewCertificate reads a certificate.
func NewCertificate(o CertificateOptions) (*Certificate, error) {
	c := &Certificate{certFile: o.CertFile, keyFile: o.KeyFile, logger: o.Logger, failed: o.Failed, interval: o.Interval}
	if c.failed == nil {
		c.failed = func(string) {}
	}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	}
	if c.interval <= 0 {
		c.interval = 5 * time.Second
	}
	if _, err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

// NotAfter is when the certificate ends.
func (c *Certificate) NotAfter() time.Time { return c.now.Load().Leaf.NotAfter }

// read reads the files, if they are others than they were.
func (c *Certificate) read() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cert, certErr := os.ReadFile(c.certFile)
	key, keyErr := os.ReadFile(c.keyFile)
	if err := errors.Join(certErr, keyErr); err != nil {
		return c.differ(nil, nil), fmt.Errorf("read the certificate: %w", err)
	}
	if !c.differ(cert, key) {
		return false, nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil { // which never holds what is in the key's file
		return true, fmt.Errorf("certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.now.Store(&pair)
	return true, nil
}

// differ reports whether the files hold something else than before. c.mu is held.
func (c *Certificate) differ(cert, key []byte) bool {
	if bytes.Equal(c.seen[0], cert) && bytes.Equal(c.seen[1], key) {
		return false
	}
	c.seen = [2][]byte{cert, key}
	return true
}

// Run looks at the files until ctx ends. The content is compared, so that it does
// not matter how they are replaced.
func (c *Certificate) Run(ctx context.Context) error {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := c.read()
		switch {
		case changed && err != nil:
			c.failed("tls")
			c.logger.Error("the new TLS certificate is no good: the old one stays", slog.Any("error", err))
		case changed:
			c.logger.Info("new TLS certificate", slog.String("file", c.certFile), slog.Time("not_after", c.now.Load().Leaf.NotAfter))
		}
	}
}

// config is how a listener speaks TLS: 1.2 and up, with the suites that crypto/tls
// thinks well of.
func (c *Certificate) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.now.Load(), nil },
	}
}
