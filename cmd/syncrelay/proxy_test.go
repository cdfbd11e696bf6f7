package main

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// frontProxy is a proxy in front of a relay, with the configuration that the guide shows.
type frontProxy struct {
	name string
	// start starts it in front of a relay, and says where its access log is read.
	start func(t *testing.T, relay string) (address string, accessLog func() string)
}

var frontProxies = []frontProxy{{"nginx", startNginx}, {"caddy", startCaddy}}

// shownConfiguration reads a configuration that the guide shows, with its addresses and
// other things that can't be here as they are there replaced. All must be found.
func shownConfiguration(t *testing.T, file string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile("../../configs/proxy/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(string(text), replace[i]) {
			t.Fatalf("%s has no %q", file, replace[i])
		}
	}
	return strings.NewReplacer(replace...).Replace(string(text))
}

// impatience is how long the proxies of the tests let an idle connection live; the
// relay says something more often than that.
const impatience = 4 * time.Second

func startNginx(t *testing.T, relay string) (address string, accessLog func() string) {
	t.Helper()
	installed(t, "nginx", "nginx-light")
	address = freeAddress(t)
	log := filepath.Join(t.TempDir(), "access.log")
	site := shownConfiguration(t, "nginx.conf", "server 127.0.0.1:8000;", "server "+relay+";", "listen 8080;", "listen "+address+";",
		"/var/log/nginx/syncrelay.log", log, "75s;", impatience.String()+";")
	launchNginx(t, address, site)
	return address, func() string {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
}

// launchNginx starts nginx with what stands in its http part.
func launchNginx(t *testing.T, address, site string) {
	t.Helper()
	program, dir := installed(t, "nginx", "nginx-light"), t.TempDir()
	config := "daemon off; master_process off; error_log stderr; pid " + dir + "/pid;\nevents {}\nhttp {\naccess_log off; # where nothing else is set, it is a file of root's\n"
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += kind + "_temp_path " + dir + "/" + kind + ";\n"
	}
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config+site+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	launchProxy(t, address, exec.Command(program, "-p", dir, "-e", "stderr", "-c", path))
}

func startCaddy(t *testing.T, relay string) (address string, accessLog func() string) {
	t.Helper()
	program, dir := installed(t, "caddy", "caddy"), t.TempDir()
	address = freeAddress(t)
	site := shownConfiguration(t, "Caddyfile", ":8080 {", "http://"+address+" {", "127.0.0.1:8000", relay)
	path := filepath.Join(dir, "Caddyfile")
	if err := os.WriteFile(path, []byte("{\n\tadmin off\n}\n"+site), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "run", "--config", path, "--adapter", "caddyfile")
	cmd.Env = []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
	p := launchProxy(t, address, cmd)
	return address, func() string { return p.err.String() }
}

