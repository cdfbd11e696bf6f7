package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/stream/client"
)

// tail is the flags of tail.
type tail struct {
	access
	config string
	after  int64
	sse    bool
	quiet  bool
	colour string
	types  []string
	cadets []int64
	count  int64
}

func newTail(s streams) *cobra.Command {
	var t tail
	cmd := &cobra.Command{
		Use: "tail", Short: "Follows the events in a terminal, one JSON object a line", Args: noArguments,
		Long: `Follows a relay's events and prints each as the JSON object that it was sent as, on
one line: in colours on a terminal, plain when piped. What happens besides goes to
standard error. When the connection breaks it connects again and goes on after the
last event, so that none is missing and none comes twice. Ctrl-C ends it.

It sees what the user of its token may see. Where the settings of the relay are at
hand (--config, or the environment) and no token is given, it makes one for the
staff itself.`,
		Example: `  # what comes from now on, as the staff sees it
  SYNCRELAY_AUTH_HMAC_SECRET=… syncrelay tail

  # what cadet 17 was sent, from the beginning of what is kept
  SYNCRELAY_TOKEN="$(syncrelay token --user 5 --role cadet --cadet 17)" syncrelay tail --after 0

  # the next ten grades, for another program
  syncrelay tail --type grade_update --count 10 | jq .data

  # through a proxy that lets no WebSocket pass
  syncrelay tail --url https://grades.example.org --token-file ~/token --sse`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("after") {
				t.after = -1
			} else if t.after < 0 {
				return usageError{fmt.Errorf("--after is %d; allowed is an event ID, or 0 for the beginning of what is kept", t.after)}
			}
			if t.count < 0 {
				return usageError{fmt.Errorf("--count is %d; allowed is a whole number, 0 for no end", t.count)}
			}
			return t.run(cmd.Context(), s)
		},
	}
	t.addFlags(cmd)
	addConfigFlag(cmd, &t.config)
	f := cmd.Flags()
	f.Int64Var(&t.after, "after", 0, "begin after this event, 0 being the beginning of what is kept (default: the newest)")
	f.BoolVar(&t.sse, "sse", false, "follow by server-sent events, not by WebSocket")
	f.StringSliceVar(&t.types, "type", nil, "print events of these types only")
	mustMark(cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(usualTypes, cobra.ShellCompDirectiveNoFileComp)))
	f.Int64SliceVar(&t.cadets, "cadet", nil, "print events about these cadets only")
	f.Int64Var(&t.count, "count", 0, "end after so many events")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "say nothing on standard error while all goes well")
	addColourFlag(cmd, &t.colour)
	return cmd
}

// usualTypes are the event types that the writer functions write.
var usualTypes = []string{"grade_update", "attendance_update", "exam_score_update", "notification", "message"}

// addColourFlag adds the flag --color.
func addColourFlag(cmd *cobra.Command, mode *string) {
	cmd.Flags().StringVar(mode, "color", colourAuto, "use colours: auto (on a terminal, unless NO_COLOR is set), always or never")
	mustMark(cmd.RegisterFlagCompletionFunc("color", cobra.FixedCompletions([]string{colourAuto, colourAlways, colourNever}, cobra.ShellCompDirectiveNoFileComp)))
}

func (t *tail) run(ctx context.Context, s streams) error {
	terminal := isTerminal(s.out)
	colours, err := s.coloured(t.colour, terminal)
	if err != nil {
		return err
	}
	token, as, err := t.source(s, t.config)
	if err != nil {
		return err
	}
	say := sayer{w: s.err, quiet: t.quiet}
	if as != "" {
		say.line("no token was given: as %s", as)
	}
	address := t.address(s)
	var printed int64
	err = client.Follow(ctx, client.Options{
		URL: address, Token: token, After: t.after, SSE: t.sse,
		Notice: func(n client.Notice) { say.notice(address, n) },
	}, func(e client.Event) error {
		if !t.wanted(e) {
			return nil
		}
		text := e.JSON
		if terminal {
			text = tame(text)
		}
		if colours {
			text = colourJSON(text)
		}
		if _, err := s.out.Write(append(text[:len(text):len(text)], '\n')); err != nil {
			return fmt.Errorf("print an event: %w", err)
		}
		printed++
		if printed == t.count {
			return client.ErrEnough
		}
		return nil
	})
	if ctx.Err() != nil || isBrokenPipe(err) {
		return nil //nolint:nilerr // Ctrl-C, or whoever has read this has enough
	}
	var refusal *client.RefusalError
	switch {
	case errors.As(err, &refusal) && refusal.OfToken():
		return fmt.Errorf("%s refuses the token: %w", address, err)
	case errors.As(err, &refusal):
		return fmt.Errorf("%s: %w", address, err)
	}
	return err
}

// isBrokenPipe reports whether nobody reads what is written any more.
func isBrokenPipe(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

// wanted applies the filters.
func (t *tail) wanted(e client.Event) bool {
	return (len(t.types) == 0 || slices.Contains(t.types, e.Type)) &&
		(len(t.cadets) == 0 || e.CadetID != nil && slices.Contains(t.cadets, *e.CadetID))
}

// sayer tells people what happens besides events.
type sayer struct {
	w     io.Writer
	quiet bool
}

func (s sayer) line(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(s.w, format+"\n", args...)
	}
}

// notice tells of a notice. What may mean that something is missing is told in any
// case.
func (s sayer) notice(address string, n client.Notice) {
	loud := sayer{w: s.w}
	switch n.Kind {
	case client.Connected:
		who := fmt.Sprintf("user %d, %s", n.UserID, n.Role)
		if n.CadetID != nil {
			who += fmt.Sprintf(" %d", *n.CadetID)
		}
		s.line("connected to %s as %s; the newest event is %d", address, who, n.LastEventID)
	case client.CaughtUp:
		if n.Truncated {
			loud.line("some earlier events can't be sent any more: they are past retention, or the database was put back")
		}
		s.line("caught up with %d events, up to %d", n.Count, n.LastEventID)
	case client.Reset:
		loud.line("%v; going on after event %d", n.Err, n.LastEventID)
	case client.Renewed:
		s.line("the token was renewed")
	case client.Disconnected:
		s.line("%v; connecting again in %s", n.Err, n.Wait.Round(10*time.Millisecond))
	case client.Failed:
		loud.line("%v", n.Err)
	}
}
