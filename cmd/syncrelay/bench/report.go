package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what a run has found.
type Report struct {
	// Scale is the name of the run's Scale.
	Scale   string    `json:"scale"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Machine Machine   `json:"machine"`
	Rows    []*Row    `json:"rows"`
}

// Machine is what was measured on.
type Machine struct {
	Cores     int    `json:"cores"`
	CPU       string `json:"cpu"`
	Memory    int64  `json:"memory_bytes"`
	Kernel    string `json:"kernel"`
	Go        string `json:"go"`
	Postgres  string `json:"postgres"`
	OpenFiles int    `json:"open_files"`
	// Busy is what of all cores was used already before the run, in percent.
	Busy float64 `json:"busy_before_percent"`
	// Embedded: Postgres was started for the run, on the same machine.
	Embedded bool `json:"embedded"`
}

// Row is a row of the table: figures of one kind.
type Row struct {
	Name    string   `json:"row"`
	Title   string   `json:"title"`
	Seconds float64  `json:"seconds"`
	Figures []Figure `json:"figures"`
	// Notes say how it was measured, and what was in the way.
	Notes []string `json:"notes,omitempty"`
	// Error says why there are no figures, or why they don't count: events were
	// lost, repeated, or out of order.
	Error string `json:"error,omitempty"`
}

// Figure is one figure beside its floor.
type Figure struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"figure"`
	// Floor is what the parts cost alone; FloorIs says which.
	Floor   float64 `json:"floor"`
	FloorIs string  `json:"floor_is"`
	// Ratio is Value to Floor.
	Ratio float64 `json:"ratio"`
	// Goal is in words, empty for a figure that explains another one; Met tells
	// whether it is reached.
	Goal string `json:"goal"`
	Met  bool   `json:"met"`
}

// goal is what a figure should be.
type goal struct {
	words string
	met   func(figure, floor float64) bool
}

// atLeast is a share of the floor that is to be reached.
func atLeast(share float64) goal {
	words := fmt.Sprintf("≥ %g × the floor", share)
	if share < 1 {
		words = fmt.Sprintf("≥ %.0f %% of the floor", 100*share)
	}
	return goal{words, func(figure, floor float64) bool { return figure >= share*floor }}
}

// atMost is a multiple of the floor that is not to be passed.
func atMost(times float64) goal {
	return goal{fmt.Sprintf("≤ %g × the floor", times), func(figure, floor float64) bool { return figure <= times*floor }}
}

// within is how much above the floor a figure may be.
func within(more float64, unit string) goal {
	return goal{fmt.Sprintf("≤ the floor + %s", quantity(more, unit)), func(figure, floor float64) bool { return figure <= floor+more }}
}

// below is a bound that no floor moves.
func below(bound float64, unit string) goal {
	return goal{"≤ " + quantity(bound, unit), func(figure, _ float64) bool { return figure <= bound }}
}

// noGoal is for a figure that explains another one.
func noGoal() goal { return goal{"", func(float64, float64) bool { return true }} }

// add adds a figure.
func (r *Row) add(name, unit string, figure, floor float64, floorIs string, g goal) {
	f := Figure{Name: name, Unit: unit, Value: figure, Floor: floor, FloorIs: floorIs, Goal: g.words, Met: g.met(figure, floor)}
	if floor != 0 {
		f.Ratio = figure / floor
	}
	r.Figures = append(r.Figures, f)
}

// note adds a note, unless it is empty or stands there already.
func (r *Row) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, n := range r.Notes {
		if n == text {
			return
		}
	}
	if text != "" {
		r.Notes = append(r.Notes, text)
	}
}

// limit notes that the machine was the limit while a party was measured, once
// for each party.
func (r *Row) limit(who string, u usage) {
	for _, n := range r.Notes {
		if strings.HasPrefix(n, who+": ") {
			return
		}
	}
	r.note("%s", u.limit(who))
}

// Faults are the rows that have failed.
func (r *Report) Faults() (faults []string) {
	for _, row := range r.Rows {
		if row.Error != "" {
			faults = append(faults, row.Name+": "+row.Error)
		}
	}
	return faults
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	m := r.Machine
	where := "on this machine, started for the run"
	if !m.Embedded {
		where = "the operator's"
	}
	fmt.Fprintf(w, "%d cores (%s), %s of memory, Linux %s, %s, PostgreSQL %s (%s)\n", m.Cores, m.CPU, quantity(float64(m.Memory)/(1<<30), "GiB"), m.Kernel, m.Go, m.Postgres, where)
	fmt.Fprintf(w, "%s run of %s, %.0f s\n", r.Scale, r.Started.UTC().Format(time.RFC3339), r.Seconds)
	if m.Busy >= disturbed {
		fmt.Fprintf(w, "other programs used %.0f %% of the machine before the run began: a quiet one gives better figures\n", m.Busy)
	}
	for _, row := range r.Rows {
		fmt.Fprintf(w, "\n%s: %s\n", row.Name, row.Title)
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		if len(row.Figures) > 0 {
			fmt.Fprintf(t, "  \tfigure\tfloor\tratio\tgoal\tmet\tthe floor is\n")
		}
		for _, f := range row.Figures {
			met := "no"
			switch {
			case f.Goal == "":
				met = ""
			case f.Met:
				met = "yes"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%.2f\t%s\t%s\t%s\n", f.Name, quantity(f.Value, f.Unit), quantity(f.Floor, f.Unit), f.Ratio, f.Goal, met, f.FloorIs)
		}
		if err := t.Flush(); err != nil {
			return err
		}
		for _, n := range row.Notes {
			fmt.Fprintf(w, "  note: %s\n", n)
		}
		if row.Error != "" {
			fmt.Fprintf(w, "  ERROR: %s\n", row.Error)
		}
	}
	return nil
}

// quantity writes a figure with three digits, or all of those before the point.
func quantity(v float64, unit string) string {
	digits := 2
	if v == math.Trunc(v) {
		digits = 0
	}
	for a := math.Abs(v); a >= 10 && digits > 0; a /= 10 {
		digits--
	}
	whole, fraction, _ := strings.Cut(strconv.FormatFloat(v, 'f', digits, 64), ".")
	for at := len(whole) - 3; at > 0 && whole[at-1] != '-'; at -= 3 {
		whole = whole[:at] + "," + whole[at:]
	}
	if fraction != "" {
		whole += "." + fraction
	}
	return strings.TrimSpace(whole + " " + unit)
}

// machine describes the machine.
func (b *bench) machine() Machine {
	return Machine{
		Cores: runtime.NumCPU(), CPU: entry("/proc/cpuinfo", "model name"), Memory: memoryBytes(), Kernel: kernel(),
		Go: runtime.Version(), Postgres: b.server.version, OpenFiles: b.files, Embedded: b.server.own != nil,
	}
}

// entry reads an entry of a file below /proc; empty if there is none.
func entry(path, name string) string {
	text, _ := os.ReadFile(path) //nolint:gosec // below /proc
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func memoryBytes() int64 {
	kb, _ := strconv.ParseInt(strings.TrimSuffix(entry("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	return kb << 10
}

func kernel() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(release))
}
