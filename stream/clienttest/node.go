package clienttest

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

//go:embed driver.js
var driver []byte

//go:embed node.mjs
var nodeMain []byte

// nodeFlag gives Node 20 and 21 the WebSocket that later ones have anyway.
const nodeFlag = "--experimental-websocket"

// NewNode runs the client that a relay serves in Node. It ends with the test.
func NewNode(t testing.TB, relay string) *Host {
	t.Helper()
	path := Program(t, "node")
	if out, err := exec.CommandContext(t.Context(), path, nodeFlag, "--eval", "process.exit(typeof WebSocket === 'function' ? 0 : 1)").CombinedOutput(); err != nil { //nolint:gosec // it is the machine's node
		missing(t, "node", fmt.Sprintf("20.10 or later is needed, with WebSocket: %v: %s", err, out))
	}
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"client.js": download(t, relay+"/client.js"), "driver.js": driver, "node.mjs": nodeMain, "package.json": []byte(`{"type":"module"}`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t)
	cmd := exec.Command(path, nodeFlag, "--no-warnings", filepath.Join(dir, "node.mjs")) //nolint:gosec,noctx // it ends with its standard input
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start node: %v", err)
	}
	h.tell = func(command []byte) error {
		_, err := in.Write(append(command, '\n'))
		return err
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewReaderSize(out, 64<<10)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				h.fail(fmt.Errorf("node has ended: %w", err))
				return
			}
			h.hear(line)
		}
	}()
	t.Cleanup(func() {
		_ = in.Close() // which ends it
		killer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		<-read
		_ = cmd.Wait()
		killer.Stop()
	})
	h.await("node", func() bool { return h.ready })
	return h
}

// download reads what an address serves.
func download(t testing.TB, address string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("fetch the client: %v", err)
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("fetch the client: %s, %v", response.Status, err)
	}
	return content
}
