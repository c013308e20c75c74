// What the page knows of the run: one State, kept current by Updates. Pure, and bounded: however long the run
// and however many the workers, no list here grows without end.

export const LOG_LIMIT = 300;
export const LANE_SECONDS = 20;
export const LANE_STEPS = 64;
/** The server re-buckets at 1000 points; this holds for one that never does. */
const SERIES_LIMIT = 4000;

const LISTS = new Set(["series", "points", "lanes", "log", "tests"]);

/** A State as the server sent it, with every list present. */
export function whole(sent) {
  const state = { ...sent };
  state.series = columns(sent.series);
  state.tests = list(sent.tests);
  state.workers = list(sent.workers);
  state.lanes = prune(list(sent.lanes), sent.lanes_now ?? sent.now);
  state.log = list(sent.log).slice(-LOG_LIMIT);
  state.waited_for = list(sent.waited_for);
  return state;
}

/** Brings a state up to date in place. Says which parts changed, as a set of the update's own names. */
export function merge(state, update) {
  const changed = new Set(Object.keys(update));
  for (const [key, value] of Object.entries(update)) {
    if (!LISTS.has(key)) state[key] = value;
  }
  if (update.series) state.series = columns(update.series);
  if (update.points) append(state.series, columns(update.points));
  if (update.lanes) state.lanes = prune(state.lanes.concat(update.lanes), state.lanes_now ?? state.now);
  if (update.log) {
    const last = state.log.at(-1)?.id ?? -Infinity;
    state.log = state.log.concat(update.log.filter((entry) => entry.id > last)).slice(-LOG_LIMIT);
  }
  if (update.tests) {
    const fresh = new Set(update.tests.map((test) => test.step));
    state.tests = state.tests.filter((test) => !fresh.has(test.step)).concat(update.tests);
  }
  return changed;
}

/** Keeps the lanes of the last steps and seconds, as the server does. */
function prune(lanes, now) {
  const newest = lanes.reduce((most, lane) => Math.max(most, lane.step), -Infinity);
  return lanes.filter((lane) => {
    const end = lane.spans?.at(-1)?.end ?? 0;
    return lane.step > newest - LANE_STEPS && (!now || end > now - LANE_SECONDS);
  });
}

function columns(sent) {
  return Object.fromEntries(Object.entries({ step: [], ...sent }).map(([name, column]) => [name, column.slice()]));
}

/** Appends points; one whose step is already there takes its place, since a bucket grows until it is full. */
function append(series, points) {
  for (const name of Object.keys(points)) series[name] ??= new Array(series.step.length).fill(null);
  const names = Object.keys(series);
  points.step.forEach((step, i) => {
    while (series.step.length && series.step.at(-1) >= step) {
      for (const name of names) series[name].pop();
    }
    for (const name of names) series[name].push(points[name]?.[i] ?? null);
  });
  const excess = series.step.length - SERIES_LIMIT;
  if (excess > 0) for (const name of names) series[name].splice(0, excess);
}

function list(value) {
  return Array.isArray(value) ? value.slice() : [];
}
