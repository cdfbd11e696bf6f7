package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// contained is a command of the image's program as a container runs it: as
// nobody, in a root directory that holds the image's files and can't be written,
// with no variable of this process. Tests of a plain user do without the last two.
func contained(t testing.TB, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		cmd := exec.Command(imageBinary(t), args...)
		cmd.Dir, cmd.Env = "/", environ
		return cmd
	}
	root := t.TempDir()
	certificates := filepath.Join(root, "etc", "ssl", "certs")
	if err := os.MkdirAll(certificates, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, imageBinary(t), filepath.Join(root, "syncrelay"), 0o555)
	for dir := certificates; strings.HasPrefix(dir, root); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	const nobody = 65532 // USER of the Dockerfile
	cmd := exec.Command("/syncrelay", args...)
	cmd.Dir, cmd.Env = "/", environ
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}
