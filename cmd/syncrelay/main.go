// Command syncrelay relays rows of a Postgres outbox table to WebSocket and SSE
// clients. Each subcommand has a file of its own; serve.go is where the parts are
// wired together, and dev.go runs them with everything else that they need.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(untilSignal(context.Background()), os.Args[1:], streams{os.Stdout, os.Stderr, os.Environ()}))
}

// streams are what a command has of the world outside.
type streams struct {
	out, err io.Writer
	environ  []string
}

// Exit codes, besides 0.
const (
	exitFailure = 1
	exitUsage   = 2 // the command line itself is wrong
)

// run runs a command line and returns the exit code.
func run(ctx context.Context, args []string, s streams) int {
	root := newRoot(s)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !errors.Is(err, errUnwell) { // which has been told in full
		fmt.Fprintf(s.err, "syncrelay: %v\n", err)
	}
	if isUsage(err) {
		return exitUsage
	}
	return exitFailure
}

// untilSignal returns a context that ends with the first SIGINT or SIGTERM. The
// second one ends the process at once.
func untilSignal(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		second := <-signals
		code := 1
		if number, ok := second.(syscall.Signal); ok {
			code = 128 + int(number) // as a shell reports it
		}
		os.Exit(code)
	}()
	return ctx
}
