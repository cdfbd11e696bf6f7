package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
)

func newDemo(s streams) *cobra.Command {
	var config string
	var pause time.Duration
	cmd := &cobra.Command{
		Use: "demo", Short: "Writes demo grading traffic into a database", Args: noArguments,
		Long: `Writes demo grading traffic into the database of database.url until it is stopped,
as an application would: each change is a transaction of its own on the tables of
schema demo, whose triggers call the writer functions. The tables are made by
syncrelay migrate --demo; the role syncrelay_demo has the rights that it takes.`,
		Example: `  syncrelay demo
  syncrelay demo --pause 100ms`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pause < time.Millisecond {
				return usageError{fmt.Errorf("--pause is %s; allowed is a duration of 1ms or more", pause)}
			}
			settings, err := loadSettings(s, config, "database.url")
			if err != nil {
				return err
			}
			return traffic(cmd.Context(), settings.Database.URL.Reveal(), pause, s.out)
		},
	}
	addConfigFlag(cmd, &config)
	cmd.Flags().DurationVar(&pause, "pause", usualPause, "how long to wait between two changes, on average")
	return cmd
}

// usualPause is lively enough to watch, and slow enough to follow.
const usualPause = time.Second

// Codes of errors that mean that the demo's tables are not there, from appendix A
// of the Postgres manual.
const (
	codeNoSchema   = "3F000"
	codeNoFunction = "42883"
)

// traffic changes the demo's grades now and then, and writes a word on each change.
func traffic(ctx context.Context, databaseURL string, pause time.Duration, told io.Writer) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("connect the demo's traffic: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for {
		var change string
		if err := conn.QueryRow(ctx, `SELECT demo.make_traffic()`).Scan(&change); err != nil && ctx.Err() == nil {
			var pg *pgconn.PgError
			if errors.As(err, &pg) && (pg.Code == codeNoSchema || pg.Code == codeNoFunction) {
				return fmt.Errorf("write the demo's traffic: %w; to mend it: run syncrelay migrate --demo", err)
			}
			return fmt.Errorf("write the demo's traffic: %w", err)
		}
		if ctx.Err() == nil {
			fmt.Fprintln(told, change)
		}
		// From a third of the pause to five thirds, so that it does not tick.
		more, err := rand.Int(rand.Reader, big.NewInt(int64(pause)*4/3+1))
		if err != nil {
			return fmt.Errorf("draw a pause: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause/3 + time.Duration(more.Int64())):
		}
	}
}
