package stream_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/syncrelay/syncrelay/relay"
)

// TestClientsThatAreCutAtRandomMissNothing: thirty clients on both transports
// lose their connection again and again while rows come in, resume from the
// last event that they have, and in the end have each event once, in order.
func TestClientsThatAreCutAtRandomMissNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{relay: relay.Options{RingEvents: 200}}) // some replays come from the journal
	const n, clients = 1500, 30
	token := sign(t, cadet17)
	var group sync.WaitGroup
	failures := make(chan error, clients)
	for i := range clients {
		group.Go(func() {
			var last int64
			for attempt := 0; last < n; attempt++ {
				read, cut := w.reader(i%2 == 0, token, last)
				if read == nil {
					failures <- errors.New("could not connect")
					return
				}
				for left := 1 + rand.IntN(300); last < n && left > 0; left-- {
					m, err := read()
					if err != nil {
						failures <- fmt.Errorf("client %d after event %d: %w", i, last, err)
						return
					}
					switch {
					case m.Type == "error":
						failures <- fmt.Errorf("client %d after event %d: %s", i, last, m.text)
						return
					case m.EventID != 0 && m.EventID != last+1:
						failures <- fmt.Errorf("client %d got event %d after %d", i, m.EventID, last)
						return
					case m.EventID != 0:
						last = m.EventID
					}
				}
				cut()
			}
		})
	}
	for i := 0; i < n; {
		rows := make([]relay.Row, min(1+rand.IntN(5), n-i))
		for k := range rows {
			rows[k] = grade(17)
		}
		w.Insert(rows...)
		i += len(rows)
		if i%50 == 0 {
			waitUntil(time.Now().Add(time.Millisecond)) // so that live events are among them
		}
	}
	group.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
}

// reader connects after an event, without a test to fail.
func (w *world) reader(ws bool, token string, after int64) (read func() (message, error), cut func()) {
	query := fmt.Sprintf("?last_event_id=%d&token=%s", after, token)
	if ws {
		conn, _, err := websocket.DefaultDialer.Dial("ws://"+w.addr+"/ws/updates/"+query, nil)
		if err != nil {
			return nil, nil
		}
		return func() (message, error) {
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			_, text, err := conn.ReadMessage()
			if err != nil {
				return message{}, err
			}
			return decode(text)
		}, func() { _ = conn.NetConn().Close() }
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Get("http://" + w.addr + "/api/events" + query)
	if err != nil {
		return nil, nil
	}
	c := newSSEClient(response)
	return func() (message, error) {
		m, err := c.read()
		if err != nil {
			return m, err
		}
		return decode([]byte(m.text))
	}, func() { _ = response.Body.Close() }
}
