//go:build unix

package localpg

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// account is the user that the server runs as; nil for the caller's own.
type account struct {
	name     string
	uid, gid uint32
}

// unprivileged chooses the account: Postgres refuses to run as root.
func unprivileged() (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // the caller's own account
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("Postgres does not run as root, and there is no user postgres or nobody: run this as another user, or useradd --system postgres")
}

// own gives a directory to the account.
func (a *account) own(dir string) error {
	if a == nil {
		return nil
	}
	if err := os.Chown(dir, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("give %s to user %s: %w", dir, a.name, err)
	}
	return nil
}

// reaches fails if the account can't get to a directory because of one above it.
func (a *account) reaches(dir string) error {
	if a == nil {
		return nil
	}
	for up := filepath.Dir(dir); ; up = filepath.Dir(up) {
		info, err := os.Stat(up)
		if err != nil {
			return fmt.Errorf("look at %s: %w", up, err)
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if ok && info.Mode().Perm()&0o001 == 0 && stat.Uid != a.uid && (stat.Gid != a.gid || info.Mode().Perm()&0o010 == 0) {
			return fmt.Errorf("user %s, as whom Postgres runs, can't get through %s to %s: chmod o+x %s, or name another directory", a.name, up, dir, up)
		}
		if up == filepath.Dir(up) {
			return nil
		}
	}
}

// prepare makes a command run as the account.
func (a *account) prepare(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if a != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
}

// detach keeps a terminal's Ctrl-C from the server: who started it stops it, in
// order.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr)
}

func (p *process) interrupt(mode Mode) error {
	signal := syscall.SIGINT
	if mode == Immediate {
		signal = syscall.SIGQUIT
	}
	return p.cmd.Process.Signal(signal)
}

// kill ends the server's processes at once. Each of its children leads a group
// of its own, so that they have to be found one by one; stopping the first
// process before keeps it from starting more.
func (p *process) kill() {
	pid := p.cmd.Process.Pid
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	children := childrenOf(pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	for _, child := range children {
		_ = syscall.Kill(child, syscall.SIGKILL)
	}
	<-p.ended
	deadline := time.Now().Add(10 * time.Second)
	for _, child := range children {
		for syscall.Kill(child, 0) == nil && !zombie(child) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
	}
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(pid int) (children []int) {
	out, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output() //nolint:noctx // answers at once
	if err != nil {
		return procChildren(pid)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 2 && fields[1] == strconv.Itoa(pid) {
			if child, err := strconv.Atoi(fields[0]); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// procChildren is childrenOf where there is no ps, as in small containers.
func procChildren(pid int) (children []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		fields := statFields(path)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			if child, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// zombie reports whether a process has ended and waits for its new parent, which
// in a container may be nobody who cares.
func zombie(pid int) bool {
	fields := statFields(fmt.Sprintf("/proc/%d/stat", pid))
	return len(fields) > 0 && fields[0] == "Z"
}

// statFields are the fields of a process's stat behind its name: state, parent, …
func statFields(path string) []string {
	b, err := os.ReadFile(path) //nolint:gosec // below /proc
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.Fields(rest)
}
