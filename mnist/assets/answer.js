// The network's answer to what was drawn: the digit, sum and difference, how sure it is of each digit, and what it saw.

import { byId, make, text } from "./dom.js";
import { number, percent } from "./format.js";

const SIDE = 28;

/** Shows an answer, or with null that there is nothing to answer. */
export function showAnswer(answer) {
  const box = byId("answer");
  if (answer) box.replaceChildren(...sentences(answer));
  else box.replaceChildren(make("p", { class: "empty" }, "Draw a digit, and its answers appear here."));
  showBars(answer);
  showSaw(answer);
}

/** Shows why there is no answer. */
export function showTrouble(message) {
  byId("answer").replaceChildren(make("p", { class: "error" }, message));
  showBars(null);
  showSaw(null);
}

/** Says that what is shown answers an earlier drawing, until the newest is answered. */
export function markOld(old) {
  byId("answer").setAttribute("aria-busy", String(old));
}

function sentences({ digit, confidence, number: with_, sum, difference, sum_answer, difference_answer }) {
  return [
    make("p", { class: "read" }, make("strong", {}, String(digit)), make("span", {}, `read with ${percent(confidence)} confidence`)),
    make("p", { class: "sums" },
      make("span", {}, `${digit} + ${with_} → `, make("b", {}, String(sum_answer)), make("small", {}, ` (${number(sum, 4)})`)),
      make("span", {}, `|${with_} − ${digit}| → `, make("b", {}, String(difference_answer)), make("small", {}, ` (${number(difference, 3)})`))),
  ];
}

function showBars(answer) {
  const list = byId("answer-bars");
  if (!list.children.length) {
    list.append(...Array.from({ length: 10 }, (_, digit) => make("li", {},
      make("span", {}, String(digit)), make("div", { class: "meter" }, make("div")), make("span"))));
  }
  [...list.children].forEach((row, digit) => {
    const share = answer?.probabilities[digit] ?? 0;
    row.className = answer?.digit === digit ? "best" : "";
    row.children[1].firstElementChild.style.width = `${share * 100}%`;
    text(row.children[2], answer ? percent(share) : "");
  });
}

function showSaw(answer) {
  const canvas = byId("answer-saw");
  const c = canvas.getContext("2d");
  const image = c.createImageData(SIDE, SIDE);
  for (let i = 0; i < SIDE * SIDE; i += 1) {
    image.data.fill(answer?.pixels[i] ?? 0, 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  c.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", answer ? `The ${SIDE} by ${SIDE} pixels that were read as ${answer.digit}` : "Nothing yet");
}
