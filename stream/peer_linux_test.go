package stream_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/stream"
)

// die makes a socket's end of a connection as one of a machine that has lost its
// power: nothing that comes for it is taken or acknowledged any more.
func die(t *testing.T, conn net.Conn) {
	t.Helper()
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
	})
	if errors.Is(failed, unix.EPERM) {
		t.Skip("this system lets only root drop what comes to a socket")
	}
	if err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

func TestADeadPeerOfAnEventStreamIsFoundByItsSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{Heartbeat: 200 * time.Millisecond, PeerTimeout: 2 * time.Second}})
	dialer := net.Dialer{KeepAlive: -1} // the dead send none
	conn, err := dialer.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /api/events?token="+sign(t, admin)+" HTTP/1.1\r\nHost: relay\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	living := w.follow(t, admin)
	w.wantConnections(t, 2)
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	die(t, conn)
	w.wantConnections(t, 1)
	w.Insert(grade(17))
	wantEvents(t, living, 1)
}

// TestWhoReadsSlowlyButSteadilyIsNotLetGo: far more slowly than it is written to,
// by a rate at which a third of a large socket buffer takes longer than a write may.
func TestWhoReadsSlowlyButSteadilyIsNotLetGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{WriteTimeout: 5 * time.Second}})
	conn := w.raw(t)
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = fmt.Fprintf(conn, "GET /api/events?token=%s HTTP/1.1\r\nHost: relay\r\n\r\n", sign(t, admin))
	b := make([]byte, 4<<10)
	if _, err := conn.Read(b); err != nil {
		t.Fatal(err)
	}
	text := relay.Row{Type: "notification", Roles: []string{"admin"}, Payload: textOf(2000)}
	go func() {
		for range 100 {
			w.Insert(slices.Repeat([]relay.Row{text}, 40)...)
		}
	}()
	pace := time.NewTicker(50 * time.Millisecond)
	defer pace.Stop()
	for begun := time.Now(); time.Since(begun) < 14*time.Second; <-pace.C { // 80 KB/s
		if _, err := io.ReadFull(conn, b); err != nil {
			t.Fatalf("it was let go after %s: %v", time.Since(begun), err)
		}
	}
	w.wantMetric(t, `syncrelay_connections{transport="sse"}`, 1) // much of what was written may still be on its way
	w.wantMetric(t, `syncrelay_disconnects_total{reason="slow",transport="sse"}`, 0)
}
