package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/outbox"
	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/stream"
)

// explain is the flags of explain.
type explain struct {
	config           string
	event, row       int64
	token, tokenFile string
	user, cadet      int64
	role             string
	asJSON           bool
}

func newExplain(s streams) *cobra.Command {
	var e explain
	cmd := &cobra.Command{
		Use: "explain", Short: "Says whether somebody is sent an event, and why or why not", Args: noArguments,
		Long: `Says whether a user is sent an event, by which rule, or why not: not in its audience,
not let in, past retention, never committed, a type that is sent to nobody. It asks
the journal, and decides as the relay does. The exit code is 0 whatever the answer.

The user is that of a token, or is described by --user, --role and --cadet. With
auth.identity: database --user is enough.`,
		Example: `  # why did cadet 17 not see event 1042?
  syncrelay explain --event 1042 --user 5 --role cadet --cadet 17

  # and the holder of this token?
  syncrelay explain --event 1042 --token-file ~/token

  # what has become of row 12345 of sync_events?
  syncrelay explain --row 12345 --user 1 --role admin --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.check(cmd.Flags().Changed); err != nil {
				return err
			}
			settings, err := loadSettings(s, e.config, "database.url")
			if err != nil {
				return err
			}
			answers, err := e.answer(cmd.Context(), settings)
			if err != nil {
				return err
			}
			return e.print(s.out, answers)
		},
	}
	addConfigFlag(cmd, &e.config)
	f := cmd.Flags()
	f.Int64Var(&e.event, "event", 0, "the event's ID, as clients see it")
	f.Int64Var(&e.row, "row", 0, "instead of the event's: the id of the row in sync_events")
	f.StringVar(&e.token, "token", "", "the user's token (others on this machine can read it in the list of processes: prefer --token-file)")
	f.StringVar(&e.tokenFile, "token-file", "", "a file with the user's token")
	f.Int64Var(&e.user, "user", 0, "the user's ID")
	f.StringVar(&e.role, "role", "", "the user's role")
	completeRoles(cmd)
	mustMark(cmd.MarkFlagFilename("token-file"))
	f.Int64Var(&e.cadet, "cadet", 0, "the cadet that the user is")
	f.BoolVar(&e.asJSON, "json", false, "print JSON, one object an event")
	return cmd
}

// check says what is wrong with the flags.
func (e *explain) check(given func(flag string) bool) error {
	described := given("user") || given("role") || given("cadet")
	switch {
	case given("event") == given("row"):
		return usageError{errors.New("found both or none of --event and --row; allowed is one of them")}
	case given("event") && (e.event < 1 || e.event > relay.MaxEventID):
		return usageError{fmt.Errorf("--event is %d; allowed is an event ID, from 1 to %d", e.event, int64(relay.MaxEventID))}
	case given("token") && given("token-file"), (given("token") || given("token-file")) == described:
		return usageError{errors.New("found several or none of --token, --token-file and --user; allowed is one of them")}
	case described && e.user <= 0:
		return usageError{fmt.Errorf("--user is %d; allowed is a whole number above 0", e.user)}
	case given("role") && !relay.ValidRole(e.role):
		return usageError{fmt.Errorf("--role is %q; allowed are 1 to 64 letters, digits, _ and -", e.role)}
	case given("cadet") && e.cadet <= 0:
		return usageError{fmt.Errorf("--cadet is %d; allowed is a whole number above 0", e.cadet)}
	}
	return nil
}

// answer looks everything up and decides.
func (e *explain) answer(ctx context.Context, s configs.Settings) ([]answer, error) {
	options := outbox.Options{URL: s.Database.URL.Reveal(), Slot: s.Database.Slot, Publication: s.Database.Publication}
	who, err := e.identify(ctx, s, options)
	if err != nil {
		return nil, err
	}
	journal, err := outbox.NewJournal(options)
	if err != nil {
		return nil, err
	}
	defer journal.Close()
	c := explanation{journal: journal, who: who, staffRoles: relay.StaffRoles(s.Auth.StaffRoles)}
	if e.row != 0 {
		return c.row(ctx, e.row)
	}
	a, err := c.event(ctx, e.event)
	return []answer{a}, err
}

// somebody is whom the question is about.
type somebody struct {
	relay.Identity
	// refused is why that user is not let in; empty if they are.
	refused string
}

// identify finds out who that is, as the relay would.
func (e *explain) identify(ctx context.Context, s configs.Settings, o outbox.Options) (who somebody, err error) {
	if e.user != 0 {
		who.Identity = relay.Identity{UserID: e.user, Role: e.role, CadetID: e.cadet, HasCadet: e.cadet != 0}
	} else if who, err = e.verify(ctx, s); err != nil || who.refused != "" {
		return who, err
	}
	if s.Auth.Identity != identityFromDatabase {
		if who.Role == "" {
			return who, usageError{errors.New("--role is missing; it is required with --user, unless auth.identity is database")}
		}
		return who, nil
	}
	if e.role != "" || e.cadet != 0 {
		return who, usageError{errors.New("found --role or --cadet, which the database says with auth.identity: database; allowed is --user alone")}
	}
	directory, err := outbox.NewDirectory(o, s.Auth.IdentityQuery)
	if err != nil {
		return who, err
	}
	defer directory.Close()
	user := who.UserID
	who.Identity, err = stream.Identify(ctx, directory, user)
	var refused *stream.AuthError
	if errors.As(err, &refused) {
		return somebody{Identity: relay.Identity{UserID: user}, refused: refused.Error()}, nil
	}
	return who, err
}

// verify checks the token.
func (e *explain) verify(ctx context.Context, s configs.Settings) (who somebody, err error) {
	token := strings.TrimSpace(e.token)
	if e.tokenFile != "" {
		if token, err = readToken(e.tokenFile); err != nil {
			return who, err
		}
	}
	if err := s.Require(configs.AnyKey); err != nil {
		return who, fmt.Errorf("check the token: %w", err)
	}
	verifier, err := newVerifier(s.Auth, nil, nil)
	if err != nil {
		return who, err
	}
	id, err := verifier.Verify(ctx, token)
	var refused *stream.AuthError
	switch {
	case errors.As(err, &refused):
		return somebody{refused: refused.Error()}, nil
	case err != nil:
		return who, err
	}
	return somebody{Identity: id.Identity}, nil
}

// print prints the answers, for people or for programs.
func (e *explain) print(w io.Writer, answers []answer) error {
	for i, a := range answers {
		if e.asJSON {
			if err := json.NewEncoder(w).Encode(a); err != nil {
				return fmt.Errorf("print the answer: %w", err)
			}
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		for _, line := range a.lines() {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return fmt.Errorf("print the answer: %w", err)
			}
		}
	}
	return nil
}

// names lists groups for people.
func names(groups []relay.Group) string {
	texts := make([]string, len(groups))
	for i, g := range groups {
		texts[i] = g.String()
	}
	return strings.Join(texts, ", ")
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
