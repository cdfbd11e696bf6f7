package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/syncrelay/syncrelay/cmd/syncrelay/bench"
	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
)

// onlyOnLinux skips a test of what needs Linux.
func onlyOnLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the bench runs on Linux only")
	}
}

// tiny is the smallest run that still goes every way.
func tiny() bench.Scale {
	return bench.Scale{
		Name: "tiny", Rounds: 1,
		LatencyRate: 100, LatencyTime: 500 * time.Millisecond, LatencyCadets: 4,
		IngestRows:  1000,
		FanoutSizes: []int{5}, FanoutDeliveries: 50, BurstDeliveries: 100, Burst: 5,
		MemoryConnections: 20, StormClients: 5, StormEvents: 60, Connects: 20,
		ArchiveEvents: 1000, ArchiveCadets: 20, ArchiveSamples: 3,
		CostConnections: 12, CostGroups: 36, CostTime: 200 * time.Millisecond,
	}
}

func TestBenchMeasuresEveryRowBesideItsFloorAndLeavesNothingBehind(t *testing.T) {
	onlyOnLinux(t)
	t.Parallel()
	var progress output
	report, err := bench.Run(t.Context(), bench.Options{
		Program: binary(t), Environ: os.Environ(), Scale: tiny(), PostgresBin: os.Getenv(pgtest.BinVariable), Sign: signBench, Progress: &progress,
	})
	if err != nil {
		t.Fatalf("%v; it did\n%s", err, &progress)
	}
	if faults := report.Faults(); faults != nil {
		t.Errorf("it found faults: %s", faults)
	}
	checkReport(t, report, bench.Names())
}

func TestBenchOnAServerOfTheOperatorsDropsWhatItHasMade(t *testing.T) {
	onlyOnLinux(t)
	t.Parallel()
	p := newDatabase(t)
	report, err := bench.Run(t.Context(), bench.Options{
		Program: binary(t), Environ: os.Environ(), Scale: tiny(), DatabaseURL: p.url, Rows: []string{"latency", "archive"}, Sign: signBench,
	})
	if err != nil {
		t.Fatal(err)
	}
	if faults := report.Faults(); faults != nil {
		t.Errorf("it found faults: %s", faults)
	}
	checkReport(t, report, []string{"latency", "archive"})
	if left := p.text(`SELECT count(*)::text FROM pg_database WHERE datname LIKE 'syncrelay\_bench\_%'`); left != "0" {
		t.Errorf("it has left %s databases", left)
	}
	if left := p.text(`SELECT count(*)::text FROM pg_replication_slots WHERE slot_name LIKE 'syncrelay\_bench\_%'`); left != "0" {
		t.Errorf("it has left %s slots", left)
	}
	if kept := p.text(`SELECT count(*)::text FROM pg_roles WHERE rolname = 'syncrelay_relay'`); kept != "1" {
		t.Error("it has dropped a role that was there before")
	}
}

// checkReport holds a report, as programs read it, to what it promises.
func checkReport(t *testing.T, report *bench.Report, want []string) {
	t.Helper()
	var text bytes.Buffer
	if err := report.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	var read struct {
		Machine map[string]any `json:"machine"`
		Rows    []struct {
			Row     string `json:"row"`
			Figures []struct {
				Name    string   `json:"name"`
				Figure  *float64 `json:"figure"`
				Floor   *float64 `json:"floor"`
				FloorIs string   `json:"floor_is"`
				Ratio   *float64 `json:"ratio"`
				Goal    *string  `json:"goal"`
				Met     *bool    `json:"met"`
			} `json:"figures"`
		} `json:"rows"`
	}
	if err := json.Unmarshal(text.Bytes(), &read); err != nil {
		t.Fatalf("%v in %s", err, &text)
	}
	for _, key := range []string{"cores", "cpu", "kernel", "go", "postgres"} {
		if v := read.Machine[key]; v == nil || v == "" || v == 0.0 {
			t.Errorf("the machine's %s is %v", key, v)
		}
	}
	var names []string
	for _, row := range read.Rows {
		names = append(names, row.Row)
		if len(row.Figures) == 0 {
			t.Errorf("row %s has no figures", row.Row)
		}
		goals := 0
		for _, f := range row.Figures {
			if f.Figure == nil || f.Floor == nil || f.Ratio == nil || f.Goal == nil || f.Met == nil || f.Name == "" || f.FloorIs == "" {
				t.Errorf("in row %s, %q is not whole: %+v", row.Row, f.Name, f)
				continue
			}
			if *f.Goal != "" {
				goals++
			}
		}
		if goals == 0 {
			t.Errorf("row %s has no goal", row.Row)
		}
	}
	if !slices.Equal(names, want) {
		t.Errorf("the rows are %s, want %s", names, want)
	}
	var table strings.Builder
	if err := report.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, name := range want {
		if !strings.Contains(table.String(), "\n"+name+": ") {
			t.Errorf("the table has no row %s:\n%s", name, &table)
		}
	}
}

func TestBenchThatIsInterruptedLeavesNothingBehind(t *testing.T) {
	onlyOnLinux(t)
	t.Parallel()
	home, err := os.MkdirTemp("", "bench-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	args := []string{"bench", "--only", "latency"}
	if bin := os.Getenv(pgtest.BinVariable); bin != "" {
		args = append(args, "--postgres-bin", bin)
	}
	p := launch(t, []string{"TMPDIR=" + home}, args...)
	eventually(t, "it measures", func() bool { return strings.Contains(p.err.String(), "latency, round 1") })
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(); code != exitFailure {
		t.Errorf("exit code %d, want %d", code, exitFailure)
	}
	if left, err := filepath.Glob(filepath.Join(home, "*")); err != nil || len(left) > 0 {
		t.Errorf("it has left %s (%v)", left, err)
	}
	// Whatever it has started had its own file or its directory as an argument.
	eventually(t, "no process is left", func() bool {
		lines, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range lines {
			if environ, err := os.ReadFile(path); err == nil && bytes.Contains(environ, []byte("TMPDIR="+home)) {
				return false
			}
		}
		return true
	})
}

func TestBenchFailsIfClientsAreSentWhatTheyShouldNotBe(t *testing.T) {
	t.Parallel()
	report := bench.Report{Rows: []*bench.Row{{Name: "latency"}, {Name: "fanout", Error: "client 1: event 7 was sent twice"}}}
	if faults := report.Faults(); len(faults) != 1 || !strings.Contains(faults[0], "fanout: client 1") {
		t.Errorf("the faults are %q", faults)
	}
}

func TestBenchNamesTheRowsThatThereAre(t *testing.T) {
	onlyOnLinux(t)
	t.Parallel()
	p := launch(t, nil, "bench", "--only", "latency,nonsense")
	if code := p.wait(); code != exitFailure || !strings.Contains(p.err.String(), `no row "nonsense"`) || !strings.Contains(p.err.String(), "fanout") {
		t.Errorf("exit code %d: %s", code, p.err)
	}
}
