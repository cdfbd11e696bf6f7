package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// openConsoleAs opens the console of a product, and has pasted a token.
func openConsoleAs(t *testing.T, p *product, token string) *console {
	t.Helper()
	c := openConsole(t, p.address())
	c.await("it asks for a token", `document.getElementById("paste").open`)
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), token+"\r"))
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	return c
}

func (c *console) press(keys ...string) {
	c.Helper()
	for _, key := range keys {
		c.do(chromedp.KeyEvent(key))
	}
}

// focused is what has the focus: an id, or an element's name, and what one sees of
// that.
func (c *console) focused() (what string, visible bool) {
	c.Helper()
	text := c.eval(`(() => {
		const it = document.activeElement;
		const shown = it.type === "radio" ? it.nextElementSibling : it;
		const style = getComputedStyle(shown);
		const box = shown.getBoundingClientRect();
		const outlined = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.right > 0 && box.left < innerWidth;
		return [it === document.body ? "body" : it.id || it.name || it.className || it.textContent.trim() || it.tagName.toLowerCase(), outlined].join("|");
	})()`)
	what, outlined, _ := strings.Cut(text, "|")
	return what, outlined == "true"
}

// walk presses the tabulator until it comes to something for the second time, or to
// the end.
func (c *console) walk() (stops []string) {
	c.Helper()
	for len(stops) < 60 {
		c.press(kb.Tab)
		what, visible := c.focused()
		if what == "body" || slices.Contains(stops, what) {
			return stops
		}
		if !visible {
			c.Errorf("nobody sees that %s has the focus", what)
		}
		stops = append(stops, what)
	}
	c.Fatalf("there is no end to %q", stops)
	return nil
}

func TestConsoleIsOperatedByTheKeyboardAlone(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsole(t, p.address())

	// The dialogue keeps the focus, lets go with Escape, and can be had again.
	c.await("it asks for a token", `document.getElementById("paste").open`)
	if stops := c.walk(); !slices.Equal(stops, []string{"paste-cancel", "first"}) {
		t.Errorf("in the dialogue the tabulator goes over %q", stops)
	}
	c.press(kb.Escape)
	c.await("it is closed", `!document.getElementById("paste").open`)
	c.do(chromedp.Evaluate[chromedp.Void](`document.getElementById("who").focus()`))
	c.press("p") // paste a token …
	c.await("it asks again", `document.getElementById("paste").open && document.activeElement.id === "paste-token"`)
	c.press(strings.Split(staffToken(t), "")...)
	c.press(kb.Enter)
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	p.exec(`SELECT broadcast_grade_update(1, '{"name": "One", "merits": 1}')`)
	c.await("an event is there", `document.querySelectorAll("#feed li").length === 1`)

	// Everything is reached, in the order in which it stands.
	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelector(".skip").focus()`))
	want := []string{"who", "transport", "theme", "cut", "replay-after", "Replay", "scroll", "filter-type", "filter-cadet", "pause"}
	stops := c.walk()
	if len(stops) != len(want)+1 || !slices.Equal(stops[:len(want)], want) || !strings.Contains(stops[len(want)], "One merits 1") {
		t.Errorf("the tabulator goes over\n%q, want\n%q and the event", stops, want)
	}

	focus := func(selector string) {
		t.Helper()
		c.do(chromedp.Evaluate[chromedp.Void](`document.querySelector(` + quoted(selector) + `).focus()`))
	}
	focus("#cut")
	c.press(kb.Enter)
	c.await("the connection was cut and is back", `document.getElementById("fact-reconnects").textContent === "1" && document.getElementById("status").dataset.status === "open"`)
	focus("input[name=transport]:checked")
	c.press(kb.ArrowRight)
	c.await("it is live over SSE", `document.getElementById("status-text").textContent === "Live · SSE"`)
	focus("#pause")
	c.press(" ")
	c.await("the feed is paused", `document.getElementById("pause").getAttribute("aria-pressed") === "true"`)
	c.press(" ")
	focus("#filter-cadet")
	c.press(kb.ArrowDown)
	c.await("a cadet is chosen", `document.getElementById("filter-cadet").value === "1"`)
	before := c.eval(`getComputedStyle(document.body).color`)
	focus("#theme")
	c.press(kb.Enter)
	c.await("the theme changes", `getComputedStyle(document.body).color !== `+quoted(before))
	focus(".skip")
	c.press(kb.Enter)
	if what, _ := c.focused(); what != "feed" {
		t.Errorf("the first link leads to %s, want the feed", what)
	}
	c.wantNoComplaints()
}

func TestConsoleFitsAPhone(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsole(t, p.address())
	sizes := []int{320, 360, 412}
	for _, width := range sizes {
		c.do(chromedp.EmulateViewport(int64(width), 740))
		c.await("the dialogue fits", fmt.Sprintf(`(() => { const box = document.getElementById("paste").getBoundingClientRect(); return box.left >= 0 && box.right <= %d; })()`, width))
	}
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), staffToken(t)+"\r"))
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	p.exec(`SELECT broadcast_grade_update(c, jsonb_build_object('name', 'Wilhelmina Featherstonehaugh', 'merits', 100, 'demerits', 10)) FROM generate_series(1, 12) c`)
	p.exec(`SELECT broadcast_attendance_update(c, '{"status": "excused", "date": "2026-01-15"}'), broadcast_exam_score_update(c, '{"exam": "Drill regulations", "score": 100}') FROM generate_series(1, 12) c`)
	p.exec(`SELECT broadcast_notification(1, jsonb_build_object('title', repeat('endless', 40)))`)
	c.await("all is there", `document.querySelectorAll("#feed li").length === 37 && document.querySelectorAll(".tile").length === 8`)
	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("#feed details").forEach((d) => { d.open = true; })`))
	for _, width := range sizes {
		c.shoot(fmt.Sprintf("console-phone-%d", width), int64(width), 740, "dark")
		if wide := c.eval(`document.scrollingElement.scrollWidth`); wide != fmt.Sprint(width) {
			t.Errorf("at %d the page is %s wide", width, wide)
		}
		for _, part := range []string{".board .scroll", "#feed", ".journal", ".tiles", ".top"} {
			if hidden := c.eval(`(() => { const it = document.querySelector(` + quoted(part) + `); return it.scrollWidth - it.clientWidth; })()`); hidden != "0" {
				t.Errorf("at %d %s hides %s px at its right", width, part, hidden)
			}
		}
		small := c.eval(`[...document.querySelectorAll("button, select, input:not([type=radio]), .segments span, summary")].filter((it) => it.checkVisibility()).map((it) => [it.id || it.textContent.slice(0, 20), it.getBoundingClientRect()]).filter(([, box]) => box.width < 40 || box.height < 40).map(([name, box]) => name + " " + box.width + "×" + box.height).join(", ")`)
		if small != "" {
			t.Errorf("at %d a finger hardly hits: %s", width, small)
		}
	}
}

