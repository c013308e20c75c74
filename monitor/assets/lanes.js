// The lanes: a row a worker on a time axis. One canvas as high as what is visible, whatever the number of workers;
// the kinds of span differ by height and stripes as well as by colour.

import { byId, fit, make, text } from "./dom.js";
import { brief, count, plural } from "./format.js";
import { arrange, marks, spanAt } from "./lanes-model.js";
import { KINDS, colour } from "./palette.js";

/** The height of the axis above the lanes, in pixels. */
const AXIS = 36;

let latest = null;
let shown = null;
let held = false;
let scheduled = false;
let pointed = null;

export function startLanes() {
  byId("lanes-legend").replaceChildren(...Object.entries(KINDS).map(([kind, { label }]) => make("li", {}, make("i", { class: `k-${kind}` }), label)));
  for (const id of ["lanes-span", "lanes-order"]) byId(id).addEventListener("change", () => showLanes(latest, true));
  byId("lanes-hold").addEventListener("click", (event) => {
    held = !held;
    event.currentTarget.setAttribute("aria-pressed", String(held));
    if (!held && latest) showLanes(latest);
  });
  byId("lanes-scroll").addEventListener("scroll", schedule, { passive: true });
  new ResizeObserver(schedule).observe(byId("lanes-scroll"));
  document.addEventListener("schemechange", schedule);
  const canvas = byId("lanes-canvas");
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointerleave", () => point(null));
}

/** Shows a state's lanes, unless they are being held; `now` says that the reader asked for another view of them. */
export function showLanes(state, now = false) {
  latest = state;
  if (!state || (held && !now)) return;
  shown = arrange(state, Number(byId("lanes-span").value), byId("lanes-order").value);
  say();
  schedule();
}

function schedule() {
  if (scheduled || !shown) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    draw();
  });
}

/** In words what the lanes show, for those who cannot see them and those who can. */
function say() {
  const { rows, begins, start, end, slow } = shown;
  const parts = [];
  if (!begins.length) parts.push("No step has been seen yet.");
  else {
    parts.push(`${plural(begins.length, "step")} in ${brief(end - start)}, ${plural(rows.length, "worker")}. `);
    if (slow) {
      const others = rows.filter((row) => row !== slow.one && row.steps > 0);
      const waited = others.reduce((sum, row) => sum + row.waited, 0) / Math.max(1, others.length);
      parts.push(make("b", {}, `${slow.one.name} is the slowest`), `: ${brief(slow.one.busy)} a step, where the middle one takes ${brief(slow.middle)}; the others wait ${brief(waited)}.`);
    } else if (rows.length > 1) parts.push("The workers are even: none takes much longer than the others.");
  }
  const node = byId("lanes-text");
  const said = parts.map((part) => (typeof part === "string" ? part : part.textContent)).join("");
  if (node.textContent !== said) node.replaceChildren(...parts);
  byId("lanes-canvas").setAttribute("aria-label", `One lane a worker on a time axis. ${said}`);
}

function geometry() {
  const box = byId("lanes-scroll");
  const width = box.clientWidth;
  const rows = shown.rows.length;
  const pitch = rows <= 12 ? 28 : rows <= 40 ? 20 : 15;
  const left = width < 520 ? 84 : 132;
  return { box, width, pitch, left, right: width - 10, height: Math.min(430, Math.max(1, rows) * pitch + 4), full: Math.max(1, rows) * pitch + 4 };
}

function draw() {
  const g = geometry();
  byId("lanes-space").style.height = `${g.full}px`;
  g.height = Math.min(g.full, g.box.clientHeight || g.height);
  const { start, end, rows, begins, slow } = shown;
  const at = (moment) => g.left + ((moment - start) / Math.max(1e-9, end - start)) * (g.right - g.left);
  const c = fit(byId("lanes-canvas"), g.width, g.height);
  c.clearRect(0, 0, g.width, g.height);

  c.fillStyle = colour("--line");
  for (const { at: moment } of begins) c.fillRect(Math.round(at(moment)), 0, 1, g.height);

  const top = g.box.scrollTop;
  const first = Math.max(0, Math.floor(top / g.pitch));
  const last = Math.min(rows.length, Math.ceil((top + g.height) / g.pitch));
  const size = g.pitch >= 20 ? 13 : 11.5;
  const stripes = pattern(c);
  for (let i = first; i < last; i += 1) {
    const y = i * g.pitch - top + 2;
    const row = rows[i];
    const isSlow = slow?.one === row;
    if (pointed?.row === i || isSlow) {
      c.fillStyle = colour(isSlow ? "--bad-soft" : "--sunk");
      c.fillRect(0, y, g.width, g.pitch);
    }
    c.fillStyle = colour(row.gone ? "--muted" : isSlow ? "--bad" : "--ink");
    c.font = `${isSlow ? 650 : 450} ${size}px ${fontFamily()}`;
    c.textBaseline = "middle";
    c.fillText(cut(c, `${isSlow ? "▲ " : ""}${row.name}`, g.left - 12), 4, y + g.pitch / 2 + 0.5);
    drawSpans(c, row, y, g, at, stripes);
  }
  drawAxis(g, at);
}

