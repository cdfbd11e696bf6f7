package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/syncrelay/syncrelay/outbox/localpg/pgtest"
	"github.com/syncrelay/syncrelay/stream/clienttest"
)

// console is the console page in a tab.
type console struct {
	testing.TB
	tab context.Context //nolint:containedctx // chromedp's handle of a tab

	mu         sync.Mutex
	complaints []string // of the browser: faults, refusals of the page's policy
	requested  []string // addresses
}

// openConsole opens the page.
func openConsole(t testing.TB, address string) *console {
	t.Helper()
	c := &console{TB: t, tab: clienttest.NewTab(t)}
	err := chromedp.Listen(c.tab, func(event any) {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			c.complaints = append(c.complaints, fmt.Sprintf("%+v", e.ExceptionDetails))
		case *log.EventEntryAdded:
			if strings.Contains(e.Entry.Text, "Content Security Policy") || strings.Contains(e.Entry.Text, "TrustedHTML") {
				c.complaints = append(c.complaints, e.Entry.Text)
			}
		case *network.EventRequestWillBeSent:
			c.requested = append(c.requested, e.Request.URL)
		case *network.EventWebSocketCreated:
			c.requested = append(c.requested, e.URL)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	c.do(chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, network.Enable, network.EnableParams{})
		return err
	}), chromedp.Navigate("http://"+address+"/"))
	return c
}

func (c *console) do(steps ...chromedp.Action[chromedp.Void]) {
	c.Helper()
	if err := chromedp.Do(c.tab, steps...); err != nil {
		c.Fatalf("in the console: %v", err)
	}
}

// eval is what an expression gives, as JSON says it.
func (c *console) eval(expression string) string {
	c.Helper()
	text, err := chromedp.Run(c.tab, chromedp.Evaluate[string](`String(`+expression+`)`))
	if err != nil {
		c.Fatalf("%s: %v", expression, err)
	}
	return text
}

// await waits until an expression is true.
func (c *console) await(what, expression string) {
	c.Helper()
	eventually(c, what, func() bool { return c.eval(expression) == "true" })
}

// text is what an element says.
func (c *console) text(id string) string {
	c.Helper()
	return c.eval(`document.getElementById(` + quoted(id) + `).textContent`)
}

func quoted(s string) string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // texts can always be encoded
	}
	return string(text)
}

// shoot keeps a picture of the page, of this size and in this colour scheme, as an
// artefact of the test: go test -artifacts -outputdir DIR keeps it.
func (c *console) shoot(name string, width, height int64, scheme string) {
	c.Helper()
	c.do(chromedp.EmulateViewport(width, height), chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	}))
	dir := c.ArtifactDir()
	if err := os.WriteFile(filepath.Join(dir, name+".png"), c.screenshot(), 0o644); err != nil {
		c.Fatal(err)
	}
	c.Logf("%s.png is in %s", name, dir)
}

// screenshot is a picture of the whole page, a PNG.
func (c *console) screenshot() []byte {
	c.Helper()
	picture, err := chromedp.Run(c.tab, chromedp.FullScreenshot(100))
	if err != nil {
		c.Fatalf("take a picture: %v", err)
	}
	return picture
}

// pictureFile is where the README's picture of the console is put.
var pictureFile = flag.String("picture", "", "take the picture of the console for the README, which takes two minutes, into this file")

