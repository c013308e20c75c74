// Where the seconds went: one bar as long as the wall time, its parts in seconds and per cent, and who was waited for.

import { byId, make, reconcile, text } from "./dom.js";
import { duration, percent } from "./format.js";
import { PARTS } from "./palette.js";

const WAITED_SHOWN = 6;

export function showSeconds(state) {
  const { wall = 0, parts = [] } = state.seconds ?? {};
  const of = (part) => (wall > 0 ? part.seconds / wall : 0);
  text(byId("time-wall"), wall > 0 ? `${duration(wall)} of wall time since this start` : "");

  const bar = byId("time-bar");
  bar.setAttribute("aria-label", wall > 0
    ? `Of ${duration(wall)}: ${parts.filter((part) => of(part) >= 0.001).map((part) => `${name(part)} ${percent(of(part))}`).join(", ")}`
    : "No time has been counted yet");
  reconcile(bar, parts.filter((part) => part.seconds > 0), (part) => part.name,
    (part) => make("div", { class: `part-${part.name}` }),
    (node, part) => {
      // The gaps between the parts come out of their widths, so that all of them together fill the bar.
      node.style.flex = `${of(part)} ${of(part)} 0px`;
      node.title = `${name(part)}: ${duration(part.seconds)}, ${percent(of(part))}`;
    });

  reconcile(byId("time-legend"), parts, (part) => part.name, makeRow, (node, part) => {
    const [, label, seconds, share] = node.children;
    text(label, name(part));
    text(seconds, duration(part.seconds));
    text(share, percent(of(part)));
    node.className = part.seconds > 0 ? "" : "zero";
  });

  showWaited(state.waited_for);
}

function makeRow(part) {
  const row = make("li", {}, make("i", { class: `part-${part.name}` }), make("span"), make("b"), make("span"));
  const bar = byId("time-bar");
  const light = (on) => {
    bar.classList.toggle("dim", on);
    for (const node of bar.children) node.classList.toggle("lit", on && node.dataset.key === part.name);
  };
  row.addEventListener("pointerenter", () => light(true));
  row.addEventListener("pointerleave", () => light(false));
  return row;
}

function showWaited(waited) {
  const sorted = [...waited].sort((a, b) => b.seconds - a.seconds).filter((one) => one.seconds > 0);
  const most = sorted[0]?.seconds ?? 0;
  const shown = sorted.slice(0, WAITED_SHOWN);
  if (!shown.length) shown.push({ name: "nobody so far", seconds: null });
  reconcile(byId("waited"), shown, (one) => one.name,
    () => make("li", {}, make("span"), make("div", { class: "meter" }, make("div")), make("b")),
    (node, one) => {
      const [label, meter, seconds] = node.children;
      text(label, one.name);
      label.title = one.name;
      meter.hidden = one.seconds === null;
      meter.firstElementChild.style.width = `${most > 0 ? (one.seconds / most) * 100 : 0}%`;
      text(seconds, one.seconds === null ? "" : duration(one.seconds));
    });
}

function name(part) {
  return PARTS[part.name] ?? part.name;
}
