package stream

import (
	"net"
	"sync"
	"syscall"
)

// attempt is a write that does not wait: it takes what has room in the socket's
// buffer.
type attempt struct {
	b   []byte
	n   int
	err error
	do  func(fd uintptr) bool // write, bound once
}

// attempts is shared by all servers, as pools are for: so an attempt costs no memory.
var attempts = sync.Pool{New: func() any {
	a := &attempt{}
	a.do = a.write
	return a
}}

// tryWrite writes as much of b as there is room for, and returns how much that was.
func tryWrite(raw syscall.RawConn, b []byte) (int, error) {
	a := attempts.Get().(*attempt) //nolint:forcetypeassert // nothing else is put
	defer attempts.Put(a)
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