// The picture is taken of the demo after two minutes, as long as the plots are, in
// which the connection was cut once:
//
//	go test -run TestPictureOfTheReadme ./cmd/syncrelay -picture ../../stream/console.png
func TestPictureOfTheReadme(t *testing.T) {
	if *pictureFile == "" {
		t.Skip("it is taken only if -picture says where to put it")
	}
	dev, address := launchDev(t)
	c := openConsole(t, address)
	c.do(chromedp.EmulateViewport(1440, 900))
	c.shoot("console-at-once", 1440, 900, "light")
	drawn := func(seconds int) {
		t.Helper()
		c.await(fmt.Sprintf("the plots show %d seconds", seconds), fmt.Sprintf(`(document.querySelector(".line")?.getAttribute("d").split("L").length ?? 0) >= %d`, seconds))
	}
	token := regexp.MustCompile(`eyJ[\w.-]+`).FindString(dev.out.String())
	drawn(40)
	others := []*follower{follow(t, overSSE, address, token, -1), follow(t, overSSE, address, token, -1)}
	drawn(80)
	others = append(others, follow(t, overWebSocket, address, token, -1))
	others[0].stop()
	c.click("#cut")
	drawn(120)
	if err := os.WriteFile(*pictureFile, c.screenshot(), 0o644); err != nil {
		t.Fatal(err)
	}
	c.shoot("console-later-dark", 1440, 900, "dark")
	c.shoot("console-later-phone", 360, 740, "dark")
	c.shoot("console-later-tablet", 820, 1180, "light")
}

// wantNoComplaints fails if the browser had something to complain about.
func (c *console) wantNoComplaints() {
	c.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, complaint := range c.complaints {
		c.Errorf("the browser complains: %s", complaint)
	}
}

var consoleAddress = regexp.MustCompile(`console +http://([^/]+)/`)

