package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// The server writes the plan of every query into its log, as it was executed:
// an EXPLAIN of what the relay really asks, whatever that will be.
func explainSettings() []string {
	return []string{
		`session_preload_libraries = 'auto_explain'`,
		`auto_explain.log_min_duration = 0`,
		`auto_explain.log_format = 'json'`,
		`auto_explain.log_analyze = on`,
		`auto_explain.log_timing = off`,
	}
}

// plan is a node of an EXPLAIN in JSON.
type plan struct {
	Node      string `json:"Node Type"`
	Relation  string `json:"Relation Name"`
	IndexCond string `json:"Index Cond"`
	Loops     int64  `json:"Actual Loops"`
	Plans     []plan `json:"Plans"`
}

// plans are the scans of the log's tables that were executed.
type plans struct {
	queries int
	scans   map[string]int // how many plans have such a scan
}

// String lists the scans.
func (p *plans) String() string {
	var list []string
	for scan := range p.scans {
		list = append(list, scan)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// others are the scans that are no range of an index.
func (p *plans) others() (list []string) {
	for scan := range p.scans {
		if !strings.HasPrefix(scan, rangeScan) {
			list = append(list, scan)
		}
	}
	return list
}

const rangeScan = "index range of "

// walk notes the scans of a plan that were executed.
func (p *plans) walk(node *plan) {
	if node.Relation != "" && node.Loops > 0 {
		relation := node.Relation
		if partition, _, ok := strings.Cut(relation, "_p2"); ok { // of a day
			relation = partition + " (a day)"
		}
		switch {
		case (node.Node == "Index Scan" || node.Node == "Index Only Scan") && node.IndexCond != "":
			p.scans[rangeScan+relation]++
		default:
			p.scans[node.Node+" of "+relation]++
		}
	}
	for i := range node.Plans {
		p.walk(&node.Plans[i])
	}
}

// explainArchive has a cadet's events replayed once more, and reads in the
// server's log how it has found them.
func (b *bench) explainArchive(ctx context.Context, db *database) (found *plans, err error) {
	for _, setting := range explainSettings() {
		if err := db.exec(ctx, `ALTER DATABASE `+db.name+` SET `+setting); err != nil {
			return nil, err
		}
	}
	defer func() {
		for _, setting := range explainSettings() {
			name, _, _ := strings.Cut(setting, " ")
			err = errors.Join(err, db.exec(context.WithoutCancel(ctx), `ALTER DATABASE `+db.name+` RESET `+name))
		}
	}()
	d, err := b.serve(ctx, db, keepArchive, ringOfOne)
	if err != nil {
		return nil, err
	}
	log := b.server.own.LogFile()
	before, err := os.Stat(log)
	if err == nil {
		_, err = b.replayArchive(ctx, d, 2)
	}
	err = errors.Join(err, d.stop())
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(log) //nolint:gosec // the server's own
	if err != nil {
		return nil, fmt.Errorf("read the server's log: %w", err)
	}
	found = &plans{scans: make(map[string]int)}
	if err := found.read(text[before.Size():]); err != nil {
		return nil, err
	}
	if found.queries == 0 {
		return nil, errors.New("the server's log shows no plan of a query of the journal")
	}
	return found, nil
}

// read finds plans of replays in a server's log: each entry's lines but the first
// are indented.
func (p *plans) read(log []byte) error {
	for _, entry := range bytes.Split(log, []byte("plan:\n"))[1:] {
		var text []byte
		for line := range bytes.Lines(entry) {
			if !bytes.HasPrefix(line, []byte("\t")) {
				break
			}
			text = append(text, line...)
		}
		var explained struct {
			Query string `json:"Query Text"`
			Plan  plan   `json:"Plan"`
		}
		if err := json.Unmarshal(text, &explained); err != nil {
			return fmt.Errorf("read a plan in the server's log: %w", err)
		}
		// Of all that the relay asks while a client replays, this is what it asks for it.
		if strings.Contains(explained.Query, "event_id > k.after") || strings.Contains(explained.Query, "s.bytes_before <") {
			p.queries++
			p.walk(&explained.Plan)
		}
	}
	return nil
}
