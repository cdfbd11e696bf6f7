package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// For a long run: go test -run Soak -timeout 0 -v ./cmd/syncrelay -soak=20m
var soakFor = flag.Duration("soak", 0, "how long TestSoak watches the relay's memory; 0 leaves it out")

// soakShare is how much higher the memory of a run's last quarter may be than
// that of its second. The first is for caches and the ring to fill.
const soakShare = 1.1

// The relay works under load, with clients that come and go, and its memory,
// goroutines and open files stay as they are.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("it runs with -soak=20m")
	}
	p := newDatabase(t)
	serve := launch(t, append(p.settings(), "SYNCRELAY_MEMORY_RING_EVENTS=2000",
		"SYNCRELAY_RETENTION_WINDOW=20s", "SYNCRELAY_RETENTION_INTERVAL=5s"), "serve")
	public, ops := serve.addresses()
	serve.ready(public)
	c := &chaos{product: p, address: public}
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	var load sync.WaitGroup
	for w := range 2 {
		load.Go(func() { c.keepWriting(ctx, fmt.Sprint("writer ", w), uint64(w)) })
	}
	for i := range 20 {
		load.Go(func() { c.comeAndGo(ctx, i) })
	}
	var samples []soakSample
	tick := time.NewTicker(*soakFor / 200)
	defer tick.Stop()
	for begun := time.Now(); time.Since(begun) < *soakFor; {
		<-tick.C
		samples = append(samples, serve.sample(ops))
	}
	calm()
	load.Wait()
	quarter := len(samples) / 4
	early, late := mean(samples[quarter:2*quarter]), mean(samples[3*quarter:])
	t.Logf("second quarter %+v, last quarter %+v, %s events", early, late, p.text(`SELECT max(event_id)::text FROM syncrelay.journal`))
	if float64(late.KB) > soakShare*float64(early.KB) || float64(late.Goroutines) > soakShare*float64(early.Goroutines) || float64(late.Files) > soakShare*float64(early.Files) {
		t.Error("the relay grows")
	}
}

// comeAndGo connects again and again, for half a second each.
func (c *chaos) comeAndGo(ctx context.Context, i int) {
	token := staffToken(c)
	for ctx.Err() == nil {
		f, err := tryFollow(ctx, []string{overWebSocket, overSSE}[i%2], c.address, token, 0)
		if err != nil {
			continue
		}
		pause := time.NewTimer(500 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		f.stop()
	}
}

type soakSample struct{ KB, Goroutines, Files int }

func (p *program) sample(ops string) (s soakSample) {
	p.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			s.KB, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.Fatal(err)
	}
	s.Files = len(files)
	_, body := get(p, "http://"+ops+"/metrics")
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			s.Goroutines, _ = strconv.Atoi(strings.TrimSpace(rest))
		}
	}
	return s
}

func mean(samples []soakSample) (m soakSample) {
	for _, s := range samples {
		m.KB, m.Goroutines, m.Files = m.KB+s.KB, m.Goroutines+s.Goroutines, m.Files+s.Files
	}
	n := max(1, len(samples))
	return soakSample{m.KB / n, m.Goroutines / n, m.Files / n}
}
