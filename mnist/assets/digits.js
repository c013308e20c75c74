// The panels of the built-in program: the square to draw in, and pictures of the data with the network's answers.

import { showCheckpoint, startDrawing } from "./draw.js";
import { addPanel } from "./panels.js";
import { showSamples, startSamples } from "./samples.js";

startDrawing();
startSamples();

addPanel((state, changed) => {
  if (changed && !changed.has("checkpoint")) return;
  showCheckpoint(state);
  showSamples(state);
});
