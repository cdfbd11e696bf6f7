package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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

New here? syncrelay dev runs everything on a Postgres of its own.

The settings come from a YAML file (--config) and the environment, which wins:
configs/README.md lists them. The exit code is 0, or 1 if the command failed, or 2
if the command line is wrong.`,
		Example: `  # everything, to look at
  syncrelay dev

  # for real
  export SYNCRELAY_DATABASE_URL=postgres://… SYNCRELAY_AUTH_HMAC_SECRET=…
  syncrelay migrate
  syncrelay doctor
  syncrelay serve`,
		SilenceErrors: true, // run prints them, on one line
		SilenceUsage:  true,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w%s; see %s --help", err, meantFlag(cmd, err), cmd.CommandPath())}
	})
	root.AddCommand(newServe(s), newDev(s), newDemo(s), newMigrate(s), newDoctor(s), newHealth(s), newToken(s), newTail(s), newExplain(s), newBench(s), newVersion(s))
	completeFlags(root)
	return root
}

// noArguments refuses what is no flag.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unknown command or argument %q%s; see %s --help", args[0], meantCommand(cmd, args[0]), cmd.CommandPath())}
	}
	return nil
}

// meantCommand names the command that was meant, if one is like what was written.
func meantCommand(cmd *cobra.Command, written string) string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	if best := configs.Nearest(written, names); best != "" {
		return fmt.Sprintf(", did you mean %s?", best)
	}
	return ""
}

// meantFlag names the flag that was meant, if it is known which one was not found
// and another is like it.
func meantFlag(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return ""
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if best := configs.Nearest(unknown.GetSpecifiedName(), names); best != "" {
		return fmt.Sprintf(", did you mean --%s?", best)
	}
	return ""
}

// addConfigFlag adds the flag that names the settings' file.
func addConfigFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "", "YAML file with the settings (see configs/syncrelay.yaml)")
	mustMark(cmd.MarkFlagFilename("config", "yaml", "yml"))
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
