package stream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/syncrelay/syncrelay/relay"
	"github.com/syncrelay/syncrelay/relay/relaytest"
	"github.com/syncrelay/syncrelay/stream"
)

// metric is the value of one series, written as Prometheus writes it with the
// labels in the order of their names; a histogram's is its count.
func (w *world) metric(t testing.TB, series string) (float64, bool) {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if name(family.GetName(), m) != series {
				continue
			}
			switch family.GetType() {
			case dto.MetricType_COUNTER:
				return m.GetCounter().GetValue(), true
			case dto.MetricType_HISTOGRAM:
				return float64(m.GetHistogram().GetSampleCount()), true
			default:
				return m.GetGauge().GetValue(), true
			}
		}
	}
	return 0, false
}

func name(family string, m *dto.Metric) string {
	labels := make([]string, 0, len(m.GetLabel()))
	for _, l := range m.GetLabel() {
		labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
	}
	if len(labels) == 0 {
		return family
	}
	return family + "{" + strings.Join(labels, ",") + "}"
}

// wantMetric waits until a series has a value.
func (w *world) wantMetric(t testing.TB, series string, want float64) {
	t.Helper()
	relaytest.Wait(t, fmt.Sprintf("%s is %g", series, want), func() bool {
		got, ok := w.metric(t, series)
		return ok && got == want
	})
}

func TestMetricsCountWhatTheContractNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ws, sse := w.connect(t, cadet17), w.follow(t, admin)
	w.Insert(grade(17), grade(18), relay.Row{Type: "audit"}, relay.Row{Type: "pong"})
	wantEvents(t, ws, 1)
	wantEvents(t, sse, 1, 2, 3)
	ws.send(t, `{"type":"replay_request","last_event_id":0}`)
	wantEvents(t, ws, 1)
	nextOf(t, ws, "replay_complete")
	w.dial(t, "/ws/updates/", nil).wantClosed(t, 4001, "no token")
	w.get(t, "/api/events?token=x", nil).Body.Close()
	for series, want := range map[string]float64{
		`syncrelay_connections{transport="websocket"}`:                       1,
		`syncrelay_connections{transport="sse"}`:                             1,
		`syncrelay_connects_total{outcome="accepted",transport="websocket"}`: 1,
		`syncrelay_connects_total{outcome="no_token",transport="websocket"}`: 1,
		`syncrelay_connects_total{outcome="invalid_token",transport="sse"}`:  1,
		`syncrelay_events_total{event_type="grade_update"}`:                  2,
		`syncrelay_events_total{event_type="audit"}`:                         1,
		`syncrelay_deliveries_total{transport="websocket"}`:                  2,
		`syncrelay_deliveries_total{transport="sse"}`:                        3,
		`syncrelay_last_event_id`:                                            4,
		`syncrelay_journaled_event_id`:                                       4,
		`syncrelay_replays_total{source="memory"}`:                           1,
		`syncrelay_replays_total{source="journal"}`:                          0,
		`syncrelay_replayed_events_total`:                                    1,
		`syncrelay_recovered_rows_total`:                                     0,
		`syncrelay_errors_total{component="row"}`:                            1,
	} {
		w.wantMetric(t, series, want)
	}
	for _, latency := range []string{
		`syncrelay_delivery_latency_seconds{transport="websocket"}`, `syncrelay_delivery_latency_seconds{transport="sse"}`,
	} {
		// An event that a client finds in the log, because it has just connected,
		// is not live; one of the next ones is.
		relaytest.Wait(t, latency, func() bool {
			w.Insert(grade(17))
			got, _ := w.metric(t, latency)
			return got > 0
		})
	}
	ws.Close()
	w.wantMetric(t, `syncrelay_disconnects_total{reason="lost",transport="websocket"}`, 1)
}

func TestEventTypesAreBoundedInTheMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for i := range 130 {
		w.Insert(relay.Row{Type: fmt.Sprintf("type_%d", i)})
	}
	w.Insert(relay.Row{Type: "type_7"}, relay.Row{Type: "type_129"})
	w.wantMetric(t, `syncrelay_events_total{event_type="other"}`, 31)
	w.wantMetric(t, `syncrelay_events_total{event_type="type_7"}`, 2)
}

func TestHealthIsOnBothListenersAndTheRestOnOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	for _, address := range []string{w.addr, w.ops} {
		for path, want := range map[string]string{"/healthz": `{"status":"ok"}`, "/readyz": `{"status":"ready","phase":"streaming","last_event_id":0}`} {
			response := w.do(t, http.MethodGet, "http://"+address+path, nil)
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != want {
				t.Errorf("%s%s: got %s %s, %v", address, path, response.Status, body, err)
			}
		}
	}
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline"} {
		if got := w.do(t, http.MethodGet, "http://"+w.ops+path, nil); got.StatusCode != http.StatusOK {
			t.Errorf("ops %s: got %s", path, got.Status)
		}
		wantError(t, w.get(t, path, nil), http.StatusNotFound, "not_found")
	}
	wantError(t, w.do(t, http.MethodGet, "http://"+w.ops+"/ws/updates/", nil), http.StatusNotFound, "not_found")
	body, err := io.ReadAll(w.do(t, http.MethodGet, "http://"+w.ops+"/metrics", nil).Body)
	if err != nil || !strings.Contains(string(body), "syncrelay_last_event_id 0") {
		t.Errorf("/metrics: %v, %s", err, body)
	}
}