// contrasts lists the texts that are hard to read on what is behind them: less than
// 4.5 to 1, as WCAG 2 counts it. What stands for nothing (a dash) is no text.
const contrasts = `(() => {
	const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
	const luminance = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const behind = (node) => {
		for (; node; node = node.parentElement) {
			const colour = channels(getComputedStyle(node).backgroundColor);
			if (colour.length === 3 || colour[3] === 1) return colour;
		}
		return [255, 255, 255];
	};
	const bad = new Set();
	for (const node of document.querySelectorAll("body *")) {
		const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim() !== "");
		if (!own || !node.checkVisibility() || node.matches("td.none, :disabled, .unseen, .skip, script, noscript, dialog *, .fresh")) continue;
		const [one, other] = [luminance(channels(getComputedStyle(node).color)), luminance(behind(node))].sort((a, b) => b - a);
		const ratio = (one + 0.05) / (other + 0.05);
		if (ratio < 4.5) bad.add((node.className || node.id || node.tagName) + " " + ratio.toFixed(2));
	}
	return [...bad].join(", ");
})()`

func TestConsoleCanBeReadInLightAndDark(t *testing.T) {
	t.Parallel()
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsoleAs(t, p, staffToken(t))
	p.exec(`SELECT broadcast_grade_update(1, '{"name": "One", "merits": 1}'), broadcast_attendance_update(1, '{"status": "late"}'), broadcast_exam_score_update(1, '{"exam": "Drill", "score": 9}'), broadcast_notification(1, '{"title": "x"}'), broadcast_sync_event('other', '{}')`)
	c.await("all is there", `document.querySelectorAll("#feed li").length === 5 && document.querySelectorAll(".tile").length === 8 && document.querySelectorAll(".fresh").length === 0`)
	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("#feed details").forEach((d) => { d.open = true; })`))
	c.click("#pause")
	for _, scheme := range []string{"light", "dark"} {
		c.shoot("console-read-"+scheme, 1280, 800, scheme)
		if bad := c.eval(contrasts); bad != "" {
			t.Errorf("in the %s one can hardly read: %s", scheme, bad)
		}
	}
}

// axeVariable names the file with axe-core, which .ci/axe fetches.
const axeVariable = "SYNCRELAY_TEST_AXE"

// What axe finds is what keeps people out who don't use a screen and a mouse as
// most do: names that are missing, roles and orders that are wrong.
func TestConsoleHasNothingThatAxeFinds(t *testing.T) {
	t.Parallel()
	path := os.Getenv(axeVariable)
	if path == "" {
		t.Skipf("%s names no file: %s=$(.ci/axe 4.14.1)", axeVariable, axeVariable)
	}
	axe, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := newDatabase(t)
	p.start("SYNCRELAY_CONSOLE_ENABLED=true")
	c := openConsole(t, p.address())
	c.await("it asks for a token", `document.getElementById("paste").open`)
	c.do(chromedp.Evaluate[chromedp.Void](string(axe) + "; void 0"))
	look := func(state string) {
		t.Helper()
		c.do(chromedp.Evaluate[chromedp.Void](`window.found = undefined; axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => {
			window.found = violations.map((v) => v.id + ": " + v.help + "\n  " + v.nodes.map((n) => n.html.slice(0, 160)).join("\n  ")).join("\n");
		}); void 0`))
		c.await("axe has looked", `window.found !== undefined`)
		if found := c.eval(`window.found`); found != "" {
			t.Errorf("%s axe finds\n%s", state, found)
		}
	}
	look("in the dialogue")
	c.do(chromedp.SendKeys(chromedp.CSS("#paste-token"), staffToken(t)+"\r"))
	c.await("it is live", `document.getElementById("status").dataset.status === "open"`)
	look("where nothing has come")
	p.exec(`SELECT broadcast_grade_update(1, '{"name": "One", "merits": 1}'), broadcast_attendance_update(1, '{"status": "late"}'), broadcast_notification(1, '{"title": "x"}')`)
	c.await("all is there", `document.querySelectorAll("#feed li").length === 3 && document.querySelectorAll(".tile").length === 8 && document.querySelectorAll(".fresh").length === 0`)
	c.do(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("#feed details").forEach((d) => { d.open = true; })`))
	look("with events and plots")
	c.do(chromedp.EmulateViewport(360, 740))
	look("on a phone")
}
