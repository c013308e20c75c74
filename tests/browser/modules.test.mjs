// The page's modules that decide something, by themselves: numbers, the state and its limits, the lanes.

import assert from "node:assert/strict";
import { test } from "node:test";
import { chartsOf } from "../../monitor/assets/charts-model.js";
import { brief, count, duration, number, percent, ratio } from "../../monitor/assets/format.js";
import { arrange, marks, slowest, spanAt } from "../../monitor/assets/lanes-model.js";
import { LOG_LIMIT, merge, whole } from "../../monitor/assets/state.js";

const thin = (text) => text.replaceAll("\u202f", " ");

test("numbers read as people write them, and what is missing is a dash", () => {
  assert.equal(thin(count(6402764)), "6 402 764");
  assert.equal(number(0.30103, 3), "0.301");
  assert.equal(number(110.6, 3), "111");
  assert.equal(number(0.00000123, 3), "1.23e-6");
  assert.equal(thin(percent(0.98765, 2)), "98.77 %");
  for (const show of [count, number, percent, ratio, duration, brief]) {
    for (const nothing of [null, undefined, NaN, Infinity]) assert.equal(show(nothing), "–");
  }
});

test("a length of time is told in the two units that matter, and never as 60 of one", () => {
  const said = [0.0421, 3.21, 59.4, 59.7, 3599.7, 3600, 86399, 90000].map(duration);
  assert.deepEqual(said, ["42 ms", "3.2 s", "59 s", "1 min 00 s", "1 h 00 min", "1 h 00 min", "1 d 00 h", "1 d 01 h"]);
  assert.deepEqual([0.000085, 0.0042, 0.142, 1.926].map(brief), ["85 µs", "4.2 ms", "142 ms", "1.93 s"]);
});

const points = (...steps) => ({ step: steps, "loss/total": steps.map((step) => 1 / step) });

test("points are appended, a bucket that grew takes its place, and a new series replaces all", () => {
  const state = whole({ series: points(1, 2, 3) });
  merge(state, { points: points(4) });
  merge(state, { points: points(4, 5) });
  assert.deepEqual(state.series.step, [1, 2, 3, 4, 5]);
  assert.equal(state.series["loss/total"].length, 5);
  merge(state, { points: { ...points(6), gradient_norm: [7] } });
  assert.deepEqual(state.series.gradient_norm, [null, null, null, null, null, 7], "a column that was not sent has its gaps");
  merge(state, { series: points(2, 4), points: points(6) });
  assert.deepEqual(state.series.step, [2, 4, 6]);
});

test("a state is sent whole to no one else: merging leaves what was sent as it was", () => {
  const sent = { series: points(1), log: [{ id: 1 }], lanes: [] };
  merge(whole(sent), { points: points(2), log: [{ id: 2 }] });
  assert.deepEqual(sent, { series: points(1), log: [{ id: 1 }], lanes: [] });
});

test("no list grows with the run", () => {
  const state = whole({ now: 0 });
  for (let step = 1; step <= 20_000; step += 1) {
    const spans = [{ kind: "compute", start: step, end: step + 1 }];
    merge(state, { now: step + 1, points: points(step), log: [{ id: step }], lanes: [{ session: "a", step, spans }] });
  }
  assert.equal(state.log.length, LOG_LIMIT);
  assert.equal(state.log.at(-1).id, 20_000);
  assert.ok(state.series.step.length <= 4000, `${state.series.step.length} points`);
  assert.ok(state.lanes.length <= 64, `${state.lanes.length} lanes`);
});

test("an entry or a test that comes twice is there once", () => {
  const state = whole({ log: [{ id: 7 }], tests: [{ step: 10, loss: 1 }] });
  merge(state, { log: [{ id: 7 }, { id: 8 }], tests: [{ step: 10, loss: 2 }, { step: 20, loss: 1 }] });
  assert.deepEqual(state.log.map((entry) => entry.id), [7, 8]);
  assert.deepEqual(state.tests, [{ step: 10, loss: 2 }, { step: 20, loss: 1 }]);
});

