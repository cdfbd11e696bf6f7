//go:build unix && !linux

package localpg

import "syscall"

// dieWithParent can't be asked for on this system.
func dieWithParent(*syscall.SysProcAttr) {}