// launchDev starts dev, and returns the address of its console.
func launchDev(t *testing.T) (dev *program, address string) {
	t.Helper()
	home, err := os.MkdirTemp("", "dev-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	args := []string{"dev", "--address", "127.0.0.1:0", "--ops-address", "127.0.0.1:0"}
	if bin := os.Getenv(pgtest.BinVariable); bin != "" {
		args = append(args, "--postgres-bin", bin)
	}
	dev = launch(t, []string{"TMPDIR=" + home}, args...)
	t.Cleanup(func() {
		_ = dev.cmd.Process.Signal(os.Interrupt)
		dev.wait()
	})
	eventually(t, "dev says where its console is", func() bool { return consoleAddress.MatchString(dev.out.String()) })
	return dev, consoleAddress.FindStringSubmatch(dev.out.String())[1]
}

func TestConsoleOfDevShowsTheDemo(t *testing.T) {
	t.Parallel()
	_, address := launchDev(t)
	c := openConsole(t, address)
	c.await("it is connected", `document.getElementById("status-text").textContent === "Live · WebSocket"`)
	c.await("cadets are on the board", `document.querySelectorAll("#board tr").length >= 5 && document.querySelectorAll("#board td:not(.none)").length > 20`)
	c.await("events are in the feed", `document.querySelectorAll("#feed li").length >= 10 && [...document.querySelectorAll(".latency")].some((l) => l.textContent.endsWith("ms"))`)
	c.await("the relay's health is drawn", `document.querySelectorAll(".tile").length === 8 && document.querySelector(".line").getAttribute("d").length > 60`)
	c.shoot("console-light", 1440, 900, "light")
	c.shoot("console-dark", 1440, 900, "dark")
	c.shoot("console-phone", 390, 844, "light")
	if wide := c.eval(`document.scrollingElement.scrollWidth`); wide != "390" {
		t.Errorf("on a phone the page is %s wide, want 390", wide)
	}
	if hidden := c.eval(`(() => { const scroll = document.querySelector(".board .scroll"); return scroll.scrollWidth - scroll.clientWidth; })()`); hidden != "0" {
		t.Errorf("on a phone the board hides %s px", hidden)
	}
	c.wantNoComplaints()
}

// choose chooses an option, as a person does.
func (c *console) choose(id, value string) {
	c.Helper()
	c.do(chromedp.SetValue(chromedp.CSS("#"+id), value), chromedp.Evaluate[chromedp.Void](`document.getElementById(`+quoted(id)+`).dispatchEvent(new Event("change", { bubbles: true }))`))
}

func (c *console) click(selector string) {
	c.Helper()
	c.do(chromedp.Click(chromedp.CSS(selector)))
}

func TestConsoleCutsReplaysSwitchesFiltersAndPauses(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsole(t, p.address())
	c.await("it asks for a token", `document.getElementById("paste").open`)
	token := staffToken(t)
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), token+"\r")) // by the keyboard alone
	live := func(transport string) {
		t.Helper()
		c.await("it is live over "+transport, `document.getElementById("status-text").textContent === "Live · `+transport+`"`)
	}
	live("WebSocket")
	written := 0
	write := func(n int) {
		t.Helper()
		for range n {
			written++
			p.exec(`SELECT broadcast_grade_update($1, jsonb_build_object('name', 'Cadet of ' || $1::bigint, 'merits', $2::int, 'demerits', 1))`, 1+written%2, written)
		}
	}
	rows := func(n int) {
		t.Helper()
		c.await(fmt.Sprintf("%d rows are in the feed", n), fmt.Sprintf(`document.querySelectorAll("#feed li").length === %d`, n))
	}
	write(10)
	rows(10)
	c.await("the board has the newest", `document.querySelector("#board tr td").textContent === "10"`)

	c.click("#cut")
	write(5)
	c.await("it says that nothing was missed", `/caught up, nothing missed/.test(document.querySelector("#journal li").textContent)`)
	rows(15)
	live("WebSocket")
	if twice, reconnects := c.text("fact-duplicates"), c.text("fact-reconnects"); twice != "0" || reconnects != "1" {
		t.Errorf("%s came twice, %s reconnects; want 0 and 1", twice, reconnects)
	}

	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("input[value=sse]").click()`))
	live("SSE")
	write(1)
	rows(16)

	c.do(chromedp.SendKeys(chromedp.CSS("#replay-after"), "14\r"))
	rows(18)
	c.await("the replay is complete", `/Replay complete: 2 events/.test(document.querySelector("#journal li").textContent)`)
	if got := c.eval(`document.querySelector("#feed .latency").textContent`); got != "replayed" {
		t.Errorf("a replayed event says %q", got)
	}

	p.exec(`SELECT broadcast_attendance_update(1, '{"status": "present"}')`)
	rows(19)
	c.choose("filter-type", "attendance_update")
	rows(1)
	c.choose("filter-type", "")
	c.choose("filter-cadet", "2")
	c.await("only one cadet's are there", `[...document.querySelectorAll("#feed b")].every((b) => b.textContent === "Cadet of 2")`)
	c.choose("filter-cadet", "")
	rows(19)

	c.click("#pause")
	write(3)
	c.await("it says what waits", `document.getElementById("pause").textContent === "Go on · 3 new"`)
	rows(19)
	c.click("#pause")
	rows(22)
	c.await("the health is drawn", `document.querySelectorAll(".tile").length === 8`)

	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#feed summary").focus()`), chromedp.KeyEvent("\r"))
	c.await("a payload is looked into by the keyboard", `JSON.parse(document.querySelector("#feed pre")?.textContent ?? "{}").merits === `+fmt.Sprint(written))
	c.do(chromedp.KeyEvent(kb.ArrowDown))
	c.await("the arrow keys walk", `document.activeElement === document.querySelectorAll("#feed summary")[1]`)
	dark := c.eval(`getComputedStyle(document.body).color`)
	c.click("#theme")
	c.await("the theme changes", `getComputedStyle(document.body).color !== `+quoted(dark))

	c.wantNoComplaints()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, address := range c.requested {
		if strings.Contains(address, "eyJ") || strings.Contains(address, "token") || !strings.Contains(address, "//"+p.address()+"/") {
			t.Errorf("the page asks for %s", address)
		}
	}
}

func TestConsoleShowsACadetTheirOwnAndNotTheHealthOfTheRelay(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsole(t, p.address())
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), cadetToken(t, 2)+"\r"))
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	p.exec(`SELECT broadcast_grade_update(1, '{"name": "Another", "merits": 1}')`)
	p.exec(`SELECT broadcast_grade_update(2, '{"name": "Oneself", "merits": 2}')`)
	c.await("only one's own is there", `document.querySelectorAll("#feed li").length === 1 && document.querySelector("#board th").textContent === "Oneself"`)
	c.await("the health is refused", `document.getElementById("health-hint").textContent === "Only the staff may see how the relay is."`)
	if tiles := c.eval(`document.querySelectorAll(".tile").length`); tiles != "0" {
		t.Errorf("there are %s tiles", tiles)
	}
	c.wantNoComplaints()
}