/** A step of workers that compute for so long and then wait for the slowest of them. */
function step(number, at, computing) {
  const end = at + Math.max(...computing);
  return computing.map((time, i) => ({
    session: String(i),
    step: number,
    spans: [{ kind: "compute", start: at, end: at + time }, { kind: "wait", start: at + time, end }],
  }));
}

test("the lanes show the last steps, the slow one first, and say who it is", () => {
  const workers = ["w2", "w10", "w1"].map((name, i) => ({ session: String(i), name, state: "working" }));
  const lanes = [...step(1, 0, [1, 1, 9]), ...step(2, 10, [1, 3, 1]), ...step(3, 14, [1, 3, 1])];
  const shown = arrange({ workers, lanes }, 2, "slow");
  assert.deepEqual(shown.rows.map((row) => row.name), ["w10", "w1", "w2"]);
  assert.deepEqual([shown.start, shown.end], [10, 17]);
  assert.deepEqual(shown.begins, [{ step: 2, at: 10 }, { step: 3, at: 14 }]);
  assert.equal(shown.slow.one.name, "w10");
  assert.equal(shown.slow.middle, 1);
  assert.equal(shown.rows[1].waited, 2);
  assert.deepEqual(arrange({ workers, lanes }, 2, "name").rows.map((row) => row.name), ["w1", "w2", "w10"]);
});

test("nothing to show is shown as nothing", () => {
  const shown = arrange({ workers: [{ session: "0", name: "a", state: "ready" }], lanes: [] }, 4, "slow");
  assert.deepEqual([shown.rows.length, shown.start, shown.end, shown.slow], [1, 0, 0, null]);
  assert.deepEqual(marks(0, 5), []);
});

test("even workers have no slow one among them, and one alone is not slow", () => {
  assert.equal(slowest([1, 1.1, 0.95], (time) => time), null);
  assert.equal(slowest([5], (time) => time), null);
  assert.deepEqual(slowest([1, 2], (time) => time), { one: 2, middle: 1 });
});

test("a moment finds its span, and a narrow one can still be pointed at", () => {
  const spans = [{ kind: "compute", start: 0, end: 5 }, { kind: "send", start: 5, end: 5.01 }];
  assert.equal(spanAt(spans, 2, 0).kind, "compute");
  assert.equal(spanAt(spans, 5.005, 0).kind, "send");
  assert.equal(spanAt(spans, 5.05, 0.1).kind, "send");
  assert.equal(spanAt(spans, 9, 0.1), null);
});

test("an axis has round marks, and not too many", () => {
  assert.deepEqual(marks(1, 5), [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]);
  for (const length of [0.003, 0.7, 19, 4000]) assert.ok(marks(length, 8).length <= 10);
});

test("the charts are those of what the run measures", () => {
  const metric = (name, kind, label = name) => ({ name, label, kind });
  const lines = (schema, id) => chartsOf(schema).find((chart) => chart.id === id).lines.map(({ key, label }) => [key, label]);
  const metrics = [metric("right", "ratio", "digit right"), metric("errors", "histogram"), metric("all", "ratio")];
  const schema = { losses: [{ name: "a", label: "first" }, { name: "b", label: "second" }], metrics, best: "all" };
  assert.deepEqual(lines(schema, "loss"), [["loss/total", "Total"], ["loss/a", "First"], ["loss/b", "Second"]]);
  assert.deepEqual(lines(schema, "tests"), [["all", "All"], ["right", "Digit right"]], "the metric that picks the best comes first");
  const small = { losses: [{ name: "a", label: "a" }], metrics: [], best: null };
  assert.deepEqual(lines(small, "loss"), [["loss/total", "Total"]]);
  const [tests] = chartsOf(small).filter((chart) => chart.id === "tests");
  assert.equal(tests.value(tests.of({ step: 1, loss: 0.25, metrics: {} }, tests.lines[0].key)), "0.250", "without a metric the loss is shown");
});
