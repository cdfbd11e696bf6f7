package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/outbox"
)

// doctor is the flags of doctor.
type doctor struct {
	access
	config          string
	watch           time.Duration
	longTransaction time.Duration
	asJSON          bool
	colour          string
}

func newDoctor(s streams) *cobra.Command {
	var d doctor
	cmd := &cobra.Command{
		Use: "doctor", Short: "Checks a database and a configuration, and says what mends them", Args: noArguments,
		Long: `Checks the settings, the keys, the files and the database that serve would run with,
as the role that it would run as, one line a check: ok, a warning, or that it fails,
with what was found and the statement or setting that mends it. Statements are for
the database's owner or a superuser. Nothing is changed.

With --url it also follows a stream through the address that clients use, and says
whether what stands in between passes the WebSocket's upgrade, holds events back,
or, with --watch, cuts connections on which little happens.

The exit code is 1 if anything fails, which would stop serve or lose events.`,
		Example: `  syncrelay doctor --config /etc/syncrelay.yaml

  # through the proxy, watching a quiet connection for two minutes
  syncrelay doctor --config /etc/syncrelay.yaml --url https://grades.example.org --watch 2m

  # what fails, for a program
  syncrelay doctor --json | jq '.checks[] | select(.state == "fails")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.watch < 0 || d.watch > 0 && d.url == "" && s.variable(variableURL) == "" {
				return usageError{errors.New("--watch is of use with --url, and is a duration such as 60s")}
			}
			if _, err := s.coloured(d.colour, false); err != nil {
				return err
			}
			return d.run(cmd.Context(), s)
		},
	}
	addConfigFlag(cmd, &d.config)
	d.addFlags(cmd)
	f := cmd.Flags()
	f.DurationVar(&d.watch, "watch", 0, "with --url: keep the streams open for so long, and see whether they last")
	f.DurationVar(&d.longTransaction, "long-transaction", 5*time.Minute, "warn of transactions that are open for longer")
	f.BoolVar(&d.asJSON, "json", false, "print JSON")
	addColourFlag(cmd, &d.colour)
	return cmd
}

// errUnwell makes the exit code 1.
var errUnwell = errors.New("something fails")

func (d *doctor) run(ctx context.Context, s streams) error {
	var checks []outbox.Check
	// Who only names an address has no relay here to be checked.
	elsewhere := d.url != "" && d.config == "" && s.variable(variableDatabaseURL) == "" && s.variable(variableDatabaseURL+"_FILE") == ""
	if !elsewhere {
		checks = d.checkHere(ctx, s)
	}
	if d.url != "" || s.variable(variableURL) != "" {
		checks = append(checks, d.checkPath(ctx, s)...)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r := report{Checks: checks, verdict: "serve would work"}
	if elsewhere {
		r.verdict = "the way to the relay is clear"
	}
	for i := range checks {
		checks[i].Found, checks[i].Mend = oneLine(checks[i].Found), oneLine(checks[i].Mend)
		switch checks[i].State {
		case outbox.CheckFails:
			r.Fails++
		case outbox.CheckWarning:
			r.Warnings++
		default:
		}
	}
	r.OK = r.Fails == 0
	if err := d.print(s, r); err != nil {
		return fmt.Errorf("print the checks: %w", err)
	}
	if !r.OK {
		return errUnwell
	}
	return nil
}

// report is what doctor prints.
type report struct {
	OK       bool           `json:"ok"`
	Fails    int            `json:"fails"`
	Warnings int            `json:"warnings"`
	Checks   []outbox.Check `json:"checks"`

	verdict string // for people, if nothing fails
}

func (d *doctor) print(s streams, r report) error {
	if d.asJSON {
		e := json.NewEncoder(s.out)
		e.SetEscapeHTML(false) // statements stay as they are
		return e.Encode(r)
	}
	coloured, err := s.coloured(d.colour, isTerminal(s.out))
	if err != nil {
		return err
	}
	paint := map[outbox.CheckState]string{outbox.CheckOK: green, outbox.CheckWarning: yellow, outbox.CheckFails: bold + red}
	var out []string
	for _, c := range r.Checks {
		if c.State == outbox.CheckLeftOut {
			out = append(out, c.Name)
			continue
		}
		line := c.Found
		if c.Mend != "" {
			line += "; to mend it: " + c.Mend
		}
		state := fmt.Sprintf("%-8s", c.State)
		if coloured {
			state = paint[c.State] + state + plain
		}
		if _, err := fmt.Fprintf(s.out, "%s %-22s %s\n", state, c.Name, line); err != nil {
			return err
		}
	}
	return r.summary(s.out, slices.Compact(out))
}

// summary prints the last lines.
func (r report) summary(w io.Writer, leftOut []string) error {
	if len(leftOut) > 0 {
		if _, err := fmt.Fprintf(w, "left out, because what they need is missing: %s\n", strings.Join(leftOut, ", ")); err != nil {
			return err
		}
	}
	verdict := r.verdict
	if !r.OK {
		verdict = "mend what fails, from the top, and run it again"
	}
	_, err := fmt.Fprintf(w, "%d checks, %d warnings, %d fail: %s\n", len(r.Checks)-len(leftOut), r.Warnings, r.Fails, verdict)
	return err
}

// oneLine makes one line of a text.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
