package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/configs"
	"github.com/syncrelay/syncrelay/relay"
)

// access is how a command that is a client of a relay reaches it: the flags that
// say where it is, and as whom.
type access struct {
	url, token, tokenFile string
}

// defaultURL is where serve and dev listen, unless told otherwise.
const defaultURL = "http://127.0.0.1:8000"

func (a *access) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.url, "url", "", "the relay's address (environment "+configs.VariableURL+"; default "+defaultURL+")")
	f.StringVar(&a.token, "token", "", "the token (others on this machine can read it in the list of processes: prefer "+configs.VariableToken+" or --token-file)")
	f.StringVar(&a.tokenFile, "token-file", "", "a file with the token, read again when it is needed again (environment "+configs.VariableTokenFile+")")
	mustMark(cmd.MarkFlagFilename("token-file"))
}

// address is the relay's address: of the flag, the environment, or the default.
func (a *access) address(s streams) string {
	for _, given := range []string{a.url, s.variable(configs.VariableURL)} {
		if given != "" {
			return given
		}
	}
	return defaultURL
}

// selfMade is how long a token is valid that a command makes for itself. It is
// made anew in time.
const selfMade = 10 * time.Minute

// errNoToken says how to get one.
var errNoToken = errors.New("no token; give one with " + configs.VariableToken + " or --token-file, such as " +
	configs.VariableToken + `="$(syncrelay token --user 1 --role admin)", or the settings of the relay (--config, or SYNCRELAY_AUTH_HMAC_SECRET), and one is made`)

// source is where the token comes from: of the flags and then the environment, the
// first that is given; else one for the staff is made, if the settings have the
// secret that the relay checks tokens with. as says whose that is, for people.
func (a *access) source(s streams, config string) (token func(context.Context) (string, error), as string, err error) {
	fixed, file := a.token, a.tokenFile
	if fixed != "" && file != "" {
		return nil, "", usageError{errors.New("found --token and --token-file; allowed is one of them")}
	}
	if fixed == "" && file == "" {
		fixed, file = s.variable(configs.VariableToken), s.variable(configs.VariableTokenFile)
	}
	switch {
	case fixed != "":
		return func(context.Context) (string, error) { return strings.TrimSpace(fixed), nil }, "", nil
	case file != "":
		return func(context.Context) (string, error) { return readToken(file) }, "", nil
	}
	settings, err := configs.Load(config, s.environ)
	switch {
	case err != nil:
		return nil, "", err
	case settings.Auth.HMACSecret.Empty():
		return nil, "", errNoToken
	case settings.Auth.Identity == identityFromDatabase:
		return nil, "", fmt.Errorf("%w (not so with auth.identity: database, where a user must be one of its own)", errNoToken)
	}
	claims := tokenClaims{UserID: 1, Role: relay.StaffRoles(settings.Auth.StaffRoles)[0], Approved: true}
	return func(context.Context) (string, error) { return signTokenFor(settings.Auth, claims, selfMade) },
		fmt.Sprintf("user %d with the role %s", claims.UserID, claims.Role), nil
}

// maxTokenFile bounds what is read of a token's file.
const maxTokenFile = 64 << 10

func readToken(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // the operator's own choice
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	defer func() { _ = file.Close() }() // it is only read
	text := make([]byte, maxTokenFile)
	n, err := file.Read(text)
	token := strings.TrimSpace(string(text[:n]))
	if token == "" {
		return "", fmt.Errorf("--token-file: found no token in %s", path)
	}
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return token, nil
}
