// The workers as a table that sorts by any column. Rows are kept by session and only touched where they changed, so
// that hundreds of them cost little.

import { byId, glyph, make, reconcile, text } from "./dom.js";
import { brief, clock, count, plural } from "./format.js";
import { compareNames, slowest } from "./lanes-model.js";

const PARTS = ["compute", "send", "wait", "apply"];
const busy = (worker) => (worker.compute_seconds ?? 0) + (worker.send_seconds ?? 0);
const seconds = (part) => (worker) => worker[`${part}_seconds`];

/** A column: its head, what it sorts by, and how it is shown; `some` marks what is not zero. */
const COLUMNS = [
  { head: "Worker", by: (worker) => worker.name },
  { head: "State", left: true, by: (worker) => worker.state },
  { head: "A step", left: true, by: busy },
  ...PARTS.map((part) => ({ head: part[0].toUpperCase() + part.slice(1), by: seconds(part), show: brief })),
  { head: "Microbatches", by: (worker) => worker.microbatches, show: count },
  { head: "Samples", by: (worker) => worker.samples, show: count },
  { head: "A sample", by: (worker) => worker.seconds_per_sample, show: brief },
  { head: "Took over", by: (worker) => worker.takeovers, show: count },
  { head: "Late", by: (worker) => worker.late, show: count, some: true },
  { head: "Step", by: (worker) => worker.step, show: count },
  { head: "Device", left: true, by: (worker) => worker.device ?? "" },
  { head: "Joined", by: (worker) => worker.joined_unix, show: clock },
];

/** A mark for each state, since colour alone would not tell: full, hollow, crossed. */
const MARKS = {
  working: "M5 0a5 5 0 1 0 .01 0z",
  ready: "M5 0a5 5 0 1 0 .01 0zm0 2.4a2.6 2.6 0 1 1-.01 0z",
  spare: "M0 4h10v2H0z",
  gone: "M1.5 0 5 3.5 8.5 0 10 1.5 6.5 5 10 8.5 8.5 10 5 6.5 1.5 10 0 8.5 3.5 5 0 1.5z",
  joining: "M5 0 10 10H0z",
  loading: "M5 0 10 10H0z",
};

let sorted = { column: 0, down: false };
let latest = null;

export function startWorkers() {
  const head = byId("workers-table").tHead.rows[0];
  COLUMNS.forEach((column, i) => {
    const button = make("button", { type: "button" }, column.head);
    button.addEventListener("click", () => {
      // Numbers are asked for from the largest on, names from the first.
      sorted = { column: i, down: sorted.column === i ? !sorted.down : !column.left && i > 0 };
      showWorkers(latest);
    });
    head.append(make("th", { scope: "col", class: column.left || i === 0 ? "left" : "" }, button));
  });
  byId("workers-gone").addEventListener("change", () => showWorkers(latest));
}

export function showWorkers(state) {
  latest = state;
  if (!state) return;
  const present = state.workers.filter((worker) => worker.state !== "gone");
  const gone = state.workers.length - present.length;
  text(byId("workers-sub"), [`${count(present.length)} here`, gone ? `${count(gone)} lost` : null].filter(Boolean).join(", "));

  const slow = slowest(present.filter((worker) => worker.state === "working"), busy)?.one;
  const most = present.reduce((longest, worker) => Math.max(longest, total(worker)), 0);
  reconcile(byId("workers-table").tBodies[0], order(byId("workers-gone").checked ? state.workers : present),
    (worker) => worker.session, makeRow, (row, worker) => fill(row, worker, most, worker === slow));

  [...byId("workers-table").tHead.rows[0].cells].forEach((cell, i) => {
    const arrow = sorted.column === i ? (sorted.down ? " ↓" : " ↑") : "";
    text(cell.firstElementChild, COLUMNS[i].head + arrow);
    if (arrow) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
}

function order(workers) {
  const { by } = COLUMNS[sorted.column];
  const sign = sorted.down ? -1 : 1;
  return [...workers].sort((a, b) => {
    const apart = (a.state === "gone") - (b.state === "gone");
    if (apart) return apart;
    const [x, y] = [by(a), by(b)];
    const compared = typeof x === "string" ? compareNames(x, y ?? "") : (x ?? -Infinity) - (y ?? -Infinity);
    return (sign * (Number.isNaN(compared) ? 0 : compared)) || compareNames(a.name, b.name);
  });
}

function total(worker) {
  return PARTS.reduce((sum, part) => sum + (worker[`${part}_seconds`] ?? 0), 0);
}

function makeRow() {
  const cells = COLUMNS.map((column, i) => (i === 0 ? make("th", { scope: "row" }) : make("td", { class: column.left ? "left" : "" })));
  cells[1].append(make("span", { class: "state" }, glyph("", [10, 10], { fill: "currentColor" }), make("span")));
  cells[2].append(make("div", { class: "mini", role: "img" }, ...PARTS.map((part) => make("div", { class: `k-${part}` }))));
  return make("tr", {}, ...cells);
}

function fill(row, worker, most, isSlow) {
  row.className = worker.state === "gone" ? "gone" : "";
  const [name, state, bar, ...rest] = row.cells;
  text(name, worker.name);
  name.title = worker.name;
  name.classList.toggle("slowest", isSlow);

  const mark = state.firstElementChild;
  if (!mark.classList.contains(worker.state)) {
    mark.className = `state ${worker.state}`;
    mark.querySelector("path").setAttribute("d", MARKS[worker.state] ?? "");
  }
  const left = worker.state === "gone" && worker.reason ? `gone: ${worker.reason}` : worker.state;
  text(mark.lastElementChild, left.length > 40 ? `${left.slice(0, 38)}…` : left);
  mark.title = worker.left_unix ? `${left}, at ${clock(worker.left_unix)}` : left;

  const spent = PARTS.map((part) => worker[`${part}_seconds`] ?? 0);
  [...bar.firstElementChild.children].forEach((piece, i) => {
    piece.style.width = most > 0 ? `${((spent[i] / most) * 100).toFixed(1)}%` : "0";
  });
  bar.firstElementChild.setAttribute("aria-label", PARTS.map((part, i) => `${part} ${brief(spent[i])}`).join(", "));

  rest.forEach((cell, i) => {
    const column = COLUMNS[i + 3];
    const value = column.by(worker);
    text(cell, column.show ? column.show(value) : String(value));
    cell.classList.toggle("some", Boolean(column.some && value > 0));
  });
  const device = rest[COLUMNS.findIndex((column) => column.head === "Device") - 3];
  text(device, [worker.device, worker.threads ? plural(worker.threads, "thread") : null].filter(Boolean).join(", "));
}
