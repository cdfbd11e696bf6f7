//go:build unix

package stream

import (
	"errors"
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
