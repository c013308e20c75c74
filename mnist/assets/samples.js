// Digits of the test set with their truths and, from the first checkpoint on, the network's answers.

import { byId, text } from "./dom.js";
import { count } from "./format.js";

/** The coordinator computes these pictures' answers; it is not asked again sooner than this, nor by a page out of sight. */
const PAUSE = 10_000;

let wanted;
let shown;
let asked = -Infinity;
/** Whether a picture is on its way: a slow one is waited for, as asking for the next one would abort it. */
let loading = false;
let visible = false;

export function startSamples() {
  new IntersectionObserver((entries) => {
    visible = entries.at(-1).isIntersecting;
    load();
  }, { rootMargin: "300px" }).observe(byId("samples"));
  const image = byId("samples-image");
  image.addEventListener("load", () => {
    loading = false;
    image.hidden = false;
    byId("samples-empty").hidden = true;
    image.alt = shown === "none"
      ? "Handwritten digits of the test set, each with its label, its number, and their sum and difference."
      : "Handwritten digits of the test set, each with its label, number, sum and difference, and beside them the network's answers; the wrong ones are marked.";
  });
  image.addEventListener("error", () => {
    loading = false;
    shown = undefined; // it is asked for again after the pause
    image.hidden = true;
    byId("samples-empty").hidden = false;
    text(byId("samples-empty"), "The coordinator gave no pictures of this data.");
  });
  setInterval(load, 1000);
}

export function showSamples(state) {
  const step = state.checkpoint?.step ?? null;
  text(byId("samples-sub"), step === null ? "the truth; answers come with the first checkpoint" : `the truth, and the answers of step ${count(step)}`);
  wanted = step === null ? "none" : String(step);
  load();
}

function load() {
  if (loading || wanted === undefined || wanted === shown || !visible || document.hidden || performance.now() - asked < PAUSE) return;
  loading = true;
  shown = wanted;
  asked = performance.now();
  byId("samples-image").src = `api/samples.png?step=${wanted}`;
}
