// How the relay is, for the staff: what its metrics say, once a second.

import { byID, say } from "./dom.js";
import { bytes, count, plural, rate, span } from "./format.js";
import { Plot } from "./plot.js";

const interval = 1000;
const reach = 10; // reports over which the latency is worked out: of one second there is often none

export class Health {
  #turn = 0; // counts who is looked for
  #timer;
  #before = null;
  #reports = []; // the last of them, for the latency
  #plots = {
    connections: new Plot("Connections", count, ["WebSocket", "SSE"]),
    events: new Plot("Events a second", rate, ["written", "delivered"]),
    latency: new Plot("Commit to socket", span, ["99 of 100", "half"]),
    lag: new Plot("Replication lag", bytes),
    retained: new Plot("Retained log", bytes),
    journal: new Plot("Not journaled yet", count),
    retention: new Plot("Deleted by retention", rate),
    memory: new Plot("Memory", bytes),
  };

  /** Looks with this token from now on; with none, nothing is shown. */
  watch(token) {
    const turn = ++this.#turn;
    clearTimeout(this.#timer);
    this.#forget();
    byID("tiles").replaceChildren();
    say(byID("health-hint"), "");
    if (token) this.#look(turn, token);
  }

  async #look(turn, token) {
    const again = () => { this.#timer = setTimeout(() => this.#look(turn, token), interval); };
    if (document.hidden) { again(); return; }
    try {
      const response = await fetch("/api/console/health", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
      const answer = await response.json();
      if (turn !== this.#turn) return;
      if (response.status === 401 || response.status === 403) {
        byID("tiles").replaceChildren();
        say(byID("health-hint"), answer.code === "staff_only" ? "Only the staff may see how the relay is." : answer.message);
        return;
      }
      if (!response.ok) throw new Error(answer.message);
      this.#show(answer);
    } catch (error) {
      if (turn !== this.#turn) return;
      say(byID("health-hint"), "The relay does not answer.");
      this.#forget();
    }
    again();
  }

  /** What is reported next is not compared with what was. */
  #forget() {
    this.#before = null;
    this.#reports = [];
  }

  #show(now) {
    const tiles = byID("tiles");
    if (tiles.children.length === 0) tiles.replaceChildren(...Object.values(this.#plots).map((plot) => plot.element));
    const started = (report) => total(report, "process_start_time_seconds");
    if (this.#before && started(this.#before) !== started(now)) this.#forget(); // it counts anew
    const before = this.#before ?? now;
    const seconds = Math.max((now.at - before.at) / 1000, 0.001);
    this.#before = now;
    say(byID("health-hint"), now.phase === "streaming" ? `Streaming · up ${span(now.at - 1000 * started(now))}` : `${now.phase}: ${now.reason ?? ""}`);
    const p = this.#plots;

    const sockets = total(now, "syncrelay_connections", { transport: "websocket" });
    const streams = total(now, "syncrelay_connections", { transport: "sse" });
    p.connections.add([sockets, streams], count(sockets + streams), `${count(sockets)} WebSocket, ${count(streams)} SSE`);

    const perSecond = (name) => Math.max(0, total(now, name) - total(before, name)) / seconds;
    const written = perSecond("syncrelay_events_total");
    const delivered = perSecond("syncrelay_deliveries_total");
    p.events.add([written, delivered], rate(written), `${rate(delivered)} delivered a second`);

    this.#reports = [...this.#reports, now].slice(-reach - 1);
    const half = quantile(this.#reports[0], now, 0.5);
    const most = quantile(this.#reports[0], now, 0.99);
    p.latency.add([most, half], half === null ? "–" : span(half), most === null ? "nothing delivered just now" : `99 of 100 within ${span(most)}`);

    gauge(p.lag, now, "syncrelay_replication_lag_bytes", "written and not confirmed");
    gauge(p.retained, now, "syncrelay_slot_retained_bytes", "kept by the server for the slot");

    const behind = now.last_event_id - now.journaled_event_id;
    p.journal.add([behind], count(behind), `journaled up to ${now.journaled_event_id}`);

    const ran = total(now, "syncrelay_retention_last_success_timestamp_seconds");
    p.retention.add([perSecond("syncrelay_retention_deleted_total")], count(total(now, "syncrelay_retention_deleted_total")), ran > 0 ? `last run ${span(Math.max(0, now.at - 1000 * ran))} ago` : "it has not run yet");

    const resident = total(now, "process_resident_memory_bytes");
    p.memory.add([resident], bytes(resident), plural(total(now, "go_goroutines"), "goroutine"));
  }
}

/** A plot of what only the database knows, which may be away. */
function gauge(plot, report, name, note) {
  const there = report.metrics[name] !== undefined;
  const value = total(report, name);
  plot.add([there ? value : null], there ? bytes(value) : "–", there ? note : "the database does not answer");
}

/** The sum of a metric's series that have these labels. */
function total(report, name, labels = {}) {
  return (report.metrics[name] ?? [])
    .filter((series) => Object.entries(labels).every(([label, value]) => series.labels?.[label] === value))
    .reduce((sum, series) => sum + series.value, 0);
}

/**
 * How long the given share of the deliveries between two reports took at most, in
 * milliseconds; null if there were none. Between the bounds of a bucket it is
 * taken to be even.
 */
function quantile(before, now, share) {
  const name = "syncrelay_delivery_latency_seconds";
  const deliveries = (report) => (report.metrics[name] ?? []).reduce((sum, series) => sum + (series.count ?? 0), 0);
  const below = (report, i) => (report.metrics[name] ?? []).reduce((sum, series) => sum + (series.buckets?.[i]?.[1] ?? 0), 0);
  const all = deliveries(now) - deliveries(before);
  const bounds = (now.metrics[name]?.[0]?.buckets ?? []).map(([bound]) => bound);
  if (all <= 0 || bounds.length === 0) return null;
  let last = 0;
  for (let i = 0; i < bounds.length; i++) {
    const here = below(now, i) - below(before, i);
    if (here >= share * all) {
      const from = i === 0 ? 0 : bounds[i - 1];
      return 1000 * (from + (bounds[i] - from) * ((share * all - last) / Math.max(here - last, 1)));
    }
    last = here;
  }
  return 1000 * bounds.at(-1);
}
