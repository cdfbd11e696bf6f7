package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/syncrelay/syncrelay/configs"
)

func newHealth(s streams) *cobra.Command {
	var config string
	var ready bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "health", Short: "Asks the daemon on this machine whether it is well", Args: noArguments,
		Long: `Asks the daemon that runs on this machine with the same settings whether it is
well, at listen.ops_address, and exits with 1 if it is not. It is what a container
without a shell checks its health with.`,
		Example: `  syncrelay health
  syncrelay health --ready --config /etc/syncrelay.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := loadSettings(s, config)
			if err != nil {
				return err
			}
			path := "/healthz"
			if ready {
				path = "/readyz"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			answer, err := askHealth(ctx, healthURL(settings.Listen, path))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(s.out, answer)
			return err
		},
	}
	addConfigFlag(cmd, &config)
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it streams and has caught up, too")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	return cmd
}

// healthURL is where a daemon with these settings is asked from its own machine.
func healthURL(l configs.Listen, path string) string {
	host, port, _ := net.SplitHostPort(l.OpsAddress) // the settings have been checked
	switch ip := net.ParseIP(host); {
	case host == "" || ip != nil && ip.Equal(net.IPv4zero):
		host = "127.0.0.1"
	case ip != nil && ip.IsUnspecified():
		host = "::1"
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: path}
	if l.OpsTLSCertFile != "" {
		u.Scheme = "https"
	}
	return u.String()
}

// askHealth returns the daemon's answer, and an error if it is not well.
func askHealth(ctx context.Context, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return "", fmt.Errorf("ask %s: %w", address, err)
	}
	// Its certificate is for the name that others call it by.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the way leads nowhere but to this machine, and nothing secret goes over it
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", fmt.Errorf("the daemon does not answer at %s: %w", address, err)
	}
	defer func() { _ = response.Body.Close() }()
	const longest = 4 << 10
	body, err := io.ReadAll(io.LimitReader(response.Body, longest))
	if err != nil {
		return "", fmt.Errorf("read the answer of %s: %w", address, err)
	}
	answer := strings.TrimSpace(string(body))
	if response.StatusCode != http.StatusOK {
		return "", errors.New(answer)
	}
	return answer, nil
}
