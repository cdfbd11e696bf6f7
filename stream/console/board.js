// The grade board: what the events about each cadet add up to.

import { byID, el, onceAFrame, say } from "./dom.js";
import { plural } from "./format.js";

const maxCadets = 500;
const maxExams = 6;

const numberOr = (value, otherwise = null) => (typeof value === "number" && Number.isFinite(value) ? value : otherwise);
const statuses = ["present", "late", "absent", "excused"];

export class Board {
  #cadets = new Map(); // by ID: what is known, and the row that shows it
  #exams = []; // names, in the order of the alphabet
  #passed = 0; // the newest event that is in here: a replay changes nothing
  #missing = false; // events that would have changed it were not sent
  #redraw = onceAFrame(() => this.#draw());

  clear() {
    this.#cadets.clear();
    this.#exams = [];
    this.#passed = 0;
    this.#missing = false;
    byID("board").replaceChildren();
    this.#head();
    this.#redraw();
  }

  /** Some events will never come: an application would fetch its state anew here. */
  miss() {
    this.#missing = true;
    this.#redraw();
  }

  nameOf(id) { return this.#cadets.get(id)?.name ?? `Cadet ${id}`; }

  take(event) {
    if (event.event_id <= this.#passed) return;
    this.#passed = event.event_id;
    const { data } = event;
    if (event.cadet_id === undefined || data === null || typeof data !== "object") return;
    let cadet = this.#cadets.get(event.cadet_id);
    if (!cadet) {
      if (this.#cadets.size >= maxCadets) return;
      cadet = { id: event.cadet_id, name: null, merits: null, demerits: null, attendance: null, scores: new Map(), changed: new Set(), row: null };
      this.#cadets.set(cadet.id, cadet);
    }
    switch (event.type) {
      case "grade_update":
        if (typeof data.name === "string") cadet.name = data.name;
        this.#change(cadet, "merits", numberOr(data.merits, cadet.merits));
        this.#change(cadet, "demerits", numberOr(data.demerits, cadet.demerits));
        break;
      case "attendance_update":
        this.#change(cadet, "attendance", statuses.includes(data.status) ? data.status : null);
        break;
      case "exam_score_update":
        this.#score(cadet, typeof data.exam === "string" ? data.exam.slice(0, 40) : "Exam", numberOr(data.score));
    }
    this.#redraw();
  }

  #change(cadet, field, value) {
    if (cadet[field] === value) return;
    cadet[field] = value;
    cadet.changed.add(field);
  }

  #score(cadet, exam, score) {
    if (!this.#exams.includes(exam)) {
      if (this.#exams.length >= maxExams) return;
      this.#exams = [...this.#exams, exam].sort();
      for (const each of this.#cadets.values()) each.row = null; // it needs a cell more
      this.#head();
    }
    if (score === null) cadet.scores.delete(exam);
    else cadet.scores.set(exam, score);
    cadet.changed.add(`exam ${exam}`).add("average");
  }

  #head() {
    const column = (text, name = "number") => el("th", { scope: "col", className: name }, text);
    byID("board-head").replaceChildren(
      column("Cadet", "name"), column("Merits"), column("Demerits"), column("Attendance", "attendance"),
      ...this.#exams.map((exam) => column(exam, "number exam")), column("Average"),
    );
  }

  #draw() {
    const body = byID("board");
    const cadets = [...this.#cadets.values()].sort((a, b) => a.id - b.id);
    if (byID("board-head").children.length === 0) this.#head();
    cadets.forEach((cadet, i) => {
      cadet.row ??= this.#row(cadet);
      if (body.children[i] !== cadet.row.element) body.insertBefore(cadet.row.element, body.children[i] ?? null);
      this.#show(cadet);
    });
    while (body.children.length > cadets.length) body.lastChild.remove();
    byID("board-empty").hidden = cadets.length > 0;
    say(byID("board-hint"), [cadets.length > 0 && plural(cadets.length, "cadet"), this.#missing && "some events are missing"].filter(Boolean).join(" · "));
  }

  #row(cadet) {
    const cells = { merits: "number", demerits: "number", attendance: "attendance" };
    for (const exam of this.#exams) cells[`exam ${exam}`] = "number exam";
    cells.average = "number";
    const name = el("th", { scope: "row", className: "name" });
    const element = el("tr", {}, name);
    const row = { element, name, cells: new Map() };
    for (const [field, className] of Object.entries(cells)) {
      const cell = el("td", { className });
      cell.addEventListener("animationend", () => cell.classList.remove("fresh"));
      row.cells.set(field, cell);
      element.append(cell);
    }
    return row;
  }

  #show(cadet) {
    const { row } = cadet;
    say(row.name, cadet.name ?? `Cadet ${cadet.id}`);
    const scores = [...cadet.scores.values()];
    const show = (field, text) => {
      const cell = row.cells.get(field);
      say(cell, text ?? "–");
      cell.classList.toggle("none", text === null);
      if (cadet.changed.has(field)) cell.classList.add("fresh");
    };
    show("merits", cadet.merits);
    show("demerits", cadet.demerits);
    show("attendance", cadet.attendance);
    row.cells.get("attendance").dataset.is = cadet.attendance ?? "";
    for (const exam of this.#exams) show(`exam ${exam}`, cadet.scores.has(exam) ? cadet.scores.get(exam).toFixed(1) : null);
    show("average", scores.length > 0 ? (scores.reduce((sum, score) => sum + score, 0) / scores.length).toFixed(1) : null);
    cadet.changed.clear();
  }
}
