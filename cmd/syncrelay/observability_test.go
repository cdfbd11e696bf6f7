package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/syncrelay/syncrelay/outbox/localpg"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

const (
	alertsFile     = "../../configs/prometheus/alerts.yml"
	alertsTestFile = "../../configs/prometheus/alerts_test.yml"
	prometheusFile = "../../configs/prometheus/prometheus.yml"
	dashboardFile  = "../../configs/grafana/dashboards/syncrelay.json"
)

// scrape reads the metrics of a daemon as Prometheus does.
func scrape(t testing.TB, ops string) map[string]*dto.MetricFamily {
	t.Helper()
	status, body := get(t, "http://"+ops+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics answers %d: %s", status, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// newLimitedProduct is a product whose server gives slots up, as it should.
func newLimitedProduct(t testing.TB) *product {
	t.Helper()
	server := pgtest.Own(t, localpg.Options{Settings: map[string]string{"max_slot_wal_keep_size": "1GB"}})
	p := newDatabaseAt(t, server.URL("postgres"))
	p.start()
	eventually(t, "the slot is measured", func() bool {
		_, found := scrape(t, p.daemon.ops.Addr().String())["syncrelay_slot_safe_bytes"]
		return found
	})
	return p
}

func TestMetricsAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	p := newLimitedProduct(t)
	families := scrape(t, p.daemon.ops.Addr().String())
	counter, gauge, histogram := dto.MetricType_COUNTER, dto.MetricType_GAUGE, dto.MetricType_HISTOGRAM
	for name, want := range map[string]struct {
		kind   dto.MetricType
		labels string
	}{
		"syncrelay_connections":                              {gauge, "transport"},
		"syncrelay_connects_total":                           {counter, "outcome transport"},
		"syncrelay_disconnects_total":                        {counter, "reason transport"},
		"syncrelay_events_total":                             {counter, "event_type"},
		"syncrelay_deliveries_total":                         {counter, "transport"},
		"syncrelay_delivery_latency_seconds":                 {histogram, "transport"},
		"syncrelay_last_event_id":                            {gauge, ""},
		"syncrelay_journaled_event_id":                       {gauge, ""},
		"syncrelay_replication_lag_bytes":                    {gauge, ""},
		"syncrelay_slot_retained_bytes":                      {gauge, ""},
		"syncrelay_replays_total":                            {counter, "source"},
		"syncrelay_replayed_events_total":                    {counter, ""},
		"syncrelay_retention_deleted_total":                  {counter, ""},
		"syncrelay_retention_last_success_timestamp_seconds": {gauge, ""},
		"syncrelay_errors_total":                             {counter, "component"},
		// Those that the contract does not name, and that alerts need.
		"syncrelay_phase":                   {gauge, "phase"},
		"syncrelay_slot_status":             {gauge, "status"},
		"syncrelay_slot_safe_bytes":         {gauge, ""},
		"syncrelay_slot_replacements_total": {counter, ""},
		"syncrelay_epoch_changes_total":     {counter, ""},
		"syncrelay_recovered_rows_total":    {counter, ""},
		"syncrelay_connections_limit":       {gauge, ""},
		"syncrelay_build_info":              {gauge, "commit goversion version"},
	} {
		family, found := families[name]
		if !found {
			t.Errorf("%s is not there, at a relay that has just been started", name)
			continue
		}
		var labels []string
		for _, l := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		if got := strings.Join(labels, " "); family.GetType() != want.kind || got != want.labels {
			t.Errorf("%s is a %s by %q, want a %s by %q", name, family.GetType(), got, want.kind, want.labels)
		}
	}
	for name := range families {
		if !strings.HasPrefix(name, "syncrelay_") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") && !strings.HasPrefix(name, "promhttp_") {
			t.Errorf("%s is called otherwise than all others", name)
		}
	}
}

// mentioned are the names of this program's metrics, and the suffixes of a
// histogram's series.
var (
	mentioned = regexp.MustCompile(`\b(?:syncrelay|process)_[a-z_]*[a-z]\b`)
	ofBuckets = regexp.MustCompile(`_(?:bucket|count|sum)$`)
)

func TestMetricsThatAreNamedAnywhereAreScraped(t *testing.T) {
	t.Parallel()
	p := newLimitedProduct(t)
	families := scrape(t, p.daemon.ops.Addr().String())
	notMetrics := []string{"syncrelay_relay", "syncrelay_writer", "syncrelay_demo"} // roles
	for _, file := range []string{alertsFile, alertsTestFile, dashboardFile, "../../configs/README.md", "../../configs/running.md", "../../stream/README.md", "../../outbox/README.md", "../../outbox/recovery.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range mentioned.FindAllString(string(text), -1) {
			_, found := families[name]
			_, asHistogram := families[ofBuckets.ReplaceAllString(name, "")]
			if !found && !asHistogram && !slices.Contains(notMetrics, name) {
				t.Errorf("%s names %s, and there is no such metric", file, name)
			}
		}
	}
	text, err := os.ReadFile("../../configs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	protocol, err := os.ReadFile("../../stream/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range families {
		if strings.HasPrefix(name, "syncrelay_") && !strings.Contains(string(text)+string(protocol), "`"+name) {
			t.Errorf("%s is in neither table of metrics", name)
		}
	}
}