// Who was told to fetch the state anew has missed something, and is not told
// otherwise.
func TestConsoleSaysWhatIsMissingAfterANewEpoch(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	address := p.address()
	c := openConsole(t, address)
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), staffToken(t)+"\r"))
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	p.exec(`SELECT broadcast_grade_update(1, '{"merits": 1}')`)
	c.await("the event is there", `document.querySelectorAll("#feed li").length === 1`)
	p.stop()
	p.exec(`UPDATE syncrelay.state SET epoch = 'another', epoch_after = last_event_id`)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true", "SYNCRELAY_LISTEN_ADDRESS="+address)
	c.await("it is back", `document.getElementById("status").dataset.status === "open"`)
	c.await("it says that something is missing", `/^\d\d:\d\d:\d\d Back after .* caught up, others are missing$/.test(document.querySelector("#journal li").textContent)`)
	if journal := c.text("journal"); !strings.Contains(journal, "State must be fetched anew") || strings.Contains(journal, "nothing missed") {
		t.Errorf("the journal says %q", journal)
	}
	c.await("the board says so too", `document.getElementById("board-hint").textContent === "1 cadet · some events are missing"`)
	c.click("#cut")
	c.await("what comes after that is whole again", `/nothing missed$/.test(document.querySelector("#journal li").textContent)`)
	c.wantNoComplaints()
}

// What is in a payload is a stranger's: none of it becomes more than a text.
func TestConsoleShowsHostilePayloadsAsTexts(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsole(t, p.address())
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), staffToken(t)+"\r"))
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	const evil = `<img src=x onerror="window.owned=1"><script>window.owned=1</script><svg onload=window.owned=1>"'javascript:window.owned=1//`
	for _, payload := range []map[string]any{
		{"name": evil, "merits": evil, "demerits": map[string]any{"toString": evil}},
		{"exam": evil, "score": evil}, {"exam": evil, "score": 50}, {"exam": "__proto__", "score": 1},
		{"status": evil, "date": evil}, {"title": evil, "message": evil}, {evil: evil, "__proto__": map[string]any{"owned": 1}, "constructor": evil},
	} {
		text, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []string{"grade_update", "attendance_update", "exam_score_update", "notification", evil, "__proto__", "constructor"} {
			p.exec(`SELECT broadcast_sync_event($1, $2::text::jsonb, 1)`, kind, string(text))
		}
	}
	for _, payload := range []string{`null`, `[1, null]`, `"text"`, `7`, `{"a": {"b": null}}`} {
		p.exec(`INSERT INTO sync_events (event_type, cadet_id, payload) VALUES ('grade_update', 1, $1::text::jsonb)`, payload)
	}
	c.await("all are in the feed", `document.querySelectorAll("#feed li").length === 54`)
	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("#feed details").forEach((d) => { d.open = true; })`))
	c.await("all are looked into", `document.querySelectorAll("#feed pre").length === 54`)
	for expression, want := range map[string]string{
		`window.owned`: "undefined", `({}).owned`: "undefined",
		`document.querySelectorAll("main img, main script, main svg:not(.plot svg), main [onerror], main a").length`: "0",
		`document.querySelector("#board th").textContent.includes("<script>")`:                                       "true",
		`document.querySelector("#feed pre").textContent.length > 0`:                                                 "true",
	} {
		if got := c.eval(expression); got != want {
			t.Errorf("%s is %s, want %s", expression, got, want)
		}
	}
	// Should somebody make markup of a payload one day, the browser refuses.
	if got := c.eval(`(() => { try { document.body.insertAdjacentHTML("beforeend", "<p>"); return "done"; } catch (fault) { return fault.name; } })()`); got != "TypeError" {
		t.Errorf("making markup of a text is %s, want a TypeError of Trusted Types", got)
	}
	c.shoot("console-hostile", 1440, 900, "light")
	if high := c.eval(`document.scrollingElement.scrollHeight < 2000`); high != "true" {
		t.Errorf("the page has grown with what is in the feed")
	}
}
