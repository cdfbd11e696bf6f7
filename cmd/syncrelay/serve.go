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
reconnect, spread over drain.timeout. A second signal ends it at once.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := loadSettings(s, config, "database.url", "auth.hmac_secret")
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
	relay       *relay.Relay
	journal     *outbox.Journal
	janitor     *outbox.Janitor
	monitor     *outbox.Monitor
	server      *stream.Server
	public, ops net.Listener
}

// newDaemon builds the parts and takes the addresses. It does not need the
// database yet.
func newDaemon(ctx context.Context, s configs.Settings, logger *slog.Logger) (*daemon, error) {
	if s.Auth.Identity != "claims" {
		return nil, fmt.Errorf("auth.identity: found %q, which this version does not have yet; allowed is claims", s.Auth.Identity)
	}
	options := outbox.Options{
		URL: s.Database.URL.Reveal(), Slot: s.Database.Slot, Publication: s.Database.Publication, Logger: logger,
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	observer := stream.NewObserver(registry)
	d := &daemon{logger: logger, drain: s.Drain.Timeout, monitor: outbox.NewMonitor(options)}
	var err error
	if d.journal, err = outbox.NewJournal(options); err != nil {
		return nil, err
	}
	d.relay = relay.New(relay.Options{
		Source: outbox.NewSource(options), Journal: d.journal, StaffRoles: s.Auth.StaffRoles,
		RingEvents: s.Memory.RingEvents, RingBytes: s.Memory.RingBytes, Logger: logger, Observer: observer,
	})
	d.janitor = outbox.NewJanitor(options, outbox.Retention{Window: s.Retention.Window, Interval: s.Retention.Interval, Retained: d.relay.Retained})
	registry.MustRegister(newDatabaseCollector(d.monitor, d.janitor, observer))
	verifier, err := stream.NewVerifier(stream.VerifierOptions{HMACSecret: []byte(s.Auth.HMACSecret.Reveal())})
	if err != nil {
		return nil, err
	}
	origins, err := stream.NewOrigins(s.Origins.Allowed)
	if err != nil {
		return nil, err
	}
	d.server, err = stream.New(stream.Options{
		Relay: d.relay, Verifier: verifier, Origins: origins, Logger: logger, Registry: registry, Observer: observer,
		Heartbeat: s.Stream.Heartbeat,
	})
	if err != nil {
		return nil, err
	}
	if err := d.listen(ctx, s.Listen); err != nil {
		return nil, err
	}
	return d, nil
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

// Of the time that a drain may take, the clients have most; what is left is for
// the journal to be flushed and the last sockets to be closed.
const clientsShare = 0.8

// run serves until ctx ends, and then drains: first the clients, then the relay,
// so that everything that a client was sent is journaled and confirmed.
func (d *daemon) run(ctx context.Context) error {
	defer d.journal.Close()
	defer d.monitor.Close()
	d.logger.Info("listening", "address", d.public.Addr().String(), "ops_address", d.ops.Addr().String(), "version", thisBuild().Version)
	// The parts live on while the clients are drained, unless one has failed.
	parts, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	live, end := context.WithCancel(failed)
	defer end()
	serving, endServing := context.WithCancel(live)
	defer endServing()
	parts.Go(func() error { return d.server.Run(serving, d.public, d.ops) })
	parts.Go(func() error { return d.relay.Run(live) })
	parts.Go(func() error { return d.janitor.Run(live) })
	select {
	case <-ctx.Done():
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
	err := parts.Wait()
	if err == nil {
		d.logger.Info("stopped")
	}
	return err
}
