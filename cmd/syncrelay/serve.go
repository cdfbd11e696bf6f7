package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/stream"
)

func newServe(s streams) *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "serve", Short: "Runs the daemon", Args: noArguments,
		Long: `Runs the daemon until SIGTERM or Ctrl-C, which drains: clients are told to
reconnect, spread over drain.timeout. A second signal ends it at once.

Several may run on one database: one serves, and the others wait to take over.`,
		Example: `  syncrelay serve --config /etc/syncrelay.yaml

  SYNCRELAY_DATABASE_URL=postgres://syncrelay_relay@db/grades SYNCRELAY_AUTH_HMAC_SECRET_FILE=/run/secrets/jwt syncrelay serve`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := loadSettings(s, config, "database.url", configs.AnyKey)
			if err != nil {
				return err
			}
			logger := newLogger(s.err, settings.Log)
			for _, warning := range settings.Warnings() {
				logger.Warn(warning)
			}
			d, err := newDaemon(cmd.Context(), settings, logger)
			if err != nil {
				return err
			}
			return d.run(cmd.Context())
		},
	}
	addConfigFlag(cmd, &config)
	return cmd
}

// daemon is the parts, wired together.
type daemon struct {
	logger      *slog.Logger
	drain       time.Duration
	planned     int64 // bytes of the heap, without clients
	relay       *relay.Relay
	journal     *outbox.Journal
	janitor     *outbox.Janitor
	monitor     *outbox.Monitor
	walWarning  int64
	verifier    *stream.Verifier
	directory   *outbox.Directory // nil if the tokens say who users are
	server      *stream.Server
	public, ops net.Listener
}

