// The driver in Node: commands come on standard input, what is said goes to
// standard output, one JSON object a line.
import { createInterface } from "node:readline";
import * as client from "./client.js";
import { drive } from "./driver.js";

const tell = drive(client, (said) => process.stdout.write(JSON.stringify(said) + "\n"));
globalThis.reportError = (error) => process.stdout.write(JSON.stringify({ reported: error.message }) + "\n");
createInterface({ input: process.stdin }).on("line", (line) => tell(JSON.parse(line))).on("close", () => process.exit());
process.stdout.write(JSON.stringify({ ready: true }) + "\n");
