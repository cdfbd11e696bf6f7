// The connection: its state, and what has happened to it.

import { byID, el, say } from "./dom.js";
import { clock, count, plural, span, words } from "./format.js";

const lines = 30; // of the journal
const transports = { websocket: "WebSocket", sse: "SSE" };

export class LinkPanel {
  #lost = null; // when and where the connection was lost
  #gap = false; // some of what was written since then is not sent any more
  #was = "closed";
  #countdown;

  /** A new client begins. */
  reset() {
    this.#lost = null;
    this.#gap = false;
    this.#was = "closed";
  }

  note(text, kind = "") {
    const journal = byID("journal");
    journal.prepend(el("li", { data: { kind } }, el("time", {}, clock(Date.now())), " ", text));
    while (journal.children.length > lines) journal.lastChild.remove();
  }

  /** What is shown is not all that happened: the relay says so before we are back. */
  refetch(reason) {
    this.#gap = true;
    this.note(`State must be fetched anew: ${words(reason)}`, "lost");
  }

  /** Shows numbers, which change with every event. */
  facts(relay) {
    const { state, counts } = relay;
    say(byID("fact-transport"), transports[state.transport] ?? "–");
    say(byID("fact-cursor"), relay.cursor ?? "–");
    say(byID("fact-received"), count(counts.received));
    say(byID("fact-duplicates"), count(counts.duplicates));
    say(byID("fact-reconnects"), count(state.reconnects));
    say(byID("fact-trip"), state.roundTrip === null ? "–" : span(state.roundTrip));
  }

  show(relay) {
    const { state } = relay;
    clearInterval(this.#countdown);
    byID("status").dataset.status = state.status === "open" && state.catchingUp ? "catching" : state.status;
    const text = {
      connecting: () => "Connecting",
      open: () => (state.catchingUp ? "Catching up" : `Live · ${transports[state.transport]}`),
      waiting: () => `Lost · again in ${span(Math.max(0, state.retryAt - Date.now()))}`,
      closed: () => (state.reason?.code === 1000 ? "Not connected" : `Refused: ${state.reason?.text ?? ""}`),
    }[state.status];
    say(byID("status-text"), text());
    if (state.status === "waiting") this.#countdown = setInterval(() => say(byID("status-text"), text()), 200);
    byID("cut").disabled = state.status !== "open";
    this.#tell(relay);
    this.facts(relay);
  }

  /** Writes what has happened into the journal. */
  #tell(relay) {
    const { state, counts } = relay;
    if (this.#was === "open" && state.status !== "open" && state.reason?.code !== 1000) {
      this.#lost ??= { at: Date.now(), cursor: relay.cursor, received: counts.received };
      if (state.status !== "closed") this.note(`Lost after event ${relay.cursor}: ${state.reason?.text ?? "connecting anew"}`, "lost");
    }
    if (state.status === "closed" && state.reason?.code !== 1000 && this.#was !== "closed") this.note(`Refused: ${state.reason.text}`, "lost");
    if (state.status === "open" && !state.catchingUp) {
      if (this.#lost) {
        const caughtUp = plural(counts.received - this.#lost.received, "event");
        this.note(`Back after ${span(Date.now() - this.#lost.at)} over ${transports[state.transport]}; ${caughtUp} of meanwhile caught up, ${this.#gap ? "others are missing" : "nothing missed"}`, this.#gap ? "lost" : "back");
        this.#lost = null;
        this.#gap = false;
      } else if (this.#was !== "open") {
        this.note(`Connected over ${transports[state.transport]} as ${state.role} ${state.userId}`, "back");
      }
    }
    this.#was = state.status === "open" && state.catchingUp ? "catching" : state.status;
  }
}
