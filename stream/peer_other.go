//go:build !linux

package stream

import (
	"net"
	"time"
)

// knowPeer breaks a connection whose peer's system does not answer
// keepalives for a while. What was sent and is not acknowledged has the system's
// own patience.
func knowPeer(conn *net.TCPConn, patience time.Duration) error {
	return conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: patience / 4, Interval: patience / 4, Count: 3})
}
