package stream_test

import (
	"strings"
	"testing"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
)

// An ID of an earlier epoch, over real sockets: who is connected is told to
// reconnect, a replay_request is answered with an error and the connection goes
// on, and whoever resumes, on either transport, is told to refetch.
func TestReplayRequestOfAnEarlierEpochIsAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	w.Insert(grade(17), grade(17), grade(17))
	relaytest.Wait(t, "3 events", func() bool { return w.Status().Head == 3 })
	before := w.Status().Epoch
	present := w.connect(t, cadet17)
	w.World.Promote()
	present.wantClosed(t, 1012, "reconnect")
	relaytest.Wait(t, "a new epoch", func() bool { s := w.Status(); return s.Epoch != before && s.Phase == relay.Streaming })

	c := w.dial(t, "/ws/updates/?token="+sign(t, cadet17), nil)
	if m := nextOf(t, c, "connection_established"); m.Epoch != w.Status().Epoch || m.Epoch == before {
		t.Errorf("the client is told %s, and the epoch is %s", m.text, w.Status().Epoch)
	}
	c.send(t, `{"type":"replay_request","last_event_id":2}`)
	if m := nextOf(t, c, "error"); m.Code != "epoch_changed" || !strings.Contains(m.Message, "event 2 ") {
		t.Errorf("a replay from the epoch before is answered with %s", m.text)
	}
	w.Insert(grade(17))
	live := nextOf(t, c, "grade_update")
	c.send(t, `{"type":"replay_request","last_event_id":0}`)
	wantEvents(t, c, 1, 2, 3, live.EventID)
	if m := nextOf(t, c, "replay_complete"); m.Truncated || m.Count != 4 {
		t.Errorf("a replay of everything is answered with %s", m.text)
	}
	for transport, resumed := range map[string]client{
		"WebSocket": w.connect(t, cadet17, "last_event_id=2"),
		"SSE":       w.follow(t, cadet17, "last_event_id=2"),
	} {
		wantEvents(t, resumed, 3, live.EventID)
		if m := nextOf(t, resumed, "replay_complete"); !m.Truncated {
			t.Errorf("who resumes from the epoch before by %s is told %s, want truncated", transport, m.text)
		}
	}
}
