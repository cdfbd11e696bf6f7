package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/configs"
)

// usageError is a mistake in the command line itself.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func isUsage(err error) bool {
	var usage usageError
	return errors.As(err, &usage)
}

// newRoot makes the command tree.
func newRoot(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "syncrelay",
		Short: "Relays rows of a Postgres outbox table to WebSocket and SSE clients",
		Long: `syncrelay streams the rows that applications insert into the table sync_events
out of Postgres's write-ahead log, and sends them to the WebSocket and SSE
clients that may see them: once, in commit order.

New here? syncrelay dev runs everything on a Postgres of its own.`,
		SilenceErrors: true, // run prints them, on one line
		SilenceUsage:  true,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(newServe(s), newDev(s), newMigrate(s), newToken(s), newVersion(s))
	return root
}

// noArguments refuses what is no flag.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command or argument %q; see %s --help", args[0], cmd.CommandPath())}
	}
	return nil
}

// addConfigFlag adds the flag that names the settings' file.
func addConfigFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "", "YAML file with the settings (see configs/syncrelay.yaml)")
}

// loadSettings loads the settings and checks that those are there which a
// command can't do without.
func loadSettings(s streams, path string, required ...string) (configs.Settings, error) {
	settings, err := configs.Load(path, s.environ)
	if err != nil {
		return settings, err
	}
	return settings, settings.Require(required...)
}

// newLogger makes the logger that the settings ask for.
func newLogger(w io.Writer, s configs.Log) *slog.Logger {
	o := &slog.HandlerOptions{Level: s.Level}
	if s.Format == "text" || s.Format == "" && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
