package stream

import "syscall"

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

// rawConn is a connection's socket, nil if its writes can't be attempted: those
// of TLS are more than what stands in the socket.
func rawConn(conn any) syscall.RawConn {
	c, ok := conn.(syscall.Conn)
	if !ok || !canAttempt {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}