// However the address is written, and whoever asks.
func TestMetricsAndProfilesAreNowhereOnThePublicListener(t *testing.T) {
	t.Parallel()
	w := withConsole(t)
	for _, path := range []string{
		"/metrics", "/metrics/", "//metrics", "/./metrics", "/api/../metrics", "/%6detrics", "/metrics%00", "/METRICS", "/metrics?token=x", "/console/../metrics", "/console/%2e%2e/metrics",
		"/debug", "/debug/", "/debug/pprof", "/debug/pprof/", "//debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=2", "/debug/pprof/cmdline",
		"/debug/pprof/profile?seconds=1", "/debug/pprof/trace?seconds=1", "/debug/pprof/symbol", "/api/events/../../debug/pprof/", "/debug/vars",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodOptions} {
			conn := w.raw(t)
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = io.WriteString(conn, method+" "+path+" HTTP/1.1\r\nHost: "+w.ops+"\r\nAuthorization: Bearer "+sign(t, admin)+"\r\nConnection: close\r\n\r\n")
			answer, _ := io.ReadAll(conn)
			if status, _, _ := strings.Cut(string(answer), "\r\n"); !strings.HasPrefix(status, "HTTP/1.1 3") && !strings.HasPrefix(status, "HTTP/1.1 4") {
				t.Errorf("%s %s: got %s", method, path, status)
			}
			for _, sign := range []string{"# HELP", "syncrelay_", "goroutine", "cmdline"} {
				if _, body, _ := strings.Cut(string(answer), "\r\n\r\n"); strings.Contains(body, sign) && !strings.Contains(path, sign) {
					t.Errorf("%s %s: the answer has %q: %s", method, path, sign, body)
				}
			}
		}
	}
}

func TestReadyzSaysWhyNot(t *testing.T) {
	t.Parallel()
	world := relaytest.NewWorld()
	idle := relay.New(relay.Options{Source: world.Source(), Journal: world.Journal()}) // not running
	w := newWorld(t, worldOptions{Options: stream.Options{Relay: idle}})
	response := w.get(t, "/readyz", nil)
	var body struct{ Status, Phase, Reason string }
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusServiceUnavailable || body.Status != "not ready" || body.Phase != "starting" || body.Reason == "" {
		t.Errorf("got %s %+v", response.Status, body)
	}
}

func TestDrainSpreadsTheGoodbyes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	const n = 20
	clients := make([]*wsClient, n)
	for i := range clients {
		clients[i] = w.connect(t, admin)
	}
	sse := w.follow(t, admin)
	begun := time.Now()
	const during = 8 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), during)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- w.server.Drain(ctx) }()
	relaytest.Wait(t, "readyz fails", func() bool {
		response := w.get(t, "/readyz", nil)
		defer response.Body.Close()
		return response.StatusCode == http.StatusServiceUnavailable
	})
	w.dial(t, "/ws/updates/?token="+sign(t, admin), nil).wantClosed(t, 1012, "restarting")
	wantError(t, w.get(t, "/api/events?token="+sign(t, admin), nil), http.StatusServiceUnavailable, "restarting")
	ended := make(chan time.Duration, n)
	for _, c := range clients {
		go func() {
			c.wantClosed(t, 1012, "the relay is restarting: reconnect")
			ended <- time.Since(begun)
		}()
	}
	var early, late int
	for range n {
		switch at := <-ended; {
		case at < during*2/5:
			early++
		case at < during:
			late++
		default:
			t.Errorf("a client was closed after %s", at)
		}
	}
	if early < n/4 || late < n/4 {
		t.Errorf("%d were closed in the first half of the time and %d in the second", early, late)
	}
	if m := nextOf(t, sse, "error"); m.Code != "restarting" {
		t.Errorf("SSE: got %s", m.text)
	}
	if err := <-drained; err != nil {
		t.Errorf("Drain: %v", err)
	}
}

func TestDrainOfNobodyIsDoneAtOnceAndTwiceIsSafe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	for range 2 {
		if err := w.server.Drain(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRunEndsWithItsContextWhoeverIsConnected(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	ws, sse := w.connect(t, admin), w.follow(t, admin)
	w.stop()
	ws.wantClosed(t, 1012, "restarting")
	nextOf(t, sse, "error")
	w.server.Close() // twice is safe
}

func TestTheOperatorsListenerWaitsForNoBodyButForAProfile(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{Options: stream.Options{
		Limits: stream.Limits{HeaderTimeout: 300 * time.Millisecond}, WriteTimeout: 300 * time.Millisecond,
	}})
	for _, path := range []string{"/healthz", "/metrics", "/debug/pprof/cmdline"} {
		conn := rawTo(t, w.ops)
		_, _ = io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: relay\r\nContent-Length: 100000\r\n\r\nx")
		hangsUp(t, conn)
	}
	for _, path := range []string{"/debug/pprof/trace?seconds=1", "/debug/pprof/goroutine?seconds=1"} {
		r := w.do(t, http.MethodGet, "http://"+w.ops+path, nil)
		if body, err := io.ReadAll(r.Body); err != nil || r.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: got %s, %d bytes, %v", path, r.Status, len(body), err)
		}
	}
}
