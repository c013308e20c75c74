// The square to draw a digit in, and the network's answer to it. White ink on black, as the network's own data is;
// the page sends what was drawn as a PNG a moment after each change, one question at a time, the newest next.

import { markOld, showAnswer, showTrouble } from "./answer.js";
import { byId, make, text } from "./dom.js";
import { count } from "./format.js";
import { DIGITS } from "./strokes.js";

const SIZE = 280;
const PEN = 22;
const MARGIN = 40;
const STRIDE = 7;
const PAUSE = 150;
const FILE_LIMIT = 4 * 1024 * 1024;

const ink = document.createElement("canvas");
ink.width = ink.height = SIZE;
const pen = { x: SIZE / 2, y: SIZE / 2, down: false, keys: false };
let inked = false;
let chosen = null; // a picture that was chosen, sent as it is
let timer = null;
let asking = false;
let again = false;
let checkpoint = null;
let drawing = 0; // counts what was drawn, so that an answer to an earlier drawing is known as one

export function startDrawing() {
  const canvas = byId("draw-canvas");
  canvas.addEventListener("pointerdown", press);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", () => { pen.down = false; });
  canvas.addEventListener("pointercancel", () => { pen.down = false; });
  canvas.addEventListener("keydown", steer);
  canvas.addEventListener("blur", () => {
    pen.keys = false;
    pen.down = false;
    paint();
  });
  byId("draw-clear").addEventListener("click", clear);
  byId("draw-file").addEventListener("change", choose);
  byId("draw-examples").append(...DIGITS.map((strokes, digit) => {
    const button = make("button", { type: "button", "aria-label": `Write a ${digit}` }, String(digit));
    button.addEventListener("click", () => write(strokes));
    return button;
  }));
  byId("draw-number").append(...DIGITS.map((_, digit) => {
    const input = make("input", { type: "radio", name: "number", value: digit, ...(digit === 5 ? { checked: "" } : {}) });
    input.addEventListener("change", soon);
    return make("label", {}, input, make("span", {}, String(digit)));
  }));
  clear();
}

/** Tells which checkpoint answers; a newer one is asked again about what is drawn. */
export function showCheckpoint(state) {
  const step = state.checkpoint?.step ?? null;
  text(byId("draw-from"), step === null ? "There is no checkpoint yet to answer from." : `answers from the checkpoint of step ${count(step)}`);
  if (step === checkpoint) return;
  checkpoint = step;
  if (inked) refresh();
}

function press(event) {
  if (event.button !== 0) return;
  event.currentTarget.setPointerCapture(event.pointerId);
  const at = position(event);
  Object.assign(pen, { ...at, down: true, keys: false });
  line(at, at);
}

function move(event) {
  if (!pen.down || pen.keys) return;
  // A fast hand leaves more points than events.
  for (const one of event.getCoalescedEvents?.() ?? [event]) {
    const at = position(one);
    line(pen, at);
    Object.assign(pen, at);
  }
}

function position(event) {
  const box = byId("draw-canvas").getBoundingClientRect();
  return { x: ((event.clientX - box.left) / box.width) * SIZE, y: ((event.clientY - box.top) / box.height) * SIZE };
}

function steer(event) {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (way) {
    const to = { x: hold(pen.x + way[0] * STRIDE), y: hold(pen.y + way[1] * STRIDE) };
    if (pen.down && pen.keys) line(pen, to);
    Object.assign(pen, to, { keys: true });
  } else if (event.key === " ") {
    pen.down = !(pen.down && pen.keys);
    pen.keys = true;
    if (pen.down) line(pen, pen);
  } else if (event.key === "Delete" || event.key === "Backspace") clear();
  else return;
  event.preventDefault();
  paint();
}

function hold(value) {
  return Math.max(PEN / 2, Math.min(SIZE - PEN / 2, value));
}

function line(from, to) {
  if (chosen) clear();
  const c = ink.getContext("2d");
  c.strokeStyle = "#fff";
  c.lineWidth = PEN;
  c.lineCap = c.lineJoin = "round";
  c.beginPath();
  c.moveTo(from.x, from.y);
  c.lineTo(to.x, to.y);
  c.stroke();
  inked = true;
  paint();
  soon();
}

