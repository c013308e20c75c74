// What happened, newest first, by kind and by word. What was lost is also read out to those who do not see the page.

import { byId, make, reconcile, text } from "./dom.js";
import { clock, count } from "./format.js";

const PLAIN = "\ufe0e"; // asks for the sign as text, not as a coloured picture

const KINDS = {
  start: { label: "Start", icon: `▶${PLAIN}` },
  join: { label: "Joined", icon: "+", tone: "good" },
  lost: { label: "Lost", icon: "×", tone: "bad" },
  takeover: { label: "Taken over", icon: "⇄", tone: "warn" },
  late: { label: "Late", icon: "◔", tone: "warn" },
  reduction: { label: "Reduction", icon: "Σ" },
  abort: { label: "Step again", icon: "↺", tone: "bad" },
  audit: { label: "Audit", icon: "◎" },
  checkpoint: { label: "Checkpoint", icon: "▣" },
  test: { label: "Test", icon: "✓", tone: "good" },
  adopt: { label: "Adopted", icon: "↻", tone: "good" },
  warning: { label: "Warning", icon: "!", tone: "warn" },
  end: { label: "End", icon: `■${PLAIN}` },
};
const SPOKEN = new Set(["lost", "abort", "warning", "end"]);

const off = new Set();
let latest = null;
let spoken = null; // the incarnation whose entries are read out, and the newest of those

export function startLog() {
  byId("log-find").addEventListener("input", () => showLog(latest));
}

export function showLog(state) {
  latest = state;
  if (!state) return;
  showKinds(state.log);
  const words = byId("log-find").value.trim().toLowerCase();
  const entries = state.log.filter((entry) => !off.has(entry.kind) && matches(entry, words)).reverse();
  reconcile(byId("log"), entries, (entry) => `${state.incarnation}/${entry.id}`, makeEntry, () => {});
  byId("log-empty").hidden = entries.length > 0;
  text(byId("log-empty"), state.log.length ? "No event matches." : "Nothing has happened yet.");
  speak(state);
}

function matches(entry, words) {
  if (!words) return true;
  const all = `${KINDS[entry.kind]?.label ?? ""} ${entry.kind} ${entry.worker ?? ""} ${entry.step ?? ""} ${entry.text}`.toLowerCase();
  return words.split(/\s+/).every((word) => all.includes(word));
}

function makeEntry(entry) {
  const kind = KINDS[entry.kind] ?? { label: entry.kind, icon: "·" };
  // What the journal of an earlier start tells may have no time.
  const at = typeof entry.unix === "number" ? new Date(entry.unix * 1000) : null;
  return make("li", { class: kind.tone },
    make("span", { class: "icon", "aria-hidden": "true" }, kind.icon),
    make("time", at ? { datetime: at.toISOString(), title: at.toLocaleString() } : {}, clock(entry.unix)),
    make("span", { class: "at" }, entry.step === null || entry.step === undefined ? "" : `step ${count(entry.step)}`),
    make("span", { class: "kind" }, kind.label),
    make("p", {}, entry.text));
}

/** A button for each kind there has been, with how often; pressed while its entries are shown. */
function showKinds(log) {
  const counts = new Map();
  for (const entry of log) counts.set(entry.kind, (counts.get(entry.kind) ?? 0) + 1);
  const kinds = [...new Set([...Object.keys(KINDS), ...counts.keys()])].filter((kind) => counts.has(kind));
  reconcile(byId("log-kinds"), kinds, (kind) => kind, (kind) => {
    const button = make("button", { type: "button" });
    button.addEventListener("click", () => {
      if (!off.delete(kind)) off.add(kind);
      showLog(latest);
    });
    return button;
  }, (button, kind) => {
    text(button, `${KINDS[kind]?.label ?? kind} ${count(counts.get(kind))}`);
    button.setAttribute("aria-pressed", String(!off.has(kind)));
  });
}

function speak(state) {
  const newest = state.log.at(-1)?.id ?? 0;
  // The page does not read out what was there before it, nor, after a restart, what the journal tells again.
  if (spoken?.incarnation !== state.incarnation) spoken = { incarnation: state.incarnation, id: newest };
  const fresh = state.log.filter((entry) => SPOKEN.has(entry.kind) && entry.id > spoken.id);
  spoken.id = newest;
  if (fresh.length) text(byId("log-live"), fresh.slice(-2).map((entry) => entry.text).join(". "));
}