// alert is a rule of alerts.yml.
type alert struct {
	Alert, Expr string
	Labels      map[string]string
	Annotations map[string]string
}

func alerts(t testing.TB) (all []alert) {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alert }
	}
	readYAML(t, alertsFile, &file)
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

func TestAlertsHaveARunbookAndATestOfBothWays(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile("../../configs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, alertsTestFile, &tests)
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, at := range test.AlertRuleTest {
			if len(at.ExpAlerts) > 0 {
				fires[at.Alertname] = true
			} else {
				quiet[at.Alertname] = true
			}
		}
	}
	for _, a := range alerts(t) {
		_, entry, found := strings.Cut(string(runbook), "\n### "+a.Alert+"\n")
		entry, _, _ = strings.Cut(entry, "\n#")
		for _, part := range []string{"**Means.** ", "**Look.**", "**Mend.** "} {
			if !strings.Contains(entry, part) {
				t.Errorf("%s: its entry in the runbook (there: %v) has no %q", a.Alert, found, part)
			}
		}
		if want := "/configs/README.md#" + strings.ToLower(a.Alert); !strings.HasSuffix(a.Annotations["runbook_url"], want) {
			t.Errorf("%s: its runbook is said to be at %s", a.Alert, a.Annotations["runbook_url"])
		}
		if severity := a.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: its severity is %q", a.Alert, severity)
		}
		if !fires[a.Alert] || !quiet[a.Alert] {
			t.Errorf("%s: tested that it fires: %v, and that it does not: %v", a.Alert, fires[a.Alert], quiet[a.Alert])
		}
	}
}

func TestAlertsFireAsTheirTestsSay(t *testing.T) {
	t.Parallel()
	promtool := installed(t, "promtool", "prometheus")
	test := exec.Command(promtool, "test", "rules", filepath.Base(alertsTestFile))
	test.Dir = filepath.Dir(alertsTestFile)
	if out, err := test.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// installed finds a program that tests use if it is there.
func installed(t testing.TB, program, debianPackage string) (path string) {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed: apt-get install %s", program, debianPackage)
	return ""
}

// panel is a panel of the dashboard.
type panel struct {
	ID          int
	Type, Title string
	Description string
	GridPos     struct{ H, W, X, Y int }
	Datasource  struct{ UID string }
	Targets     []struct {
		RefID, Expr string
		Datasource  struct{ UID string }
	}
}

func panels(t testing.TB) []panel {
	t.Helper()
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct{ Panels []panel }
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatalf("%s: %v", dashboardFile, err)
	}
	return dashboard.Panels
}