// newDaemon builds the parts and takes the addresses. It does not need the
// database yet. Changes are made to what the settings say about the server.
func newDaemon(ctx context.Context, s configs.Settings, logger *slog.Logger, changes ...func(*stream.Options)) (*daemon, error) {
	d := &daemon{logger: logger, drain: s.Drain.Timeout, planned: plannedHeap + int64(s.Memory.RingBytes), walWarning: int64(s.Database.WALWarning)}
	err := d.build(s, changes)
	if err == nil {
		err = d.listen(ctx, s.Listen)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// build makes the parts. What it has made when it fails is for close.
func (d *daemon) build(s configs.Settings, changes []func(*stream.Options)) (err error) {
	options := outbox.Options{
		URL: s.Database.URL.Reveal(), Slot: s.Database.Slot, Publication: s.Database.Publication,
		OwnerTimeout: s.Database.OwnerTimeout, Logger: d.logger,
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	observer := stream.NewObserver(registry)
	d.monitor = outbox.NewMonitor(options)
	if d.journal, err = outbox.NewJournal(options); err != nil {
		return err
	}
	d.relay = relay.New(relay.Options{
		Source: outbox.NewSource(options), Journal: d.journal, StaffRoles: s.Auth.StaffRoles,
		Grace:      max(time.Duration(graceShare*float64(d.drain)), 500*time.Millisecond),
		RingEvents: s.Memory.RingEvents, RingBytes: s.Memory.RingBytes, Logger: d.logger, Observer: observer,
	})
	d.janitor = outbox.NewJanitor(options, outbox.Retention{
		Window: s.Retention.Window, Interval: s.Retention.Interval, Retained: d.relay.Retained, Failed: func() { observer.Failed("retention") },
	})
	registry.MustRegister(newDatabaseCollector(d.monitor, d.janitor, observer), newBuildInfo(thisBuild()))
	if most := s.Limits.Connections; most > 0 {
		registry.MustRegister(newConnectionsLimit(most))
	}
	if d.verifier, err = newVerifier(s.Auth, d.logger, observer.Failed); err != nil {
		return err
	}
	edge := stream.Options{
		Relay: d.relay, Verifier: d.verifier, Logger: d.logger, Registry: registry, Observer: observer,
		Heartbeat: s.Stream.Heartbeat, PingInterval: s.Stream.PingInterval, WriteTimeout: s.Stream.WriteTimeout,
		Compression:     s.Stream.Compression,
		IdentityRefresh: s.Auth.IdentityRefresh, MaxTickets: s.Auth.Tickets, TicketsPerUser: s.Auth.TicketsPerUser,
		Limits: streamLimits(s.Limits),
	}
	if edge.Origins, err = stream.NewOrigins(s.Origins.Allowed); err != nil {
		return err
	}
	if edge.Proxies, err = stream.NewProxies(s.Listen.TrustedProxies); err != nil {
		return err
	}
	if edge.TLS, err = certificate("listen.tls_cert_file", s.Listen.TLSCertFile, s.Listen.TLSKeyFile, d.logger, observer.Failed); err != nil {
		return err
	}
	if edge.OpsTLS, err = certificate("listen.ops_tls_cert_file", s.Listen.OpsTLSCertFile, s.Listen.OpsTLSKeyFile, d.logger, observer.Failed); err != nil {
		return err
	}
	if s.Auth.Identity == identityFromDatabase {
		if d.directory, err = outbox.NewDirectory(options, s.Auth.IdentityQuery); err != nil {
			return err
		}
		edge.Directory = d.directory
	}
	if s.Console.Enabled {
		edge.Console = &stream.Console{Staff: s.Auth.StaffRoles}
	}
	for _, change := range changes {
		change(&edge)
	}
	d.server, err = stream.New(edge)
	return err
}

// close lets go of what build has taken, as far as it got.
func (d *daemon) close() {
	d.monitor.Close()
	if d.journal != nil {
		d.journal.Close()
	}
	if d.directory != nil {
		d.directory.Close()
	}
}

// identityFromDatabase is the value of auth.identity.
const identityFromDatabase = "database"

// newVerifier makes what checks tokens.
func newVerifier(s configs.Auth, logger *slog.Logger, failed func(component string)) (*stream.Verifier, error) {
	v, err := stream.NewVerifier(stream.VerifierOptions{
		HMACSecret: []byte(s.HMACSecret.Reveal()), PreviousHMACSecret: []byte(s.HMACPreviousSecret.Reveal()),
		HMACSecretFile: s.HMACSecretFile, PreviousHMACSecretFile: s.HMACPreviousSecretFile,
		PublicKeyFile: s.PublicKeyFile, JWKSURL: s.JWKSURL, JWKSRefresh: s.JWKSRefresh, Algorithms: s.Algorithms,
		Claims: stream.ClaimNames(s.Claims), UserOnly: s.Identity == identityFromDatabase, Issuer: s.Issuer, Audience: s.Audience, Leeway: s.Leeway,
		Logger: logger, Failed: failed,
	})
	if err != nil {
		return nil, fmt.Errorf("the settings of auth: %w", err)
	}
	return v, nil
}

// certificate reads the certificate that a setting names, nil for none.
func certificate(key, certFile, keyFile string, logger *slog.Logger, failed func(component string)) (*stream.Certificate, error) {
	if certFile == "" {
		return nil, nil // plain HTTP
	}
	c, err := stream.NewCertificate(stream.CertificateOptions{CertFile: certFile, KeyFile: keyFile, Logger: logger, Failed: failed})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return c, nil
}

// listen takes the addresses.
func (d *daemon) listen(ctx context.Context, s configs.Listen) error {
	var config net.ListenConfig
	var err error
	if d.public, err = config.Listen(ctx, "tcp", s.Address); err != nil {
		return fmt.Errorf("listen.address %s can't be listened on: %w", s.Address, err)
	}
	if d.ops, err = config.Listen(ctx, "tcp", s.OpsAddress); err != nil {
		return errors.Join(fmt.Errorf("listen.ops_address %s can't be listened on: %w", s.OpsAddress, err), d.public.Close())
	}
	return nil
}

// Of the time that a drain may take, the clients have most; then the journal is
// flushed, and what is left is for the last sockets to be closed. At the last
// share of it the process ends, whoever has not answered.
const (
	clientsShare = 0.8
	graceShare   = 0.1
	lastShare    = 0.95
)

// run serves until ctx ends, and then drains: first the clients, then the relay,
// so that everything that a client was sent is journaled and confirmed.
func (d *daemon) run(ctx context.Context) error {
	d.logger.Info("listening", "address", d.public.Addr().String(), "ops_address", d.ops.Addr().String(), "version", thisBuild().Version)
	defer paceGarbage(d.planned)()
	// The parts live on while the clients are drained, unless one has failed.
	parts, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	live, end := context.WithCancel(failed)
	defer end()
	serving, endServing := context.WithCancel(live)
	defer endServing()
	parts.Go(func() error { return d.server.Run(serving, d.public, d.ops) })
	parts.Go(func() error { return d.relay.Run(live) })
	parts.Go(func() error { return d.janitor.Run(live) })
	parts.Go(func() error { return d.monitor.Run(live, d.walWarning) })
	parts.Go(func() error { return d.verifier.Run(live) })
	var deadline <-chan time.Time
	select {
	case <-ctx.Done():
		deadline = time.After(max(time.Duration(lastShare*float64(d.drain)), time.Second))
		d.logger.Info("stopping", "drain_timeout", d.drain.String())
		drain, cancel := context.WithTimeout(failed, time.Duration(clientsShare*float64(d.drain)))
		defer cancel()
		if err := d.server.Drain(drain); err != nil {
			d.logger.Warn("some clients were cut off at the end of the drain", "error", err)
		}
	case <-failed.Done():
	}
	endServing()
	end()
	ended := make(chan error, 1)
	go func() {
		err := parts.Wait()
		d.close()
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			d.logger.Info("stopped")
		}
		return err
	case <-deadline:
		// Whatever a client was sent is in the journal. Only what is to be said to
		// a database that does not answer was left unsaid.
		d.logger.Warn("stopped at the end of drain.timeout, before the database has answered")
		return nil
	}
}