function write(strokes) {
  clear();
  for (const points of strokes) {
    const scaled = points.map(([x, y]) => ({ x: (x / 100) * SIZE, y: (y / 100) * SIZE }));
    scaled.slice(1).forEach((to, i) => line(scaled[i], to));
  }
}

function clear() {
  const c = ink.getContext("2d");
  c.fillStyle = "#000";
  c.fillRect(0, 0, SIZE, SIZE);
  inked = false;
  chosen = null;
  drawing += 1;
  clearTimeout(timer);
  byId("draw-file").value = "";
  paint();
  showAnswer(null);
  markOld(false);
}

async function choose(event) {
  const file = event.target.files[0];
  if (!file) return;
  clear();
  if (file.size > FILE_LIMIT) {
    showTrouble("That picture is larger than 4 MiB. Choose a smaller one, or cut it down to the digit.");
    return;
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    showTrouble(`${file.name} cannot be read as a picture. Choose a PNG or a JPEG.`);
    return;
  }
  const scale = Math.min(SIZE / bitmap.width, SIZE / bitmap.height);
  const [w, h] = [bitmap.width * scale, bitmap.height * scale];
  ink.getContext("2d").drawImage(bitmap, (SIZE - w) / 2, (SIZE - h) / 2, w, h);
  chosen = file;
  inked = true;
  paint();
  soon();
}

function paint() {
  const c = byId("draw-canvas").getContext("2d");
  c.drawImage(ink, 0, 0);
  if (pen.keys) {
    c.strokeStyle = pen.down ? "#ffb347" : "#6fb4ff";
    c.lineWidth = 2.5;
    c.beginPath();
    c.arc(pen.x, pen.y, PEN / 2, 0, 2 * Math.PI);
    c.stroke();
  }
}

function soon() {
  clearTimeout(timer);
  if (!inked) return;
  drawing += 1;
  markOld(true);
  timer = setTimeout(ask, PAUSE);
}

/** A newer checkpoint may answer otherwise, but what is shown is no older than the drawing: checkpoints may come faster than answers. */
function refresh() {
  if (asking) again = true;
  else {
    clearTimeout(timer);
    timer = setTimeout(ask, PAUSE);
  }
}

/** What was drawn, with black around it: a picture's border tells paper from ink, and a digit may reach to the edge of its square. */
function picture() {
  const paper = document.createElement("canvas");
  paper.width = paper.height = SIZE + 2 * MARGIN;
  const c = paper.getContext("2d");
  c.fillStyle = "#000";
  c.fillRect(0, 0, paper.width, paper.height);
  c.drawImage(ink, MARGIN, MARGIN);
  return new Promise((done) => paper.toBlob(done, "image/png"));
}

/** Asks once; what changes meanwhile is asked about afterwards, so that questions never pile up. */
async function ask() {
  if (checkpoint === null) {
    showTrouble("There is no checkpoint yet. The answer comes with the first one.");
    markOld(false);
    return;
  }
  if (asking) {
    again = true;
    return;
  }
  asking = true;
  const asked = drawing;
  try {
    const body = chosen ?? await picture();
    const number = document.querySelector("#draw-number input:checked").value;
    const response = await fetch(`api/predict?number=${number}`, { method: "POST", headers: { "content-type": body.type }, body });
    const type = response.headers.get("content-type") ?? "";
    // What is refused before it reaches the network is refused in plain words; a proxy may answer with a page of its own.
    const answer = type.startsWith("application/json") ? await response.json()
      : type.startsWith("text/plain") ? { error: (await response.text()).trim() } : {};
    if (!inked) return;
    if (response.ok) showAnswer({ ...answer, number: Number(number) });
    else showTrouble(answer.error ?? `The coordinator answered ${response.status}.`);
  } catch {
    showTrouble("The coordinator does not answer.");
  } finally {
    asking = false;
    if (drawing === asked) markOld(false);
    if (again) {
      again = false;
      if (drawing === asked) refresh();
      else soon();
    }
  }
}
