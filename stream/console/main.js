// The console: who looks, over which transport, and the parts that show what comes.

import { connect } from "/client.js";
import { Board } from "./board.js";
import { byID, el, onceAFrame, say } from "./dom.js";
import { Feed } from "./feed.js";
import { plural } from "./format.js";
import { Health } from "./health.js";
import { LinkPanel } from "./link.js";

const board = new Board();
const feed = new Feed((id) => board.nameOf(id));
const link = new LinkPanel();
const health = new Health();

let relay = null;
let people = []; // whom the page may be without a token of its own: in dev only
let token = null;
let newest = 0; // the newest event that was seen

const transport = () => document.querySelector("input[name=transport]:checked").value;

/** Connects as who the token is for; after is where to begin, undefined for what is new. */
function begin(after) {
  relay?.close();
  link.reset();
  const mine = connect({ token: renew, transport: transport(), after, minDelay: 3000 });
  relay = mine;
  const facts = onceAFrame(() => relay === mine && link.facts(mine));
  mine.onEvent((event) => {
    const replayed = mine.state.catchingUp || event.event_id <= newest;
    newest = Math.max(newest, event.event_id);
    board.take(event);
    feed.take(event, replayed ? null : Math.max(0, Date.now() - Date.parse(event.timestamp)));
    facts();
  });
  mine.onState(() => relay === mine && link.show(mine));
  mine.onRefetch(({ reason }) => {
    if (relay !== mine) return;
    link.refetch(reason);
    board.miss();
  });
  mine.onError((error) => error.code === 0 && link.note(error.message, "lost"));
}

/** The demo's people get another token when theirs ends; a pasted one is the only one. */
async function renew({ reason }) {
  const chosen = byID("who").value;
  if (reason === "connect" || !chosen.startsWith("person ")) return reason === "connect" ? token : null;
  await loadPeople();
  return people[+chosen.slice("person ".length)]?.token;
}

/** Becomes somebody: nothing of who looked before stays on the page. */
function become(next) {
  token = next;
  newest = 0;
  board.clear();
  feed.clear();
  health.watch(token);
  // The demo's board is made of its events; elsewhere the log may be long.
  begin(people.length > 0 ? 0 : undefined);
}

async function loadPeople() {
  const response = await fetch("/api/console/people", { cache: "no-store" });
  if (response.ok) ({ people } = await response.json());
}

function offerPeople() {
  byID("who").replaceChildren(
    el("option", { value: "nobody", hidden: true }, "nobody yet"),
    ...people.map(({ name }, i) => el("option", { value: `person ${i}` }, name)),
    el("option", { value: "pasted", hidden: true }, "a pasted token"),
    el("option", { value: "paste" }, "paste a token …"),
  );
}

let chosen = "nobody"; // what is chosen while a token is asked for
byID("who").addEventListener("change", () => {
  const { value } = byID("who");
  if (value === "paste") {
    byID("who").value = chosen; // until there is one; so it can be chosen again
    ask();
    return;
  }
  chosen = value;
  become(people[+value.slice("person ".length)].token);
});

function ask() {
  byID("paste-token").value = "";
  byID("paste").showModal();
}

byID("paste-cancel").addEventListener("click", () => byID("paste").close());
byID("paste-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const pasted = byID("paste-token").value.trim();
  byID("paste-token").value = "";
  if (!pasted) return;
  byID("paste").close();
  byID("who").value = chosen = "pasted";
  become(pasted);
});

byID("transport").addEventListener("change", () => relay && begin(relay.cursor));
byID("cut").addEventListener("click", () => relay?.interrupt());
byID("replay").addEventListener("submit", (event) => {
  event.preventDefault();
  const after = Number(byID("replay-after").value || 0);
  if (!relay || !Number.isSafeInteger(after) || after < 0) return;
  const { received } = relay.counts;
  const mine = relay;
  link.note(`Replay after event ${after} asked for`);
  const off = mine.onState((state) => {
    if (state.status !== "open" || state.catchingUp || mine.counts.received === received) return;
    off();
    link.note(`Replay complete: ${plural(mine.counts.received - received, "event")}`, "back");
  });
  mine.replay(after);
});
byID("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  const dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", dataset.theme);
});

await loadPeople().catch(() => {});
offerPeople();
if (people.length > 0) {
  byID("who").value = chosen = "person 0";
  become(people[0].token);
} else {
  say(byID("status-text"), "Not connected");
  ask();
}
