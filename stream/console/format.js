// Numbers and times for people.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

export const count = (n) => whole.format(n);
export const rate = (n) => (n >= 100 ? whole.format(n) : fine.format(n));

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
  return `${i === 0 || n >= 100 ? whole.format(n) : fine.format(n)} ${units[i]}`;
}

/** A time span, in milliseconds. */
export function span(ms) {
  if (ms < 10) return `${fine.format(ms)} ms`;
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 60_000) return `${fine.format(ms / 1000)} s`;
  if (ms < 3_600_000) return `${whole.format(ms / 60_000)} min`;
  return `${fine.format(ms / 3_600_000)} h`;
}

const clockFormat = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
export const clock = (time) => (Number.isFinite(+time) ? clockFormat.format(time) : "–");

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** "grade_update" as people write it. */
export const words = (name) => name.replace(/_/g, " ");

/** The type of an event, in a column. */
export const kind = (type) => words(type).replace(/ update$/, "");

/** A payload in one line: what it says of whom is said elsewhere. */
export function summary({ type, data }) {
  if (type === "attendance_update" && data?.status) return `${data.status} on ${data.date}`;
  if (type === "exam_score_update" && data?.exam) return `${data.exam} ${data.score ?? "–"}`;
  if (data === null || typeof data !== "object") return JSON.stringify(data);
  if (typeof data.title === "string" || typeof data.message === "string") return [data.title, data.message].filter((text) => typeof text === "string").join(": ");
  return Object.entries(data)
    .filter(([name]) => name !== "cadet_id" && name !== "name")
    .map(([name, value]) => `${words(name)} ${value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : value}`)
    .join(" · ");
}
