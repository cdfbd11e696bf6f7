package stream

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// unsent is how many bytes of what was written to a client the system keeps beside
// what is on its way. It calls a full socket writable again only when a third of
// its buffer is free, which is megabytes: without this (tcp(7), TCP_NOTSENT_LOWAT) a
// client that reads slowly but steadily would for long seem to take nothing.
const unsent = 128 << 10

// knowPeer prepares a connection for peers that are slow, and for those that have
// died without a word: it is broken when the peer's system has acknowledged nothing
// for a while. What is written to such a one stays in the system's buffer, so that
// for long no write fails and no deadline passes, and on an event stream the client
// has nothing to say by which it could be missed. Linux's own patience with what is
// not acknowledged is a quarter of an hour; with TCP_USER_TIMEOUT (RFC 5482) it is
// that long, also for a connection on which nothing is sent but keepalives.
func knowPeer(conn *net.TCPConn, patience time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("reach a socket: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience.Milliseconds()))
		if failed == nil {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("set TCP_USER_TIMEOUT and TCP_NOTSENT_LOWAT: %w", err)
	}
	return nil
}
