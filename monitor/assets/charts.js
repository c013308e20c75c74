// The curves: uPlot, with legends of our own that show values where the cursor is, by mouse or by arrow keys.

import { chartsOf } from "./charts-model.js";
import { byId, glyph, make, text } from "./dom.js";
import { count, number, percent } from "./format.js";
import { colour } from "./palette.js";

const built = new Map();
let latest = null;
let drawn = null; // the schema that the charts are of

/** Makes the charts of a run that measures this, if they are not there yet; they fill with `showCharts`. */
export function startCharts(schema) {
  if (drawn === JSON.stringify(schema)) return;
  // Another run at this address may measure something else, and a chart is made for its lines.
  if (drawn !== null) return location.reload();
  drawn = JSON.stringify(schema);
  for (const chart of chartsOf(schema)) {
    text(byId(`${chart.id}-title`), chart.title);
    const box = byId(`${chart.id}-chart`);
    const entry = { chart, box, plot: null, legend: makeLegend(chart) };
    built.set(chart.id, entry);
    box.append(make("p", { class: "empty" }, chart.points ? "The first test pass is still to come." : "No step has been committed yet."));
    makeReadable(entry);
    new ResizeObserver(() => {
      if (entry.plot) entry.plot.setSize({ width: box.clientWidth, height: box.clientHeight });
    }).observe(box);
    if (chart.log) byId(chart.log).addEventListener("change", () => rebuild(entry));
  }
  document.addEventListener("schemechange", () => {
    for (const entry of built.values()) rebuild(entry);
  });
}

/** Shows a state's curves. */
export function showCharts(state) {
  latest = state;
  for (const entry of built.values()) show(entry);
}

function show(entry) {
  const data = dataOf(entry);
  if (data[0].length === 0) {
    // A run that started over has nothing to show; a curve of another run must not stay.
    if (entry.plot) rebuild(entry);
    return;
  }
  if (entry.plot) entry.plot.setData(data);
  else {
    entry.box.querySelector(".empty").hidden = true;
    entry.plot = new window.uPlot(options(entry), data, entry.box);
  }
  readOut(entry);
}

function rebuild(entry) {
  entry.plot?.destroy();
  entry.plot = null;
  entry.box.querySelector(".empty").hidden = false;
  if (latest) show(entry);
}

function dataOf({ chart }) {
  if (!latest) return [[]];
  if (chart.points) return [latest.tests.map((test) => test.step), ...chart.lines.map(({ key }) => latest.tests.map((test) => chart.of(test, key) ?? null))];
  const logarithmic = isLog(chart);
  // Copies: the state's columns grow between two drawings, and a chart's must not.
  return [latest.series.step.slice(), ...chart.lines.map(({ key }) => {
    const column = latest.series[key] ?? latest.series.step.map(() => null);
    // A logarithm has no place for zero, or for what is not a number.
    return logarithmic ? column.map((v) => (v > 0 ? v : null)) : column.slice();
  })];
}

function isLog(chart) {
  return Boolean(chart.log && byId(chart.log).checked);
}

function options(entry) {
  const { chart, box } = entry;
  const axis = { stroke: colour("--muted"), font: '12px ui-sans-serif, system-ui, "Noto Sans", sans-serif', grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  return {
    width: box.clientWidth,
    height: box.clientHeight,
    padding: [8, 22, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: chart.points ? "tests" : "steps" }, drag: { setScale: false, x: false, y: false }, points: { size: 7 } },
    scales: { x: { time: false }, y: { distr: isLog(chart) ? 3 : 1, range: rangeOf(chart) } },
    axes: [
      { ...axis, size: 28, gap: 6, space: 70, values: (_, ticks) => ticks.map((v) => (Number.isInteger(v) ? count(v) : "")) },
      { ...axis, size: 54, gap: 6, space: 34, values: (_, ticks) => ticks.map((v) => tick(chart, v)) },
    ],
    series: [{}, ...chart.lines.map((line) => ({
      label: line.label,
      stroke: colour(line.colour),
      width: line.width,
      dash: line.dash,
      spanGaps: true,
      points: chart.points ? { show: true, size: 7, fill: colour("--surface"), stroke: colour(line.colour), width: 1.6 } : { show: false },
    }))],
    hooks: { setCursor: [() => readOut(entry)] },
  };
}

function rangeOf(chart) {
  if (isLog(chart)) return undefined;
  return (_, low, high) => {
    if (low === null || high === null) return [0, 1];
    // Shares of right answers get close to 1 and must not lose their differences there.
    if (chart.ratios && low >= 0 && high <= 1) return [Math.max(0, low - Math.max(0.004, (1 - low) * 0.12)), Math.min(1, high + 0.004) || 1];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [chart.zero ? 0 : Math.max(0, low - room), high + room];
  };
}

function tick(chart, v) {
  if (v === null || v === undefined) return "";
  if (chart.ratios && v >= 0 && v <= 1) return percent(v, v > 0.9 && v < 1 && v * 100 % 1 > 1e-6 ? 1 : 0);
  if (isLog(chart) && !/^1/.test(v.toExponential())) return "";
  return Math.abs(v) >= 10000 ? `${number(v / 1000, 3)}k` : number(v, 2).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

function makeLegend(chart) {
  const at = make("span");
  const values = chart.lines.map(() => make("b"));
  const rows = chart.lines.map((line, i) => make("li", {},
    glyph("M0 5H24", [24, 10], { stroke: `var(${line.colour})`, "stroke-width": line.width + 0.6, "stroke-dasharray": line.dash.join(" ") || "none" }),
    chart.lines.length > 1 ? line.label : null, values[i]));
  byId(`${chart.id}-legend`).replaceChildren(...rows, make("li", {}, at));
  return { at, values };
}

/** The values under the cursor, or the newest, into the legend and into what a screen reader is told. */
function readOut({ chart, plot, legend, box }) {
  if (!plot) return;
  const [steps, ...columns] = plot.data;
  const pointed = plot.cursor.idx;
  const i = pointed ?? steps.length - 1;
  const said = chart.lines.map((line, n) => {
    const shown = chart.value(columns[n][i]);
    text(legend.values[n], shown);
    return `${line.label} ${shown}`;
  });
  text(legend.at, pointed === null || pointed === undefined ? "" : `at step ${count(steps[i])}`);
  box.setAttribute("aria-valuemin", steps[0]);
  box.setAttribute("aria-valuemax", steps.at(-1));
  box.setAttribute("aria-valuenow", steps[i]);
  box.setAttribute("aria-valuetext", `Step ${steps[i]}: ${said.join(", ")}`);
}

/** Left and right move the cursor, Home and End go to the ends: a chart is a slider over its steps. */
function makeReadable(entry) {
  const { box, chart } = entry;
  for (const [name, v] of Object.entries({ tabindex: "0", role: "slider", "aria-label": `${chart.title}, over steps`, "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0", "aria-valuetext": "Nothing yet" })) {
    box.setAttribute(name, v);
  }
  box.addEventListener("keydown", (event) => {
    const { plot } = entry;
    if (!plot) return;
    const last = plot.data[0].length - 1;
    const at = plot.cursor.idx ?? last;
    const stride = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
    const to = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const left = plot.valToPos(plot.data[0][Math.max(0, Math.min(last, to))], "x");
    plot.setCursor({ left, top: plot.over.clientHeight / 2 });
  });
  box.addEventListener("blur", () => entry.plot?.setCursor({ left: -10, top: -10 }));
}
