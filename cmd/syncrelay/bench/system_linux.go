package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// supported fails on systems on which a process's costs can't be measured.
func supported() error { return nil }

// cpuTime is the CPU time that a process has used, all of its threads together,
// to the nanosecond. The clock's number is made as clock_getcpuclockid(3) does:
// the complement of the process's ID above the number of the scheduler's clock.
func cpuTime(pid int) (time.Duration, error) {
	const schedulerClock = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedulerClock), &t); err != nil { //nolint:gosec // process IDs are below 2^22
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// raiseFiles lets this process and its children open as many files as the
// system allows, and returns how many that is.
func raiseFiles() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("ask how many files may be open: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raise the limit of open files to %d: %w", limit.Max, err)
	}
	return limit.Cur, nil
}

// apart keeps a terminal's Ctrl-C from a child, which is stopped in order, and
// kills it should this process be killed.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// peakMemory is how much memory a process that has ended had resident at most,
// in bytes.
func peakMemory(state *os.ProcessState) int64 {
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		return usage.Maxrss << 10
	}
	return 0
}

// chunks are buffers for what connections receive: one for each that reads at
// the moment, not one for each connection.
type chunks struct{ pool sync.Pool }

func newChunks() *chunks {
	return &chunks{pool: sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}}
}

// pull hands over what a connection receives until take or the connection fails.
//
// A net.Conn's Read tries first and waits then, so that each receipt takes two
// system calls, and on two cores that makes the clients the bottleneck. This
// waits for the next edge without trying, as epoll(7) allows after a read that
// has not filled its buffer.
func pull(conn *net.TCPConn, buffers *chunks, take func([]byte) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("take the socket: %w", err)
	}
	var failed error
	err = raw.Read(func(fd uintptr) (done bool) {
		buffer := buffers.pool.Get().(*[]byte) //nolint:forcetypeassert // nothing else is in the pool
		defer buffers.pool.Put(buffer)
		for {
			n, err := syscall.Read(int(fd), *buffer)
			switch {
			case errors.Is(err, syscall.EAGAIN):
				return false
			case errors.Is(err, syscall.EINTR):
				continue
			case err == nil && n == 0:
				err = io.EOF
			}
			if err == nil {
				err = take((*buffer)[:n])
			}
			if err != nil {
				failed = err
				return true
			}
			if n < chunkSize {
				return false
			}
		}
	})
	if failed != nil {
		return failed
	}
	return err
}
