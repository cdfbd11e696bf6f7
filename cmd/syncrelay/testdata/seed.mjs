// Runs the page of before in Node, which has no page: its script, as it stands in
// seed.html. Each line on standard input is answered with what it has got so far.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const [page, search] = process.argv.slice(2);
const streams = globalThis.EventSource !== undefined; // from Node 22 on, with a flag
globalThis.location = { search };
if (!streams) globalThis.EventSource = class { readyState = 1; };
const [, script] = readFileSync(page, "utf8").match(/<script>(.*)<\/script>/s);
const look = (0, eval)(`${script}; () => ({ ...got, opened: source.readyState })`);
createInterface({ input: process.stdin }).on("line", () => console.log(JSON.stringify({ ...look(), streams }))).on("close", () => process.exit());