function drawSpans(c, row, y, g, at, stripes) {
  const room = g.pitch - (g.pitch >= 20 ? 6 : 3);
  for (const span of row.spans) {
    const kind = KINDS[span.kind];
    if (!kind) continue;
    const x = at(span.start);
    const width = Math.max(1, at(span.end) - x - 0.6);
    const height = Math.max(2, room * kind.tall);
    const high = y + (g.pitch - height) / 2;
    c.fillStyle = colour(kind.colour);
    c.fillRect(x, high, width, height);
    if (kind.striped) {
      c.fillStyle = stripes;
      c.fillRect(x, high, width, height);
    }
  }
}

function drawAxis(g, at) {
  const c = fit(byId("lanes-axis"), g.width, AXIS);
  c.clearRect(0, 0, g.width, AXIS);
  c.font = `12px ${fontFamily()}`;
  c.textBaseline = "middle";
  c.fillStyle = colour("--muted");
  let free = 0;
  for (const { step, at: moment } of shown.begins) {
    const label = `step ${count(step)}`;
    const x = at(moment);
    const width = c.measureText(label).width;
    if (x < free || x + width > g.width) continue;
    c.fillText(label, x + 3, 9);
    free = x + width + 18;
  }
  const length = shown.end - shown.start;
  c.font = `11px ${fontFamily()}`;
  for (const mark of marks(length, (g.right - g.left) / 90)) {
    const x = Math.round(at(shown.start + mark));
    c.fillRect(x, AXIS - 5, 1, 5);
    const label = mark === 0 ? "0" : brief(mark);
    if (x + c.measureText(label).width < g.width) c.fillText(label, x + 3, AXIS - 9);
  }
}

/** Light stripes to lay over a colour. */
function pattern(c) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const t = tile.getContext("2d");
  t.strokeStyle = colour("--surface");
  t.lineWidth = 1.6;
  for (const shift of [-6, 0, 6]) {
    t.moveTo(shift, 6);
    t.lineTo(shift + 6, 0);
  }
  t.stroke();
  return c.createPattern(tile, "repeat");
}

function point(event) {
  const tip = byId("lanes-tip");
  const was = pointed?.row;
  pointed = event && shown ? find(event) : null;
  if (pointed?.row !== was) schedule();
  tip.hidden = !pointed;
  if (!pointed) return;
  const { row, span } = pointed;
  const worker = shown.rows[row];
  tip.replaceChildren(make("strong", {}, worker.name), span
    ? `${KINDS[span.kind]?.label ?? span.kind}: ${brief(span.end - span.start)}\nstep ${count(span.step)}, ${brief(span.start - begin(span.step))} after it began`
    : `A step: computes ${brief(worker.computed)}, sends ${brief(worker.sent)}, waits ${brief(worker.waited)}`);
  const panel = byId("lanes").getBoundingClientRect();
  const left = Math.min(event.clientX - panel.left + 14, panel.width - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${event.clientY - panel.top + 18}px`;
}

function find(event) {
  const g = geometry();
  const box = byId("lanes-canvas").getBoundingClientRect();
  const row = Math.floor((event.clientY - box.top + g.box.scrollTop - 2) / g.pitch);
  if (row < 0 || row >= shown.rows.length) return null;
  const scale = (shown.end - shown.start) / (g.right - g.left);
  const moment = shown.start + (event.clientX - box.left - g.left) * scale;
  return { row, span: event.clientX - box.left < g.left ? null : spanAt(shown.rows[row].spans, moment, 2 * scale) };
}

function begin(step) {
  return shown.begins.find((one) => one.step === step)?.at ?? shown.start;
}

function cut(c, label, width) {
  if (c.measureText(label).width <= width) return label;
  let end = label.length;
  while (end > 1 && c.measureText(`${label.slice(0, end)}…`).width > width) end -= 1;
  return `${label.slice(0, end)}…`;
}

function fontFamily() {
  return getComputedStyle(document.body).fontFamily;
}
