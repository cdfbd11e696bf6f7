//go:build !linux

package bench

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// supported fails on systems on which a process's costs can't be measured.
func supported() error {
	return fmt.Errorf("the bench runs on linux only, where it can tell what each process costs; this is %s", runtime.GOOS)
}

func cpuTime(int) (time.Duration, error) { return 0, supported() }

func peakMemory(*os.ProcessState) int64 { return 0 }

func raiseFiles() (uint64, error) { return 0, supported() }

func apart() *syscall.SysProcAttr { return nil }

type chunks struct{}

func newChunks() *chunks { return nil }

func pull(*net.TCPConn, *chunks, func([]byte) error) error { return supported() }
