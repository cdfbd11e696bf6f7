package localpg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// process is the server's first process.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
}

// startProcess starts the server. Where the system can, it is told to shut the
// server down when this process dies, whatever the cause. That order is tied to
// the thread that gave it, so a goroutine keeps its thread for as long as the
// server lives.
func (s *Server) startProcess(args []string) (*process, error) {
	logFile, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the server's log: %w", err)
	}
	cmd := exec.Command(filepath.Join(s.binDir, program("postgres")), args...) //nolint:gosec,noctx // the programs that were found; ended by its own signals
	cmd.Dir, cmd.Env = s.own, environment()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	s.account.prepare(cmd)
	detach(cmd)
	p := &process{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // its log says why it ended
			close(p.ended)
		}
		_ = logFile.Close()
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}
