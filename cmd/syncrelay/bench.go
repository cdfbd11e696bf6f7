package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/cmd/syncrelay/bench"
)

func newBench(s streams) *cobra.Command {
	var quick, asJSON bool
	var o bench.Options
	cmd := &cobra.Command{
		Use: "bench", Short: "Measures this machine: latency, ingest, fan-out, memory per connection, replay storm", Args: noArguments,
		Long: `Measures the relay on this machine, on a Postgres of its own, and beside each
figure its floor: what the parts cost alone. A full run takes some minutes, a
quick one less than two. Progress goes to standard error, the table to standard
output. It exits with 1 if clients have received an event twice, out of order or
not at all.

With --database-url it makes databases of its own on that server, as a role that
may do so, and drops them. Let nothing else run meanwhile that matters.`,
		Example: `  syncrelay bench --quick
  syncrelay bench --only fanout,memory --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Scale = bench.Full()
			if quick {
				o.Scale = bench.Quick()
			}
			return runBench(cmd, s, o, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&quick, "quick", false, "measure less, in less than two minutes")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.StringSliceVar(&o.Rows, "only", nil, "rows to measure: "+strings.Join(bench.Names(), ", ")+" (default: all)")
	f.StringVar(&o.DatabaseURL, "database-url", "", "a Postgres to measure on (default: one that is started for the run)")
	f.StringVar(&o.PostgresBin, "postgres-bin", "", "directory with the programs postgres and initdb (default: the newest that is found)")
	cmd.AddCommand(&cobra.Command{
		Use: "floor", Hidden: true, Short: "Runs a part alone, for bench itself",
		RunE: func(cmd *cobra.Command, args []string) error {
			return bench.Floor(cmd.Context(), args, s.environ, os.Stdin, s.out)
		},
	})
	return cmd
}

func runBench(cmd *cobra.Command, s streams, o bench.Options, asJSON bool) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's own file: %w", err)
	}
	o.Program, o.Environ, o.Progress, o.Sign = program, s.environ, s.err, signBench
	report, err := bench.Run(cmd.Context(), o)
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	write := report.WriteTable
	if asJSON {
		write = report.WriteJSON
	}
	if err := write(s.out); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if faults := report.Faults(); len(faults) > 0 {
		return fmt.Errorf("bench: %s", strings.Join(faults, "; "))
	}
	return nil
}

// signBench makes a token of one of the bench's clients.
func signBench(secret string, user int64, role string, cadet int64) (string, error) {
	return signToken(secret, tokenClaims{UserID: user, Role: role, CadetID: cadet, Approved: true}, tokenLife)
}
