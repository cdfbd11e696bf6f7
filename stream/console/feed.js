// The live feed: the newest events first, each of which can be looked into.

import { byID, el, onceAFrame, say } from "./dom.js";
import { clock, count, kind, span, summary, words } from "./format.js";

const kept = 400; // events that can be looked at
const known = { grade_update: "grade", attendance_update: "attendance", exam_score_update: "exam", notification: "notice", message: "notice" };

export class Feed {
  #events = []; // the newest last
  #shown = 0; // of these, how many were drawn: the rest is new
  #paused = false;
  #types = new Set();
  #cadets = new Set();
  #nameOf;
  #redraw = onceAFrame(() => this.#draw());

  constructor(nameOf) {
    this.#nameOf = nameOf;
    byID("pause").addEventListener("click", () => this.#pause(!this.#paused));
    for (const id of ["filter-type", "filter-cadet"]) byID(id).addEventListener("change", () => this.#again());
    byID("feed").addEventListener("keydown", (event) => this.#walk(event));
  }

  clear() {
    this.#events = [];
    this.#types.clear();
    this.#cadets.clear();
    for (const id of ["filter-type", "filter-cadet"]) byID(id).replaceChildren(byID(id).options[0]);
    this.#pause(false);
    this.#again();
  }

  /** Takes an event, and how long after its commit it came, null if that says nothing. */
  take(event, latency) {
    this.#events.push({ event, latency });
    if (this.#events.length > 2 * kept) {
      this.#shown = Math.max(0, this.#shown - (this.#events.length - kept));
      this.#events = this.#events.slice(-kept);
    }
    if (!this.#types.has(event.type) && this.#types.size < 100) this.#offer("filter-type", this.#types, event.type, words(event.type));
    if (event.cadet_id !== undefined && !this.#cadets.has(event.cadet_id) && this.#cadets.size < 500) this.#offer("filter-cadet", this.#cadets, event.cadet_id, "");
    this.#redraw();
  }

  #offer(id, set, value, text) {
    set.add(value);
    const option = el("option", { value }, text);
    const after = [...byID(id).options].slice(1).find((other) => (typeof value === "number" ? +other.value > value : other.value > value));
    byID(id).insertBefore(option, after ?? null);
  }

  #pause(paused) {
    this.#paused = paused;
    byID("pause").setAttribute("aria-pressed", paused);
    this.#redraw();
  }

  #wanted({ event }) {
    const type = byID("filter-type").value;
    const cadet = byID("filter-cadet").value;
    return (type === "" || event.type === type) && (cadet === "" || String(event.cadet_id) === cadet);
  }

  /** Draws all anew. */
  #again() {
    byID("feed").replaceChildren();
    this.#shown = 0;
    this.#redraw(true);
  }

  #draw() {
    const list = byID("feed");
    for (const option of byID("filter-cadet").options) if (option.value !== "") say(option, this.#nameOf(+option.value));
    const waiting = this.#events.slice(this.#shown);
    const hold = this.#paused && list.children.length > 0;
    say(byID("pause"), this.#paused ? (waiting.length > 0 && hold ? `Go on · ${count(waiting.length)} new` : "Go on") : "Pause");
    if (!hold) {
      const rows = waiting.slice(-kept).filter((each) => this.#wanted(each)).map((each) => this.#row(each));
      list.prepend(...rows.reverse());
      while (list.children.length > kept) list.lastChild.remove();
      this.#shown = this.#events.length;
    }
    byID("feed-empty").hidden = list.children.length > 0;
    say(byID("feed-empty"), this.#events.length > 0 ? "No event is like that." : "Nothing yet: an event appears here as its transaction commits.");
  }

  #row({ event, latency }) {
    const who = event.cadet_id === undefined ? "" : this.#nameOf(event.cadet_id);
    const details = el("details", {},
      el("summary", {},
        el("time", { dateTime: event.timestamp }, clock(new Date(event.timestamp))),
        el("span", { className: "kind", data: { kind: known[event.type] ?? "other" } }, kind(event.type)),
        el("span", { className: "what" }, el("b", {}, who), who ? " " : "", summary(event)),
        el("span", { className: "latency" }, latency === null ? "replayed" : span(latency)),
      ));
    // The rest is made when somebody looks.
    details.addEventListener("toggle", () => details.open && details.children.length === 1 && details.append(this.#inside(event, latency)));
    return el("li", {}, details);
  }

  #inside(event, latency) {
    const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
    return el("div", { className: "inside" },
      el("dl", { className: "facts" },
        fact("Event", event.event_id), fact("Type", event.type), fact("Cadet", event.cadet_id ?? "–"),
        fact("Written", event.timestamp), fact("Since it was written", latency === null ? "replayed" : span(latency))),
      el("pre", { tabIndex: 0 }, JSON.stringify(event.data, null, 2)));
  }

  /** The arrow keys walk through the events. */
  #walk(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const row = event.target.closest?.("summary")?.closest("li");
    const next = step && row?.[step];
    if (!next) return;
    event.preventDefault();
    next.querySelector("summary").focus();
  }
}
