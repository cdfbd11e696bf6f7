package stream_test

import (
	"testing"

	"github.com/syncrelay/syncrelay/relay"
)

func TestEventsReachBothTransportsInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	clients := []struct {
		name string
		client
		want []int64
	}{
		{"admin on WebSocket", w.connect(t, admin), []int64{1, 2, 3, 5}},
		{"staff on SSE", w.follow(t, staff), []int64{1, 2, 3, 5}},
		{"cadet 17 on WebSocket", w.connect(t, cadet17), []int64{1, 4, 5}},
		{"cadet 18 on SSE", w.follow(t, cadet18), []int64{2, 5}},
	}
	w.Insert(grade(17), grade(18))
	w.Insert(relay.Row{Type: "audit"}, relay.Row{Type: "notification", UserIDs: []int64{5}})
	w.Insert(relay.Row{Type: "holiday", Roles: []string{"*"}})
	for _, c := range clients {
		t.Log(c.name)
		wantEvents(t, c, c.want...)
	}
}
