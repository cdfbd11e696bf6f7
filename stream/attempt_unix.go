//go:build unix

package stream

import (
	"errors"
	"io"
	"os"
	"syscall"
)

const canAttempt = true

// write is what the connection calls with its socket, which does not block.
func (a *attempt) write(fd uintptr) bool {
	for a.n < len(a.b) {
		n, err := syscall.Write(int(fd), a.b[a.n:])
		switch {
		case err == nil:
			a.n += n
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return true // there is no room now; true is not to be called again
		default:
			a.err = os.NewSyscallError("write", err)
			return true
		}
	}
	return true
}

// read is what the connection calls with its socket, again and again until it
// returns true: whenever something may have come.
func (a *pull) read(fd uintptr) bool {
	for {
		n, err := syscall.Read(int(fd), a.b)
		switch err { // errors.Is would take more stack than there is
		case syscall.EINTR:
		case syscall.EAGAIN:
			return false
		case nil:
			a.n, a.err = n, nil
			if n == 0 && len(a.b) > 0 {
				a.err = io.EOF
			}
			return true
		default:
			a.n, a.err = 0, os.NewSyscallError("read", err)
			return true
		}
	}
}
