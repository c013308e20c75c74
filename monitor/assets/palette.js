// The sheet's colours, as a canvas can use them, and how each kind of span and each part of the time is called.

const cache = new Map();
let probe = null;

/** The present value of a colour of the sheet, such as `--compute`. */
export function colour(name) {
  let value = cache.get(name);
  if (!value) {
    if (!probe) {
      probe = document.createElement("span");
      probe.hidden = true;
      document.body.append(probe);
    }
    // A custom property may itself be a `light-dark(…)`; a real property resolves it.
    probe.style.color = `var(${name})`;
    value = getComputedStyle(probe).color;
    cache.set(name, value);
  }
  return value;
}

document.addEventListener("schemechange", () => cache.clear());

/** What a worker does in a step. `tall` is the share of a lane's height, so that kinds differ in shape as well. */
export const KINDS = {
  compute: { label: "Compute", colour: "--compute", tall: 1 },
  send: { label: "Send", colour: "--send", tall: 0.62 },
  wait: { label: "Wait", colour: "--wait", tall: 0.16 },
  apply: { label: "Apply", colour: "--apply", tall: 0.8 },
  takeover: { label: "Take over", colour: "--takeover", tall: 1, striped: true },
  audit: { label: "Audit", colour: "--audit", tall: 0.8, striped: true },
  test: { label: "Test", colour: "--test", tall: 1 },
};

/** What a second of the run was spent on, as a person would say it. */
export const PARTS = {
  computing: "Computing",
  transferring: "Transferring",
  waiting: "Waiting",
  updating: "Updating",
  committing: "Committing",
  testing: "Testing",
  recovering: "Recovering",
  checkpointing: "Checkpointing",
  idle: "Idle",
};