// launchProxy starts a proxy and waits until it listens.
func launchProxy(t *testing.T, address string, cmd *exec.Cmd) *program {
	t.Helper()
	p := launchCommand(t, cmd)
	eventually(t, "the proxy listens", func() bool {
		select {
		case <-p.ended:
			t.Fatalf("the proxy has ended: %s%s", p.out, p.err)
		default:
		}
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	return p
}

func TestProxiesOfTheGuidePassEventsAtOnceAndKeepIdleConnections(t *testing.T) {
	t.Parallel()
	for _, proxy := range frontProxies {
		t.Run(proxy.name, func(t *testing.T) {
			t.Parallel()
			p := newDatabase(t)
			p.start("SYNCRELAY_STREAM_HEARTBEAT=1s", "SYNCRELAY_STREAM_PING_INTERVAL=3s", "SYNCRELAY_LISTEN_TRUSTED_PROXIES=127.0.0.1", "SYNCRELAY_DRAIN_TIMEOUT=2s")
			address, accessLog := proxy.start(t, p.address())
			ws, sse := follow(t, overWebSocket, address, staffToken(t), -1), follow(t, overSSE, address, staffToken(t), -1)
			send := func(n int) {
				t.Helper()
				written := time.Now()
				p.exec(`SELECT broadcast_grade_update(1, '{}')`)
				for _, f := range []*follower{ws, sse} {
					f.await(t, n)
					if took := f.got()[n-1].received.Sub(written); took > 5*time.Second {
						t.Errorf("over %s event %d came after %s", f.transport, n, took)
					}
				}
			}
			send(1)
			hearBeats(t, address, impatience+2*time.Second)
			send(2) // on the same connections
			const replayed = 5000
			p.exec(`INSERT INTO sync_events (event_type, payload) SELECT 'bulk', jsonb_build_object('text', repeat('x', 200)) FROM generate_series(1, $1::int)`, replayed)
			for _, transport := range []string{overWebSocket, overSSE} {
				follow(t, transport, address, staffToken(t), 0).await(t, replayed+2)
			}
			page := http.Header{"Origin": {"http://" + address}}
			conn, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+address+"/ws/updates/?token="+staffToken(t), page)
			if err != nil {
				t.Errorf("a page on the proxy's own host is not let in: %v", err)
			} else {
				_ = conn.Close()
			}
			p.stop()
			<-ws.ended
			<-sse.ended
			var closed *websocket.CloseError
			if !errors.As(ws.failed(), &closed) || closed.Code != websocket.CloseServiceRestart {
				t.Errorf("the WebSocket ended with %v, want close code 1012", ws.failed())
			}
			if sse.note("error") == nil {
				t.Errorf("the stream ended without saying why: %v", sse.failed())
			}
			eventually(t, "the access log says who was there", func() bool { return strings.Contains(accessLog(), "/ws/updates/") })
			if strings.Contains(accessLog(), ws.token) {
				t.Errorf("a token is in the access log: %s", accessLog())
			}
		})
	}
}

// hearBeats reads the comments of an event stream for a time, by their number: the
// relay is set to one a second.
func hearBeats(t *testing.T, address string, during time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/events", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+staffToken(t))
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewScanner(response.Body)
	for heard := 0; heard < int(during.Seconds()); {
		if !lines.Scan() {
			t.Fatalf("an idle stream ended after %d comments: %v", heard, lines.Err())
		}
		if strings.HasPrefix(lines.Text(), ":") {
			heard++
		}
	}
}

func TestProxiesOfTheGuideSayWhoTheClientIs(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a whole network of addresses for itself")
	}
	for _, proxy := range frontProxies {
		t.Run(proxy.name, func(t *testing.T) {
			t.Parallel()
			p := newDatabase(t)
			p.start("SYNCRELAY_LISTEN_TRUSTED_PROXIES=127.0.0.1", "SYNCRELAY_LIMITS_CONNECTIONS_PER_IP=1")
			address, _ := proxy.start(t, p.address())
			// connect opens a stream from an address and returns the status. What the
			// client says of itself must not help it.
			connect := func(from, says string) int {
				t.Helper()
				dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
				transport := &http.Transport{DialContext: dialer.DialContext}
				t.Cleanup(transport.CloseIdleConnections)
				ctx, cancel := context.WithCancel(t.Context())
				t.Cleanup(cancel)
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/api/events", http.NoBody)
				if err != nil {
					t.Fatal(err)
				}
				request.Header = http.Header{"Authorization": {"Bearer " + staffToken(t)}, "X-Forwarded-For": {says}, "Forwarded": {"for=" + says}}
				response, err := transport.RoundTrip(request)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = response.Body.Close() })
				return response.StatusCode
			}
			for i, c := range []struct {
				from, says string
				want       int
			}{
				{"127.0.0.2", "203.0.113.1", http.StatusOK},
				{"127.0.0.2", "203.0.113.2", http.StatusServiceUnavailable},
				{"127.0.0.3", "203.0.113.1", http.StatusOK},
			} {
				if got := connect(c.from, c.says); got != c.want {
					t.Errorf("connection %d, from %s which calls itself %s: status %d, want %d", i+1, c.from, c.says, got, c.want)
				}
			}
		})
	}
}
