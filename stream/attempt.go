package stream

import (
	"net"
	"syscall"
)

// attempt is a write that does not wait: it takes what has room in the socket's
// buffer. One is used again and again, so that it costs no memory.
type attempt struct {
	b   []byte
	n   int
	err error
	do  func(fd uintptr) bool // write, bound once
}

// try writes as much of b as there is room for.
func (a *attempt) try(raw syscall.RawConn, b []byte) (int, error) {
	a.b, a.n, a.err = b, 0, nil
	err := raw.Write(a.do)
	a.b = nil
	if err == nil {
		err = a.err
	}
	return a.n, err
}

// pull is a read of a socket, which waits for as long as nothing has come. It takes
// less stack than [net.Conn]'s own: just so much less that a goroutine which waits
// for a client by way of gorilla needs none larger than the smallest there is.
type pull struct {
	b   []byte
	n   int
	err error
	do  func(fd uintptr) bool // read, bound once
}

// rawConn is a connection's socket, nil if it can't be read and written past the
// connection: those of TLS are more than what stands in the socket, and so may be any
// that a listener of somebody else's has made.
func rawConn(conn net.Conn) syscall.RawConn {
	if s, ok := conn.(*socket); ok {
		conn = s.Conn
	}
	if !canAttempt {
		return nil
	}
	var raw syscall.RawConn
	var err error
	switch conn := conn.(type) {
	case *net.TCPConn:
		raw, err = conn.SyscallConn()
	case *net.UnixConn:
		raw, err = conn.SyscallConn()
	}
	if err != nil {
		return nil
	}
	return raw
}
