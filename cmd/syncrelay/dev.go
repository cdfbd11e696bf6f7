package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/schema"
	"github.com/syncrelay/syncrelay/stream"
)

// devOptions are the flags of dev.
type devOptions struct {
	noTraffic   bool
	postgresBin string
	data        string
	address     string
	opsAddress  string
}

func newDev(s streams) *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use: "dev", Short: "Runs the whole product on an embedded Postgres, with demo traffic", Args: noArguments,
		Long: `Runs the whole product, with nothing else to install: a Postgres of its own, the
schema with the demo grading tables, the relay, and demo traffic. Prints the
addresses, tokens, lines to paste, and the events as they are sent. Ctrl-C stops
everything, and leaves nothing behind but the directory of --data.`,
		Example: `  syncrelay dev

  # keep the database, and write the events yourself
  syncrelay dev --data ./dev-data --no-traffic`,
		RunE: func(cmd *cobra.Command, _ []string) error { return dev(cmd.Context(), s, o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.noTraffic, "no-traffic", false, "write no demo traffic")
	f.StringVar(&o.postgresBin, "postgres-bin", "", "directory with the programs postgres and initdb (default: the newest that is found)")
	f.StringVar(&o.data, "data", "", "directory for the database, kept between runs (default: a temporary one)")
	mustMark(cmd.MarkFlagDirname("postgres-bin"))
	mustMark(cmd.MarkFlagDirname("data"))
	f.StringVar(&o.address, "address", "", "address for clients (default: 127.0.0.1:8000, or a free port)")
	f.StringVar(&o.opsAddress, "ops-address", "", "address for metrics (default: 127.0.0.1:8001, or a free port)")
	return cmd
}

// stopTimeout bounds the end of the embedded Postgres.
const stopTimeout = 30 * time.Second

func dev(ctx context.Context, s streams, o devOptions) (err error) {
	fmt.Fprintln(s.out, "Starting Postgres …")
	// Ctrl-C must not cut off the start of the server half way: it is stopped below.
	server, err := localpg.Start(context.WithoutCancel(ctx), localpg.Options{BinDir: o.postgresBin, DataDir: o.data})
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, server.Stop(end))
		fmt.Fprintln(s.out, "Stopped.")
	}()
	url, err := prepareDatabase(ctx, server)
	if err != nil {
		return err
	}
	settings, err := devSettings(ctx, url, o)
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	d, err := newDaemon(ctx, settings, logger, func(edge *stream.Options) {
		edge.Console.People = func() ([]stream.Person, error) { return devPeople(settings.Auth.HMACSecret.Reveal()) }
	})
	if err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return d.run(ctx) })
	parts.Go(func() error {
		if err := greet(ctx, s.out, d, settings, server); err != nil {
			return err
		}
		if o.noTraffic {
			return nil
		}
		return traffic(ctx, server.URL("postgres"), usualPause, io.Discard)
	})
	if err := parts.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// prepareDatabase applies the schema, and returns the URL of the relay's own
// role: dev runs with the rights that the relay has elsewhere.
func prepareDatabase(ctx context.Context, server *localpg.Server) (relayURL string, err error) {
	admin := server.URL("postgres")
	if _, err := schema.Migrate(ctx, admin, schema.Options{}); err != nil {
		return "", err
	}
	if _, err := schema.MigrateDemo(ctx, admin, schema.Options{}); err != nil {
		return "", err
	}
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return "", fmt.Errorf("connect to the embedded Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, `ALTER ROLE syncrelay_relay LOGIN`); err != nil {
		return "", fmt.Errorf("let the relay's role log in: %w", err)
	}
	return server.URLAs("syncrelay_relay", "", "postgres"), nil
}

// devSettings are the defaults, with a secret of this run's own and addresses of
// this machine only.
func devSettings(ctx context.Context, databaseURL string, o devOptions) (configs.Settings, error) {
	settings, err := configs.Load("", nil)
	if err != nil {
		return settings, err
	}
	settings.Database.URL = configs.NewSecret(databaseURL)
	settings.Auth.HMACSecret = configs.NewSecret(rand.Text() + rand.Text())
	settings.Drain.Timeout = 2 * time.Second
	settings.Console.Enabled = true
	settings.Listen.Address = devAddress(ctx, o.address, "127.0.0.1:8000")
	settings.Listen.OpsAddress = devAddress(ctx, o.opsAddress, "127.0.0.1:8001")
	return settings, nil
}

