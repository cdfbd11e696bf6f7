//go:build !linux

package main

import (
	"os/exec"
	"testing"
)

// contained is a command of the image's program; containers are Linux's.
func contained(t testing.TB, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(imageBinary(t), args...)
	cmd.Env = environ
	return cmd
}
