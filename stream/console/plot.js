// A small plot of the last minutes: one or two lines over time.

import { draw, el, say } from "./dom.js";

const samples = 120; // one a second
const width = 240;
const height = 48;

export class Plot {
  #series;
  #format;
  #value = el("output", { className: "value" });
  #note = el("p", { className: "note" });
  #lines;
  #area = draw("path", { class: "area" });
  #high = el("span", { className: "high" });
  #svg;
  #title;

  /** names are those of the lines, the first of which is filled. */
  constructor(title, format, names = [title]) {
    this.#title = title;
    this.#format = format;
    this.#series = names.map(() => []);
    this.#lines = names.map((_, i) => draw("path", { class: `line line-${i}` }));
    this.#svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" }, this.#area, ...this.#lines);
    const legend = names.length > 1 ? el("p", { className: "legend" }, ...names.map((name, i) => el("span", { className: `key key-${i}` }, name))) : "";
    this.element = el("article", { className: "tile" },
      el("h3", {}, title), legend, this.#value, this.#note, el("div", { className: "plot" }, this.#svg, this.#high));
  }

  /** Adds a value for each line; null where there is none. */
  add(values, value, note = "") {
    values.forEach((v, i) => {
      this.#series[i].push(v);
      if (this.#series[i].length > samples) this.#series[i].shift();
    });
    say(this.#value, value);
    say(this.#note, note);
    this.#draw();
  }

  #draw() {
    const highest = Math.max(...this.#series.flat().map((v) => v ?? 0));
    const scale = highest > 0 ? (height - 4) / highest : 0;
    const points = (line) => line.map((v, i) => (v === null ? null : [width - (line.length - 1 - i) * (width / (samples - 1)), height - 1 - v * scale]));
    this.#lines.forEach((path, i) => path.setAttribute("d", trace(points(this.#series[i]))));
    this.#area.setAttribute("d", fill(points(this.#series[0])));
    say(this.#high, highest > 0 ? this.#format(highest) : "");
    this.#svg.setAttribute("aria-label", `${this.#title}, the last two minutes: now ${this.#value.textContent}, at most ${this.#format(highest)}`);
  }
}

const at = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** The stretches of a line: it breaks off where there is no value. */
function stretches(points) {
  const all = [[]];
  for (const point of points) {
    if (point !== null) all.at(-1).push(point);
    else if (all.at(-1).length > 0) all.push([]);
  }
  return all.filter((stretch) => stretch.length > 0);
}

/** A line. A value that stands alone is a dot. */
function trace(points) {
  return stretches(points).map((stretch) => `M${at(stretch[0])}l0 0${stretch.slice(1).map((point) => `L${at(point)}`).join("")}`).join("");
}

/** What is below a line. */
function fill(points) {
  return stretches(points).map((stretch) => `M${stretch[0][0].toFixed(1)} ${height}L${stretch.map(at).join("L")}L${stretch.at(-1)[0].toFixed(1)} ${height}Z`).join("");
}