// devAddress is the address that was asked for, else the usual one, else, if
// something listens there already, one with a free port.
func devAddress(ctx context.Context, asked, usual string) string {
	if asked != "" {
		return asked
	}
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", usual)
	if err != nil {
		return "127.0.0.1:0"
	}
	_ = l.Close() // it is only tried
	return usual
}

// Who the demo's tokens are for; demo/00001_grading.sql makes these people.
var devUsers = []struct {
	name   string
	claims tokenClaims
}{
	{"admin", tokenClaims{UserID: 1, Role: "admin", Approved: true}},
	{"training staff", tokenClaims{UserID: 2, Role: "training_staff", Approved: true}},
	{"cadet 1 (Amara Okafor)", tokenClaims{UserID: 101, Role: "cadet", CadetID: 1, Approved: true}},
	{"cadet 2 (Ben Whitfield)", tokenClaims{UserID: 102, Role: "cadet", CadetID: 2, Approved: true}},
}

// devPeople are they with a token each, for the console too.
func devPeople(secret string) (people []stream.Person, err error) {
	for _, u := range devUsers {
		token, err := signToken(secret, u.claims, tokenLife)
		if err != nil {
			return nil, err
		}
		people = append(people, stream.Person{Name: u.name, Role: u.claims.Role, Token: token})
	}
	return people, nil
}

// tokenLife is how long the demo's tokens are valid: a working day and more.
const tokenLife = 24 * time.Hour

// greet waits until the relay serves, says what runs where, and begins to print
// events.
func greet(ctx context.Context, out io.Writer, d *daemon, settings configs.Settings, server *localpg.Server) error {
	if err := waitFor(ctx, func() bool { return d.relay.Status().Phase == relay.Streaming }); err != nil {
		return err
	}
	address := d.public.Addr().String()
	people, err := devPeople(settings.Auth.HMACSecret.Reveal())
	if err != nil {
		return err
	}
	p := &printer{w: out}
	p.line("")
	p.line("syncrelay is running.")
	p.line("")
	p.line("  console     http://%s/", address)
	p.line("  WebSocket   ws://%s/ws/updates/", address)
	p.line("  SSE         http://%s/api/events", address)
	p.line("  metrics     http://%s/metrics", d.ops.Addr())
	p.line("  Postgres    %s", server.URL("postgres"))
	p.line("")
	p.line("Tokens, valid for %s:", tokenLife)
	for _, person := range people {
		p.line("")
		p.line("  # %s", person.Name)
		p.line("  %s", person.Token)
	}
	p.line("")
	p.line("To paste into another terminal:")
	p.line("")
	p.line("  # everything, as the admin, from the beginning")
	p.line("  curl -N 'http://%s/api/events?last_event_id=0&token=%s'", address, people[0].Token)
	p.line("")
	p.line("  # cadet 1 on a WebSocket")
	p.line("  npx wscat -c 'ws://%s/ws/updates/?token=%s'", address, people[2].Token)
	p.line("")
	p.line("  # write an event")
	p.line(`  psql '%s' -c "SELECT broadcast_grade_update(1, '{\"merits\": 3}')"`, server.URL("postgres"))
	p.line("")
	p.line("Ctrl-C stops everything. Events, as the staff sees them:")
	p.line("")
	if p.err != nil {
		return p.err
	}
	_, err = d.relay.Subscribe(relay.Identity{UserID: 1, Role: "admin"}, screen{out}, relay.Start{})
	return err
}

// printer prints lines until one fails.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// screen is a subscriber that prints events.
type screen struct{ w io.Writer }

// Events is part of relay.Sink.
func (s screen) Events(events []*relay.Event, _ bool) error {
	for _, e := range events {
		if _, err := fmt.Fprintf(s.w, "%s\n", e.JSON()); err != nil {
			return err
		}
	}
	return nil
}

// Control is part of relay.Sink.
func (screen) Control(relay.Control) error { return nil }

// End is part of relay.Sink.
func (screen) End(error) {}

// waitFor waits until something holds.
func waitFor(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
