// The dashboard: follows the run and hands what changed to the parts of the page that show it.

import { showCharts, startCharts } from "./charts.js";
import { byId } from "./dom.js";
import { follow } from "./feed.js";
import { showConfiguration, showConnection, showHead } from "./head.js";
import { showLanes, startLanes } from "./lanes.js";
import { showLog, startLog } from "./log.js";
import { paced } from "./pace.js";
import { showPanels } from "./panels.js";
import { showSeconds } from "./seconds.js";
import { merge, whole } from "./state.js";
import { showWorkers, startWorkers } from "./workers.js";

let state = null;

for (const start of [startLanes, startWorkers, startLog]) start();

const charts = paced(showCharts, 500, byId("curves"));
const lanes = paced(showLanes, 500, byId("lanes"));
const workers = paced(showWorkers, 1000);
const seconds = paced(showSeconds, 1000);

follow({
  onState(sent) {
    const before = state;
    state = whole(sent);
    const restarted = before && before.run === state.run && before.incarnation !== state.incarnation;
    showConnection("live", restarted ? `The coordinator was started again and went on from step ${state.step}: this is start ${state.incarnation} of the run.` : "");
    showConfiguration(state);
    startCharts(state.schema);
    show();
  },
  onUpdate(update) {
    if (!state) return;
    const changed = merge(state, update);
    // A page nobody looks at keeps count but draws nothing.
    if (!document.hidden) show(changed);
  },
  onConnection: (connection) => showConnection(connection),
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && state) show();
});

/** Shows what changed, or without `changed` everything. */
function show(changed = null) {
  const any = (...names) => !changed || names.some((name) => changed.has(name));
  showHead(state);
  if (any("seconds", "waited_for")) seconds(state);
  if (any("points", "series", "tests")) charts(state);
  if (any("lanes", "workers")) lanes(state);
  if (any("workers")) workers(state);
  if (any("log")) showLog(state);
  showPanels(state, changed);
}
