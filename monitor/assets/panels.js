// The panels that a program adds to the page. Its modules call `addPanel`; the page shows each state to all of them.

const panels = [];
let latest = null;

/**
 * Adds a panel: `show(state, changed)` is called with each new state, where `changed` is the set of the names that an
 * update has, or null if everything is new.
 */
export function addPanel(show) {
  panels.push(show);
  if (latest) show(latest, null);
}

/** Shows a state to the panels. */
export function showPanels(state, changed) {
  latest = state;
  for (const show of panels) show(state, changed);
}
