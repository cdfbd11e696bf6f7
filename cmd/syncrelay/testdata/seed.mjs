// Runs the page of before in Node, which has no page: its script, as it stands in
// seed.html. Each line on standard input is answered with what it has got so far.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [page, search] = process.argv.slice(2);
const streams = globalThis.EventSource !== undefined; // from Node 22 on, with a flag
globalThis.location = { search };
if (!streams) globalThis.EventSource = class { readyState = 1; };
const [, script] = readFileSync(page, "utf8").match(/<script>(.*)<\/script>/s);
// Node 20 leaves a WebSocket that could not be opened as it is, where a browser closes it
// and says so. (It does not get there if the connection breaks before the request is
// sent, as it is sent again then.)
globalThis.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("error", () => setTimeout(() => {
      if (this.readyState === WebSocket.CONNECTING) this.dispatchEvent(Object.assign(new Event("close"), { code: 1006 }));
    }));
  }
};
const look = (0, eval)(`${script}; () => ({ ...got, opened: source.readyState })`);
createInterface({ input: process.stdin }).on("line", () => console.log(JSON.stringify({ ...look(), streams }))).on("close", () => process.exit());
