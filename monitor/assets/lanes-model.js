// What the lanes show, worked out from the spans: which stretch of time, in which order, and who is the slow one. Pure.

/** A worker counts as the slow one from this many times the middle one's time on. */
const SLOW = 1.15;

/**
 * The lanes of the last `steps` steps: the stretch of time from `start` to `end`, where each step begins, and a row a
 * worker with its spans. `order` is "slow" (slowest first) or "name".
 */
export function arrange(state, steps, order) {
  const newest = state.lanes.reduce((most, lane) => Math.max(most, lane.step), -Infinity);
  const names = new Map(state.workers.map((worker) => [worker.session, worker]));
  const rows = new Map();
  for (const worker of state.workers) {
    if (worker.state !== "gone") rows.set(worker.session, row(worker.session, worker));
  }
  const begins = new Map();
  let [start, end] = [Infinity, -Infinity];
  for (const lane of state.lanes) {
    if (lane.step <= newest - steps) continue;
    if (!rows.has(lane.session)) rows.set(lane.session, row(lane.session, names.get(lane.session)));
    const into = rows.get(lane.session);
    into.steps += 1;
    for (const span of lane.spans) {
      into.spans.push({ ...span, step: lane.step });
      start = Math.min(start, span.start);
      end = Math.max(end, span.end);
      begins.set(lane.step, Math.min(begins.get(lane.step) ?? Infinity, span.start));
      const length = span.end - span.start;
      if (span.kind === "wait") into.waited += length;
      else if (span.kind === "compute" || span.kind === "takeover") into.computed += length;
      if (span.kind === "send") into.sent += length;
    }
  }
  const list = [...rows.values()];
  for (const one of list) {
    const n = Math.max(1, one.steps);
    one.computed /= n;
    one.sent /= n;
    one.waited /= n;
    one.busy = one.computed + one.sent;
  }
  const byName = (a, b) => compareNames(a.name, b.name);
  list.sort(order === "name" ? byName : (a, b) => rank(b) - rank(a) || byName(a, b));
  return {
    rows: list,
    start: end > start ? start : 0,
    end: end > start ? end : 0,
    begins: [...begins].sort((a, b) => a[0] - b[0]).map(([step, at]) => ({ step, at })),
    slow: slowest(list.filter((one) => one.steps > 0), (one) => one.busy),
  };
}

/** Times within about a tenth of each other rank alike, so that rows do not change places at every step. */
function rank(one) {
  return one.busy > 0 ? Math.round(Math.log(one.busy) / Math.log(1.1)) : -1000;
}

/** Who stands out among `list` by the time `busy` gives: the item, and the middle one's time; null if they are even. */
export function slowest(list, busy) {
  const times = list.map(busy).filter((time) => time > 0).sort((a, b) => a - b);
  if (times.length < 2) return null;
  // Of two, the middle one is the other.
  const middle = times[Math.floor((times.length - 1) / 2)];
  if (times.at(-1) < middle * SLOW) return null;
  return { one: list.find((item) => busy(item) === times.at(-1)), middle };
}

/** The span of a row that a moment falls into; of several, the one that is drawn last, hence on top. */
export function spanAt(spans, moment, slack) {
  const hit = spans.findLast((span) => span.start <= moment && moment < span.end);
  return hit ?? spans.findLast((span) => span.start - slack <= moment && moment < span.end + slack) ?? null;
}

/** Round marks for an axis of `length` seconds: at most about `most` of them. */
export function marks(length, most) {
  if (!(length > 0)) return [];
  const rough = length / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const every = power * [1, 2, 5, 10].find((times) => power * times >= rough);
  const list = [];
  for (let i = 0; i * every <= length; i += 1) list.push(i * every);
  return list;
}

/** `w2` before `w10`. */
export function compareNames(a, b) {
  return a.localeCompare(b, "en", { numeric: true });
}

function row(session, worker) {
  const name = worker?.name ?? session.slice(0, 8);
  return { session, name, gone: worker?.state === "gone", spans: [], steps: 0, computed: 0, sent: 0, waited: 0, busy: 0 };
}
