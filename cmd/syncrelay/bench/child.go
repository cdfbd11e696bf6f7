package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// child is a process that the bench has started: the relay or a floor.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	// said are the lines that it has printed on the stream that was asked for,
	// and log the end of what it has printed on standard error.
	said  *lines
	log   *lines
	ended chan struct{}
	floor bool  // it may end however it likes once it is told to
	err   error // why it ended; set before ended is closed
	peak  int64 // bytes of memory at most, once it has ended
}

// lines splits what a process prints into lines. The newest are kept, and those
// that somebody waits for are handed on.
type lines struct {
	mu      sync.Mutex
	partial []byte
	kept    []string
	next    chan string
}

// How many lines are kept to be shown, and how many wait for a reader. What is
// more is dropped: a log that nobody reads must not block who writes it.
const (
	linesKept    = 5
	linesWaiting = 64
)

// Write is part of [io.Writer].
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.partial = append(l.partial, p...)
	for {
		line, rest, found := bytes.Cut(l.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		text := string(line)
		l.partial = append(l.partial[:0], rest...)
		if l.kept = append(l.kept, text); len(l.kept) > linesKept {
			l.kept = l.kept[1:]
		}
		select {
		case l.next <- text:
		default:
		}
	}
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.kept, " | ")
}

// spawn starts this program with other arguments. Of its output, standard error
// is kept for messages; fromLog hands its lines on too, rather than those of
// standard output. Like localpg's server the child is tied to a thread.
func (b *bench) spawn(name string, environ []string, fromLog bool, args ...string) (*child, error) {
	c := &child{name: name, log: &lines{next: make(chan string, linesWaiting)}, said: &lines{next: make(chan string, linesWaiting)}, ended: make(chan struct{})}
	c.cmd = exec.Command(b.o.Program, args...) //nolint:gosec,noctx // this very program; stopped by stop
	c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = environ, c.said, c.log, apart()
	if c.floor = !fromLog; fromLog {
		c.said = c.log
	}
	var err error
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("make a pipe to %s: %w", name, err)
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		c.err = c.cmd.Wait()
		c.peak = peakMemory(c.cmd.ProcessState)
		close(c.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return c, nil
}

// failure says why the process has ended.
func (c *child) failure() error {
	return fmt.Errorf("%s has ended (%w): %s", c.name, c.err, c.log)
}

// line waits for the next line that the process prints.
func (c *child) line(ctx context.Context) (string, error) {
	select {
	case line := <-c.said.next:
		return line, nil
	default:
	}
	select {
	case line := <-c.said.next:
		return line, nil
	case <-c.ended:
		select {
		case line := <-c.said.next:
			return line, nil
		default:
			return "", c.failure()
		}
	case <-ctx.Done():
		return "", fmt.Errorf("wait for %s: %w", c.name, context.Cause(ctx))
	}
}

// tell writes a line to the process's standard input.
func (c *child) tell(line string) error {
	if _, err := io.WriteString(c.stdin, line+"\n"); err != nil {
		return fmt.Errorf("tell %s to %s: %w", c.name, line, err)
	}
	return nil
}

// stopPatience is how long a process may take to stop in order.
const stopPatience = 15 * time.Second

// stop stops the process in order. Stopping twice is safe.
func (c *child) stop() error {
	asked := true
	select {
	case <-c.ended:
		asked = false
	default:
	}
	_ = c.stdin.Close()
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(stopPatience):
		_ = c.cmd.Process.Kill()
		<-c.ended
		return fmt.Errorf("%s did not stop within %s: %s", c.name, stopPatience, c.log)
	}
	if c.err == nil || c.floor && asked {
		return nil
	}
	return c.failure()
}

// cpu is the CPU time that the process has used.
func (c *child) cpu() (time.Duration, error) { return cpuTime(c.cmd.Process.Pid) }

// memory reads an entry of the process's status, such as VmRSS, in bytes.
func (c *child) memory(entry string) (int64, error) {
	path := fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid)
	status, err := os.ReadFile(path) //nolint:gosec // below /proc
	if err != nil {
		return 0, fmt.Errorf("read the memory of %s: %w", c.name, err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != entry {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s in %s: %w", entry, path, err)
		}
		return kb << 10, nil
	}
	return 0, fmt.Errorf("%s has no %s", path, entry)
}
