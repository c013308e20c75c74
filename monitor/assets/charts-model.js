// Which charts a run has, by its schema of losses and metrics. Pure.

import { number, ratio } from "./format.js";

const value = (places) => (v) => number(v, places);

/** The looks of a chart's lines: a dash tells lines apart where colours do not. */
const LOOKS = [
  { colour: "--ink", width: 2.2, dash: [] },
  { colour: "--compute", width: 1.6, dash: [] },
  { colour: "--send", width: 1.6, dash: [7, 3] },
  { colour: "--apply", width: 1.6, dash: [2, 3] },
  { colour: "--audit", width: 1.6, dash: [11, 3, 2, 3] },
  { colour: "--takeover", width: 1.6, dash: [1, 3] },
  { colour: "--test", width: 1.6, dash: [14, 4] },
  { colour: "--save", width: 1.6, dash: [5, 2, 1, 2] },
];

const line = (key, label, look) => ({ key, label, ...LOOKS[look % LOOKS.length] });
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

/** The charts of a run that measures this: each its element's prefix and its lines. */
export function chartsOf(schema) {
  const losses = schema.losses.length > 1 ? schema.losses : [];
  const ratios = schema.metrics.filter((metric) => metric.kind === "ratio");
  // The metric that picks the best checkpoint stands out, as the total loss does.
  const others = ratios.filter((metric) => metric.name !== schema.best);
  const best = ratios.filter((metric) => metric.name === schema.best);
  const tested = [...best, ...others];
  return [
    {
      id: "loss", log: "loss-log", title: losses.length ? "Loss by part" : "Loss", value: value(3),
      lines: [line("loss/total", "Total", 0), ...losses.map((part, i) => line(`loss/${part.name}`, capital(part.label), i + 1))],
    },
    {
      id: "tests", title: "Test set", points: true,
      ...(tested.length
        ? { ratios: true, value: ratio, of: (test, key) => test.metrics[key], lines: tested.map((metric, i) => line(metric.name, capital(metric.label), i + (best.length ? 0 : 1))) }
        : { value: value(3), of: (test) => test.loss, lines: [line("loss", "Loss", 0)] }),
    },
    { id: "rate", title: "Samples a second", value: value(4), zero: true, lines: [line("samples_per_second", "Samples a second", 1)] },
    { id: "norm", title: "Gradient norm", value: value(3), lines: [{ ...line("gradient_norm", "Norm", 4), dash: [] }] },
    { id: "lr", title: "Learning rate", value: value(3), zero: true, lines: [{ ...line("learning_rate", "Rate", 3), dash: [] }] },
  ];
}
