package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

func (p *program) signal(s syscall.Signal) {
	p.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.Fatal(err)
	}
}

// An owner that is stopped in its tracks loses its sessions to a standby, and
// when it wakes up, long after, it writes nothing and stands by itself.
func TestStoppedOwnerIsReplacedAndWritesNothingWhenItWakesUp(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	settings := append(p.settings(), "SYNCRELAY_DATABASE_OWNER_TIMEOUT=2s")
	owner := launch(t, settings, "serve")
	ownerAddress, _ := owner.addresses()
	owner.ready(ownerAddress)
	standby := launch(t, settings, "serve")
	standbyAddress, _ := standby.addresses()
	eventually(t, "the second relay says that it is a standby", func() bool {
		status, body := get(t, "http://"+standbyAddress+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "standby") && strings.Contains(body, "another relay owns this database")
	})
	client := follow(t, overWebSocket, ownerAddress, staffToken(t), -1)
	p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', '{"n": "1"}')`)
	client.await(t, 1)

	owner.signal(syscall.SIGSTOP)
	p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', '{"n": "2"}')`)
	standby.ready(standbyAddress)
	p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', '{"n": "3"}')`)
	all := follow(t, overSSE, standbyAddress, staffToken(t), 0)
	all.await(t, 3)

	owner.signal(syscall.SIGCONT)
	eventually(t, "the first relay has become a standby", func() bool {
		_, body := get(t, "http://"+ownerAddress+"/readyz")
		return strings.Contains(body, "standby")
	})
	<-client.ended // it must come back to where events are
	p.exec(`INSERT INTO sync_events (event_type, payload) VALUES ('x', '{"n": "4"}')`)
	all.await(t, 4)
	if n := p.text(`SELECT concat(count(*), ' ', count(DISTINCT row_id), ' ', max(event_id)) FROM syncrelay.journal`); n != "4 4 4" {
		t.Errorf("entries, rows and the last ID of the journal are %s, want 4 4 4", n)
	}
	for i, e := range client.got() {
		if e.EventID != all.got()[i].EventID || string(e.Data) != string(all.got()[i].Data) {
			t.Errorf("event %d is %s of one relay and %s of the other", e.EventID, e.Data, all.got()[i].Data)
		}
	}
}

// SIGTERM under load: clients are told 1012 one after the other, what they were
// sent is journaled, and who comes to the next relay misses nothing.
func TestTermUnderLoadSpreadsTheClientsAndLosesNothing(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	serve := launch(t, p.settings(), "serve")
	address, _ := serve.addresses()
	serve.ready(address)
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	c := &chaos{product: p, address: address}
	var writers sync.WaitGroup
	for _, name := range []string{"writer 0", "writer 1", "writer 2"} {
		writers.Go(func() { c.keepWriting(ctx, name, 7) })
	}
	clients := make([]*follower, 40)
	ended := make([]time.Time, len(clients))
	var waiting sync.WaitGroup
	for i := range clients {
		clients[i] = follow(t, []string{overWebSocket, overSSE}[i%2], address, staffToken(t), -1)
		waiting.Go(func() {
			<-clients[i].ended
			ended[i] = time.Now()
		})
	}
	eventually(t, "events flow", func() bool { return clients[39].count() > 20 })
	begun := time.Now()
	serve.signal(syscall.SIGTERM)
	eventually(t, "the relay is not ready", func() bool {
		status, body := get(t, "http://"+address+"/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "draining")
	})
	if code := serve.wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, serve.err)
	}
	if took := time.Since(begun); took > 8*time.Second { // and not a client's time, or the database's
		t.Errorf("it took %s, want drain.timeout of 5 s at most, and a little for a busy machine", took)
	}
	eventually(t, "the slot stands where the journal ends, although the writers went on", func() bool {
		return p.text(`SELECT count(*)::text FROM syncrelay.state j, pg_replication_slots s WHERE s.slot_name = current_database() AND NOT s.active AND s.confirmed_flush_lsn = j.confirmed`) == "1"
	})
	waiting.Wait()
	slices.SortFunc(ended, time.Time.Compare)
	for i, from := range []int{0, 10, 20, 30} { // in each quarter of the time a quarter of the clients
		if at := ended[from].Sub(begun); at < time.Duration(i)*500*time.Millisecond {
			t.Errorf("client %d of 40 was sent away after %s: they are not spread over the drain's 4 s", from, at)
		}
	}
	for i, f := range clients {
		var closed *websocket.CloseError
		if f.transport == overWebSocket && (!errors.As(f.failed(), &closed) || closed.Code != websocket.CloseServiceRestart) {
			t.Errorf("client %d ended with %v, want close code 1012", i, f.failed())
		}
	}
	p.exec(`INSERT INTO sync_events (event_type, cadet_id, payload) VALUES ('grade_update', 1, '{"n": "while no relay runs"}')`)
	calm()
	writers.Wait()
	next := launch(t, p.settings(), "serve")
	address, _ = next.addresses()
	next.ready(address)
	want := c.expected(0)
	for i := range 4 {
		before := clients[i].got()
		rest := follow(t, clients[i].transport, address, staffToken(t), before[len(before)-1].EventID)
		first := slices.Index(want, text(t, before[0]))
		eventually(t, "the client has the rest", func() bool { return len(before)+rest.count() >= len(want)-first })
		check(t, "a client of both relays", append(before, rest.got()...), want[first:])
	}
}

func TestSecondTermEndsAtOnce(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	serve := launch(t, append(p.settings(), "SYNCRELAY_DRAIN_TIMEOUT=10m"), "serve")
	address, _ := serve.addresses()
	serve.ready(address)
	for range 2 { // with one client the drain would be over soon
		follow(t, overWebSocket, address, staffToken(t), -1)
	}
	serve.signal(syscall.SIGTERM)
	eventually(t, "the relay drains", func() bool {
		_, body := get(t, "http://"+address+"/readyz")
		return strings.Contains(body, "draining")
	})
	begun := time.Now()
	serve.signal(syscall.SIGTERM)
	if code := serve.wait(); code != 128+int(syscall.SIGTERM) {
		t.Errorf("exit code %d, want 143", code)
	}
	if took := time.Since(begun); took > 10*time.Second { // and not the drain's ten minutes
		t.Errorf("it took %s", took)
	}
}

// text is what the tests' writers put into a row.
func text(t testing.TB, e message) string {
	t.Helper()
	var data struct {
		N string `json:"n"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		t.Fatalf("data %s: %v", e.Data, err)
	}
	return data.N
}
