package localpg

import (
	"os/exec"
	"syscall"
)

// account is always the caller's own on Windows.
type account struct{}

func unprivileged() (*account, error)     { return nil, nil } //nolint:nilnil // the caller's own account
func (*account) own(string) error         { return nil }
func (*account) reaches(string) error     { return nil }
func (*account) prepare(*exec.Cmd)        {}
func (p *process) interrupt(_ Mode) error { p.kill(); return nil }
func (p *process) kill()                  { _ = p.cmd.Process.Kill(); <-p.ended }

func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}
