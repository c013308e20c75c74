// The head of the page: which run, how far, how fast, how good.

import { byId, make, text } from "./dom.js";
import { count, duration, number, percent, ratio } from "./format.js";

const PHASES = {
  waiting: "Waiting for workers",
  training: "Training",
  testing: "Testing",
  stopping: "Stopping",
  finished: "Finished",
};
const OUTCOMES = { done: "Done", stopped: "Stopped", diverged: "Diverged" };

export function showHead(state) {
  const share = state.steps > 0 ? Math.min(1, state.step / state.steps) : 0;
  text(byId("run"), [name(state), state.program, state.model].filter(Boolean).join(" · "));

  const phase = byId("phase");
  const now = state.outcome ? (OUTCOMES[state.outcome] ?? state.outcome) : (PHASES[state.phase] ?? state.phase ?? "");
  text(phase, now);
  phase.className = `phase ${state.outcome ?? state.phase ?? ""} ${state.outcome === "done" ? "finished" : ""}`;
  text(byId("phase-note"), note(state));

  text(byId("step"), count(state.step));
  text(byId("steps"), count(state.steps));
  const bar = byId("progress");
  bar.setAttribute("aria-valuenow", (share * 100).toFixed(1));
  bar.setAttribute("aria-valuetext", `step ${state.step} of ${state.steps}`);
  bar.firstElementChild.style.width = `${share * 100}%`;
  text(byId("epoch"), `Epoch ${count(state.epoch)} of ${count(state.epochs)} · ${percent(share)} · ${count(state.samples)} samples`);

  document.title = `${state.phase === "finished" ? now : percent(share, 0)} · ${name(state) || "Tally"}`;
  showTiles(state);

  text(byId("foot"), [
    `Tally ${state.version ?? ""}`,
    state.parameters ? `${count(state.parameters)} parameters` : null,
    state.microbatches ? `${state.microbatches} microbatches` : null,
    state.batch_size ? `batches of ${state.batch_size}` : null,
    state.run_dir,
    state.incarnation > 1 ? `start ${state.incarnation} of this run` : null,
  ].filter(Boolean).join(" · "));
}

/** A run goes by the name of its directory; its own is a number that tells it from all others. */
function name(state) {
  return state.run_dir?.split("/").filter(Boolean).at(-1) ?? state.run;
}

function note(state) {
  if (state.phase === "waiting" && state.workers_wanted) {
    return `${present(state)} of ${state.workers_wanted} are here`;
  }
  return state.started && state.now ? `for ${duration(state.now - state.started)}` : "";
}

function present(state) {
  return state.workers.filter((worker) => worker.state !== "gone").length;
}

function showTiles(state) {
  const idle = state.phase === "finished";
  tile("tile-rate", state.samples_per_second ? number(state.samples_per_second, 4) : "–");
  tile("tile-left", idle ? "–" : duration(state.seconds_left));
  tile("tile-loss", number(state.loss?.total, 3));
  const test = state.tests.at(-1);
  // The metric that picks the best checkpoint; without one the loss does.
  const best = state.schema.metrics.find((metric) => metric.name === state.schema.best);
  text(byId("tile-metric-label"), best ? `Test: ${best.label}` : "Test loss");
  tile("tile-metric", best ? ratio(test?.metrics[best.name]) : number(test?.loss, 3), test ? `epoch ${test.epoch}` : "no test yet");
  const gone = state.workers.length - present(state);
  tile("tile-workers", count(present(state)), gone ? `${count(gone)} lost` : `of ${count(state.workers_wanted)}`);
  const saved = state.checkpoint;
  tile("tile-checkpoint", saved ? count(saved.step) : "–", saved && !idle ? `${duration(Math.max(0, state.now - saved.unix))} ago` : "");
}

function tile(id, value, small = "") {
  const node = byId(id);
  if (node.dataset.shown === `${value}|${small}`) return;
  node.dataset.shown = `${value}|${small}`;
  node.replaceChildren(value, small ? make("small", {}, ` ${small}`) : "");
}

/** The configuration, as `run.json` has it, one line a value. */
export function showConfiguration(state) {
  const rows = [...flatten(state.config ?? {})];
  byId("config").replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function* flatten(value, prefix = "") {
  for (const [key, inner] of Object.entries(value)) {
    const name = prefix ? `${prefix} · ${key}` : key;
    if (name === "tensors" && Array.isArray(inner)) yield [name, `${inner.length}, ${count(size(inner))} numbers`];
    else if (inner && typeof inner === "object" && !Array.isArray(inner)) yield* flatten(inner, name);
    else yield [name.replaceAll("_", " "), inner === null ? "–" : typeof inner === "object" ? JSON.stringify(inner) : shortest(inner)];
  }
}

function size(tensors) {
  return tensors.reduce((sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
}

/** A number of single precision without the digits that only its double has: 0.01, not 0.009999999776482582. */
function shortest(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return String(Number(value.toPrecision(7)));
}

/** The pill and the banner that say whether what is shown is live. */
export function showConnection(connection, message = "") {
  const pill = byId("connection");
  text(pill, connection === "lost" ? "no connection" : connection);
  pill.className = `pill ${connection}`;
  const banner = byId("banner");
  if (connection === "lost") {
    banner.className = "banner";
    text(banner, "The coordinator does not answer. What you see is the last it said; this page tries again by itself.");
    banner.hidden = false;
  } else if (message) {
    banner.className = "banner calm";
    text(banner, message);
    banner.hidden = false;
  } else if (!banner.classList.contains("calm")) {
    banner.hidden = true;
  }
}

