package clienttest

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

//go:embed page.html
var page []byte

// browsers are the names under which a Chromium is looked for.
var browsers = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"}

// NewTab opens a tab in a Chromium of its own, and returns the context for
// chromedp. The browser ends with the test.
func NewTab(t testing.TB, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	var path string
	for _, name := range browsers {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		missing(t, "chromium", fmt.Sprintf("none of %q is on the path (apt-get install chromium)", browsers))
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.Flag("disable-gpu", true),
		chromedp.NoSandbox, // it doesn't run as root with one, and sees our own pages only
		chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true), chromedp.Flag("disable-extensions", true),
		chromedp.WSURLReadTimeout(patience),
	}
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), append(options, more...)...)
	log := &tabLog{TB: t}
	tab, endTab := chromedp.NewContext(allocator, chromedp.WithErrorf(log.errorf))
	t.Cleanup(func() {
		_ = chromedp.Cancel(tab) // in good order, so that nothing is left of it
		endTab()
		endAllocator()
		log.end()
	})
	if err := chromedp.Do(tab); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return tab
}

// tabLog is what chromedp says of a tab. Its goroutines outlive the browser by a
// moment, and a test that has ended must not be written to.
type tabLog struct {
	testing.TB

	mu   sync.Mutex
	over bool
}

func (l *tabLog) errorf(format string, args ...any) {
	l.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.Logf(format, args...)
	}
}

func (l *tabLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
}

// NewPage runs the client that a relay serves in Chromium, on a page of another
// site: the relay must take any origin. It ends with the test.
func NewPage(t testing.TB, relay string) *Host {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content := page
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if r.URL.Path == "/driver.js" {
			content = driver
			w.Header().Set("Content-Type", "text/javascript")
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(site.Close)
	tab := NewTab(t)
	h := newHost(t)
	err := chromedp.Listen(tab, func(event any) {
		if call, ok := event.(*runtime.EventBindingCalled); ok {
			h.hear([]byte(call.Payload))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var one sync.Mutex
	h.tell = func(command []byte) error {
		one.Lock()
		defer one.Unlock()
		text, err := json.Marshal(string(command))
		if err != nil {
			return err
		}
		return chromedp.Do(tab, chromedp.Evaluate[chromedp.Void](`void tell(JSON.parse(`+string(text)+`))`))
	}
	say := chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, runtime.AddBinding, runtime.AddBindingParams{Name: "say"})
		return err
	})
	if err := chromedp.Do(tab, say, chromedp.Navigate(site.URL+"/?client="+url.QueryEscape(relay+"/client.js"))); err != nil {
		t.Fatalf("open the page: %v", err)
	}
	h.await("the page", func() bool { return h.ready })
	return h
}