func TestDashboardAnswersTheQuestionsOfAnOperatorInOrder(t *testing.T) {
	t.Parallel()
	var rows []string
	ids := map[int]bool{}
	taken := map[[2]int]string{}
	for _, p := range panels(t) {
		if ids[p.ID] {
			t.Errorf("%s: number %d is another panel's", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s: it stands out at the right", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, there := taken[[2]int{x, y}]; there {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 || p.Datasource.UID != "${datasource}" {
			t.Errorf("%s: described %q, %d questions, of %q", p.Title, p.Description, len(p.Targets), p.Datasource.UID)
		}
	}
	if len(rows) < 4 || !slices.Equal(rows[:4], []string{"Is it healthy?", "Is it late?", "Who is connected?", "Will the disk fill?"}) {
		t.Errorf("the rows are %q", rows)
	}
}

// A real Prometheus with the stack's configuration scrapes a relay with clients:
// each panel has something to show, each rule can be worked out, and none fires.
func TestPanelsShowDataOfALivingRelayAndNoAlertFires(t *testing.T) {
	t.Parallel()
	path := installed(t, "prometheus", "prometheus")
	p := newLimitedProduct(t)
	prometheus := newPrometheus(t, path, p.daemon.ops.Addr().String())
	follow(t, overWebSocket, p.address(), staffToken(t), -1)
	follow(t, overSSE, p.address(), cadetToken(t, 1), 0)
	n := int64(0)
	busy := func() { // so that rates have something to show
		n++
		p.exec(`SELECT broadcast_grade_update(1, jsonb_build_object('n', $1::bigint))`, n)
		passing, err := tryFollow(t.Context(), overSSE, p.address(), staffToken(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the passing client has caught up", func() bool { return passing.note("replay_complete") != nil })
		passing.stop()
	}
	for _, panel := range panels(t) {
		for _, target := range panel.Targets {
			expr := strings.NewReplacer("$__rate_interval", "20s", "$job", "syncrelay").Replace(target.Expr)
			eventually(t, panel.Title+" shows something: "+expr, func() bool {
				busy()
				found := prometheus.query(expr)
				return found > 0 || strings.HasSuffix(expr, " > 0") // what should not happen
			})
		}
	}
	for _, expr := range examples(t, "../../configs/README.md", "Alerts", "promql") {
		prometheus.query(expr)
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError, State string }
		}
	}
	eventually(t, "the rules are worked out", func() bool {
		prometheus.ask("/api/v1/rules", nil, &rules)
		return len(rules.Groups) > 0 && !slices.ContainsFunc(rules.Groups[0].Rules, func(r struct{ Name, Query, Health, LastError, State string }) bool { return r.Health == "unknown" })
	})
	if len(rules.Groups[0].Rules) != len(alerts(t)) {
		t.Errorf("Prometheus has %d rules, want %d", len(rules.Groups[0].Rules), len(alerts(t)))
	}
	for _, r := range rules.Groups[0].Rules {
		// What a few seconds foretell for hours may be anything.
		pending := r.State == "pending" && strings.Contains(r.Query, "predict_linear")
		if r.Health != "ok" || r.State != "inactive" && !pending {
			t.Errorf("%s is %s and %s: %s", r.Name, r.Health, r.State, r.LastError)
		}
	}
}

// prometheusServer is a running Prometheus.
type prometheusServer struct {
	testing.TB
	address string
}

// newPrometheus starts one that scrapes the daemon at ops, with the configuration
// of the local stack, only faster.
func newPrometheus(t testing.TB, program, ops string) *prometheusServer {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile(prometheusFile)
	if err != nil {
		t.Fatal(err)
	}
	faster := strings.NewReplacer("relay:8001", ops, ": 5s", ": 1s").Replace(string(text))
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(faster), 0o600); err != nil {
		t.Fatal(err)
	}
	copyFile(t, alertsFile, filepath.Join(dir, "alerts.yml"), 0o600)
	address := freeAddress(t)
	launchCommand(t, exec.Command(program, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=error"))
	s := &prometheusServer{t, address}
	eventually(t, "Prometheus is ready", func() bool { status, _ := get(t, "http://"+address+"/-/ready"); return status == http.StatusOK })
	return s
}

// ask asks the HTTP API, and fails if it is not understood.
func (s *prometheusServer) ask(path string, query url.Values, into any) {
	s.Helper()
	_, body := get(s, "http://"+s.address+path+"?"+query.Encode())
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Status != "success" {
		s.Fatalf("%s?%s: %v, %s", path, query.Encode(), err, body)
	}
}

// query is the number of series that an expression has now.
func (s *prometheusServer) query(expr string) int {
	s.Helper()
	var data struct{ Result []json.RawMessage }
	s.ask("/api/v1/query", url.Values{"query": {expr}, "time": {fmt.Sprint(float64(time.Now().UnixMilli()) / 1000)}}, &data)
	return len(data.Result)
}

// The metrics that say how near the server is to giving the slot up go with it.
func TestSlotMetricsFollowTheSlot(t *testing.T) {
	t.Parallel()
	p := newLimitedProduct(t)
	ops := p.daemon.ops.Addr().String()
	value := func(name, label string) float64 {
		for _, m := range scrape(t, ops)[name].GetMetric() {
			if label == "" || len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return -1
	}
	before := value("syncrelay_slot_safe_bytes", "")
	if before <= 0 || value("syncrelay_slot_status", "reserved") != 1 || value("syncrelay_phase", "streaming") != 1 {
		t.Fatalf("at the beginning: %v", slices.Sorted(maps.Keys(scrape(t, ops))))
	}
	// A transaction that is open holds the log back.
	tx, err := p.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO sync_events (event_type) VALUES ('late')`); err != nil {
		t.Fatal(err)
	}
	p.exec(`CREATE TABLE filler AS SELECT repeat(md5(n::text), 20) FROM generate_series(1, 40000) n`)
	eventually(t, "the server keeps more log", func() bool { return value("syncrelay_slot_retained_bytes", "") > 20<<20 })
	if after := value("syncrelay_slot_safe_bytes", ""); after > before-20<<20 {
		t.Errorf("the room before the slot is given up went from %.0f to %.0f bytes only", before, after)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Somebody drops the slot under the relay.
	slot := strings.TrimPrefix(mustParse(t, p.url).Path, "/")
	eventually(t, "the slot is dropped", func() bool {
		_, err := p.pool.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
		return err == nil && value("syncrelay_slot_replacements_total", "") > 0
	})
	eventually(t, "the relay streams again", func() bool {
		return value("syncrelay_phase", "streaming") == 1 && value("syncrelay_slot_status", "reserved") == 1
	})
	if value("syncrelay_epoch_changes_total", "") != 0 {
		t.Error("a lost slot alone began a new epoch")
	}
}

func mustParse(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
