package bench

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// The floors are what the relay can't do without, and nothing else: a reader of
// the slot that decodes what it is sent, and a server that upgrades connections
// and writes one prepared frame to each. They share no code with the relay.

// Names of the floors.
const (
	floorReader = "reader"
	floorServer = "server"
)

// floorURL is the environment variable of a floor's database: an address with a
// password must not stand in a command line.
const floorURL = "BENCH_FLOOR_DATABASE_URL"

// Floor runs a floor until its input ends or it is done. It is the other side of
// the bench's own pipe, and no command for people.
func Floor(ctx context.Context, args, environ []string, in io.Reader, out io.Writer) error {
	var url string
	for _, entry := range environ {
		if value, ok := strings.CutPrefix(entry, floorURL+"="); ok {
			url = value
		}
	}
	switch {
	case len(args) == 4 && args[0] == floorReader:
		return runReader(ctx, url, args[1:], out)
	case len(args) == 1 && args[0] == floorServer:
		return runServer(ctx, in, out)
	}
	return fmt.Errorf("there is no floor %q", strings.Join(args, " "))
}
