package main

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/relay"
)

// silencer is a proxy whose connections can be made silent: they stay open, and
// nothing passes them any more, as when a firewall forgets about them.
type silencer struct {
	listener net.Listener
	upstream string

	mu     sync.Mutex
	conns  []silenced
	closed bool // those that come are silent at once
	pipes  sync.WaitGroup
}

// silenced is a connection through the proxy.
type silenced struct {
	near, far net.Conn
	silent    chan struct{} // closed: nothing passes any more
}

func newSilencer(t testing.TB, upstream string) *silencer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &silencer{listener: l, upstream: upstream}
	s.pipes.Go(s.accept)
	t.Cleanup(func() {
		_ = l.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			_, _ = c.near.Close(), c.far.Close()
		}
		s.mu.Unlock()
		s.pipes.Wait()
	})
	return s
}

func (s *silencer) accept() {
	for {
		near, err := s.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", s.upstream)
		if err != nil {
			_ = near.Close()
			continue
		}
		s.mu.Lock()
		c := silenced{near, far, make(chan struct{})}
		if s.closed {
			close(c.silent)
		}
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		s.pipes.Go(func() { pipe(near, far, c.silent) })
		s.pipes.Go(func() { pipe(far, near, c.silent) })
	}
}

func pipe(to, from net.Conn, silent <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-silent:
			return // and the connections stay open
		default:
		}
		if n > 0 {
			_, _ = to.Write(buffer[:n])
		}
		if err != nil {
			_, _ = to.Close(), from.Close()
			return
		}
	}
}

// silence makes the connections that there are silent, and those that come as
// well if it is for ever.
func (s *silencer) silence(forever bool) {
	s.silenceThose(func(silenced) bool { return true })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = forever
}

// silencePort makes the connection silent that the upstream knows by this port.
func (s *silencer) silencePort(port int) (found bool) {
	s.silenceThose(func(c silenced) bool {
		it := c.far.LocalAddr().(*net.TCPAddr).Port == port
		found = found || it
		return it
	})
	return found
}

func (s *silencer) silenceThose(which func(silenced) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if !which(c) {
			continue
		}
		select {
		case <-c.silent:
		default:
			close(c.silent)
		}
	}
}

// through is a silencer before the product's database, and the setting that goes
// through it.
func (p *product) through() (*silencer, string) {
	p.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		p.Fatal(err)
	}
	s := newSilencer(p, u.Host)
	u.Host, u.User = s.listener.Addr().String(), url.User("syncrelay_relay")
	return s, "SYNCRELAY_DATABASE_URL=" + u.String()
}

const shortOwnerTimeout = "SYNCRELAY_DATABASE_OWNER_TIMEOUT=2s"

func TestAStandbyWhoseConnectionWentSilentTakesOver(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	owner := launch(t, append(p.settings(), shortOwnerTimeout), "serve")
	address, _ := owner.addresses()
	owner.ready(address)
	silencer, setting := p.through()
	standby := launch(t, append(p.settings(), setting, shortOwnerTimeout), "serve")
	address, _ = standby.addresses()
	eventually(t, "the second relay says that it is a standby", func() bool {
		status, body := get(t, "http://"+address+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "standby")
	})
	silencer.silence(false)
	owner.signal(syscall.SIGTERM)
	owner.wait()
	standby.ready(address)
}

// One of the relay's sessions goes silent, or all do, and stay so: nobody ever
// closes them. The relay finds that out by itself, connects anew, gets past what
// the server still holds for the dead sessions, and its clients notice nothing.
func TestSessionsThatWentSilentAreReplaced(t *testing.T) {
	t.Parallel()
	const owner = `SELECT a.client_port FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE l.locktype = 'advisory' AND l.objid = x'726c6179'::int AND l.granted AND a.datname = current_database()`
	const stream = `SELECT a.client_port FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = current_database()`
	const rows = 20
	type silent struct {
		*product
		name    string
		clients []*follower
	}
	var all []silent // at once: each takes as long as a statement may
	for name, session := range map[string]string{"the stream": stream, "the owner's": owner, "all": ""} {
		p := newDatabase(t)
		silencer, setting := p.through()
		p.start(setting, shortOwnerTimeout)
		clients := []*follower{follow(t, overWebSocket, p.address(), staffToken(t), -1), follow(t, overSSE, p.address(), staffToken(t), -1)}
		p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', '0')`)
		for _, f := range clients {
			f.await(t, 1)
		}
		if session == "" {
			silencer.silence(false)
		} else {
			var port int
			if err := p.pool.QueryRow(t.Context(), session).Scan(&port); err != nil || !silencer.silencePort(port) {
				t.Fatalf("%s: the session of port %d is not found: %v", name, port, err)
			}
		}
		for n := range rows {
			p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', to_jsonb($1::int))`, n+1)
		}
		all = append(all, silent{p, name, clients})
	}
	for _, p := range all {
		for _, f := range p.clients {
			f.await(t, 1+rows)
			for i, e := range f.got() {
				if want := strconv.Itoa(i); string(e.Data) != want {
					t.Errorf("%s: over %s came %s as number %s", p.name, f.transport, e.Data, want)
				}
			}
			if err := f.failed(); err != nil {
				t.Errorf("%s: a client over %s lost its connection: %v", p.name, f.transport, err)
			}
		}
		eventually(t, p.name+": the relay streams", func() bool { return p.daemon.relay.Status().Phase == relay.Streaming })
	}
}

func TestMetricsAreShownWhileTheDatabaseIsSilent(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	silencer, setting := p.through()
	p.start(setting, shortOwnerTimeout)
	scrape := func() string {
		begun := time.Now()
		client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		response, err := client.Get("http://" + p.daemon.ops.Addr().String() + "/metrics")
		if err != nil {
			t.Fatalf("after %s: %v", time.Since(begun), err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if !strings.Contains(scrape(), "\nsyncrelay_replication_lag_bytes ") {
		t.Fatal("the lag is not shown")
	}
	silencer.silence(true)
	eventually(t, "the lag is not known any more", func() bool {
		text := scrape()
		return strings.Contains(text, "\nsyncrelay_last_event_id ") && !strings.Contains(text, "\nsyncrelay_replication_lag_bytes ")
	})
	eventually(t, "the relay is not ready", func() bool { return p.daemon.relay.Status().Phase != relay.Streaming })
}

// The drain has a time of its own, which a database that does not answer is not
// given on top of.
func TestTermEndsInItsTimeWhileTheDatabaseIsSilent(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	silencer, setting := p.through()
	serve := launch(t, append(p.settings(), setting), "serve")
	address, _ := serve.addresses()
	serve.ready(address)
	for range 4 {
		follow(t, overWebSocket, address, staffToken(t), -1)
	}
	silencer.silence(true)
	begun := time.Now()
	serve.signal(syscall.SIGTERM)
	if code := serve.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, serve.err)
	}
	if took := time.Since(begun); took > 8*time.Second { // a statement has 30 s to be answered
		t.Errorf("it took %s, want drain.timeout of 5 s at most, and a little for a busy machine", took)
	}
}
