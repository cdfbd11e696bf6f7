package relay

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestEventsHaveTheFieldsOfTheContract(t *testing.T) {
	t.Parallel()
	at := time.Date(2024, 1, 15, 10, 30, 0, 0, time.UTC)
	for _, c := range []struct {
		row  Row
		want string
	}{
		{Row{Type: "grade_update", CadetID: 1, HasCadet: true, Payload: []byte(`{"merits": 3}`), CreatedAt: at},
			`{"type":"grade_update","event_id":123,"cadet_id":1,"data":{"cadet_id": 1, "merits": 3},"timestamp":"2024-01-15T10:30:00Z"}`},
		{Row{Type: "x", CadetID: 1, HasCadet: true, Payload: []byte(`{}`), CreatedAt: at.Add(123456 * time.Microsecond)},
			`{"type":"x","event_id":123,"cadet_id":1,"data":{"cadet_id": 1},"timestamp":"2024-01-15T10:30:00.123456Z"}`},
		{Row{Type: "x", CadetID: 1, HasCadet: true, Payload: []byte(`{"a": {"cadet_id": 2}}`), CreatedAt: at},
			`{"type":"x","event_id":123,"cadet_id":1,"data":{"cadet_id": 1, "a": {"cadet_id": 2}},"timestamp":"2024-01-15T10:30:00Z"}`},
		{Row{Type: "x", CadetID: 1, HasCadet: true, Payload: []byte(`{"b": 1, "cadet_id": 9}`), CreatedAt: at},
			`{"type":"x","event_id":123,"cadet_id":1,"data":{"b": 1, "cadet_id": 9},"timestamp":"2024-01-15T10:30:00Z"}`},
		{Row{Type: "x", CadetID: 1, HasCadet: true, Payload: []byte(`[1]`), CreatedAt: at},
			`{"type":"x","event_id":123,"cadet_id":1,"data":[1],"timestamp":"2024-01-15T10:30:00Z"}`},
		{Row{Type: `a"b` + "\n", CreatedAt: at.In(time.FixedZone("", 3600))},
			`{"type":"a\"b\n","event_id":123,"data":null,"timestamp":"2024-01-15T10:30:00Z"}`},
		{Row{Type: "x", Payload: []byte("{\n \"a\": 1}"), CreatedAt: time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)},
			`{"type":"x","event_id":123,"data":{"a":1},"timestamp":"9999-12-31T23:59:59.999999Z"}`},
		{Row{Type: "x", Payload: []byte(`1`), CreatedAt: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)},
			`{"type":"x","event_id":123,"data":1,"timestamp":"0001-01-01T00:00:00Z"}`},
	} {
		e := NewEvent(123, &c.row, time.Time{})
		if got := string(e.JSON()); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if got, want := string(e.SSE()), "id: 123\ndata: "+c.want+"\n\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestAudienceFollowsTheRoutingTable(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		row  Row
		want string
	}{
		{Row{Type: "x"}, "staff"},
		{Row{Type: "x", CadetID: 0, HasCadet: true}, "cadet_0 staff"},
		{Row{Type: "x", UserIDs: []int64{5, 5, 6}}, "user_5 user_6"},
		{Row{Type: "x", Roles: []string{"*", "admin", "*"}}, "role_* role_admin"},
		{Row{Type: "x", CadetID: 17, HasCadet: true, UserIDs: []int64{5}, Roles: []string{"parent"}}, "cadet_17 staff user_5 role_parent"},
		{Row{Type: "pong"}, ""},
		{Row{Type: ""}, ""},
		{Row{Type: TypeSessionRevoked, UserIDs: []int64{5}, Roles: []string{"*"}}, ""},
	} {
		e := NewEvent(1, &c.row, time.Time{})
		var names []string
		for _, g := range e.Groups() {
			names = append(names, g.String())
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%+v is for %q, want %q", c.row, got, c.want)
		}
	}
}

// Whatever a row holds, its event is one line of valid JSON that holds the
// payload unchanged.
func FuzzEvent(f *testing.F) {
	f.Add("grade_update", []byte(`{"merits": 3}`), int64(17), true, int64(0))
	f.Add("\x00\xff\"\\", []byte("{ \"cadet_id\" : [1, {}], \"a\": \"\u2028\"}"), int64(-1), true, int64(1)<<62)
	f.Add("x", []byte("\n[1,\r\n2]"), int64(0), false, -int64(1)<<62)
	f.Fuzz(func(t *testing.T, eventType string, payload []byte, cadet int64, hasCadet bool, us int64) {
		if !json.Valid(payload) {
			return // a source hands over nothing else
		}
		e := NewEvent(MaxEventID, &Row{Type: eventType, Payload: payload, CadetID: cadet, HasCadet: hasCadet, CreatedAt: time.UnixMicro(us)}, time.Time{})
		var got struct {
			EventID   int64           `json:"event_id"`
			CadetID   *int64          `json:"cadet_id"`
			Data      json.RawMessage `json:"data"`
			Timestamp time.Time       `json:"timestamp"`
		}
		if err := json.Unmarshal(e.JSON(), &got); err != nil {
			t.Fatalf("%s: %v", e.JSON(), err)
		}
		if bytes.ContainsAny(e.JSON(), "\r\n") || !bytes.Equal(e.SSE(), []byte("id: 9007199254740991\ndata: "+string(e.JSON())+"\n\n")) {
			t.Fatalf("not one line: %q", e.SSE())
		}
		if got.EventID != MaxEventID || hasCadet != (got.CadetID != nil) || hasCadet && *got.CadetID != cadet {
			t.Fatalf("%s", e.JSON())
		}
		var before, after bytes.Buffer
		if json.Compact(&before, payload) != nil || json.Compact(&after, got.Data) != nil {
			t.Fatal("not compactable")
		}
		if before.String() != after.String() && !(hasCadet && strings.HasPrefix(before.String(), "{") && strings.HasPrefix(after.String(), `{"cadet_id":`)) {
			t.Fatalf("payload %s came as %s", payload, got.Data)
		}
	})
}

func TestGroupsAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	for _, g := range []Group{Staff, Everyone, CadetGroup(17), CadetGroup(-1), UserGroup(5), RoleGroup("admin"), RoleGroup("a_b"), RoleGroup("staff"), RoleGroup("1")} {
		if got, ok := ParseGroup(g.String()); !ok || got != g {
			t.Errorf("%s is read as %v, %t", g, got, ok)
		}
	}
	for _, bad := range []string{"", "nobody", "user", "user_", "user_x", "cadet_1.5", "team_3"} {
		if got, ok := ParseGroup(bad); ok {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

// TestAnEventIsPackedOnce: whoever asks is given what was made for the first.
func TestAnEventIsPackedOnce(t *testing.T) {
	t.Parallel()
	for _, made := range [][]byte{[]byte("packed"), nil} { // nil is an answer too
		e := NewEvent(1, &Row{Type: "x"}, time.Time{})
		var times atomic.Int64
		var wait sync.WaitGroup
		for range 50 {
			wait.Go(func() {
				got := e.Packed(func(text []byte) []byte {
					times.Add(1)
					if !bytes.Equal(text, e.JSON()) {
						t.Errorf("%s was packed", text)
					}
					return made
				})
				if !bytes.Equal(got, made) {
					t.Errorf("got %q, want %q", got, made)
				}
			})
		}
		wait.Wait()
		if n := times.Load(); n != 1 {
			t.Errorf("it was packed %d times", n)
		}
	}
}
