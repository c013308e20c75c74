// Takes the README's pictures of the dashboard: `npm run pictures`. A real run of the real network, three workers on the
// processors at hand, one of them lost on the way; it takes some minutes.

import { statSync } from "node:fs";
import { join } from "node:path";
import { DESKTOP, PHONE, launch, open } from "./browser.mjs";
import { Cluster } from "./cluster.mjs";

const DOCS = join(import.meta.dirname, "../../docs");
const LIMIT = 300 * 1024;
/** The step at which the pictures are taken; a worker is lost shortly before. */
const [LOSE, TAKE] = [Number(process.env.TALLY_LOSE_AT ?? 380), Number(process.env.TALLY_TAKE_AT ?? 400)];
const HOURS = 4 * 3600 * 1000;

const RUN = [
  ["--workers", "3"], ["--epochs", "4"], ["--batch-size", "64"], ["--learning-rate", "0.1"], ["--train-limit", "8000"], ["--test-limit", "1000"],
  ["--checkpoint-every", "50"], ["--audit-rate", "0.02"],
].flat();

const cluster = new Cluster(RUN);
let browser;
try {
  await cluster.start();
  for (const name of ["atlas", "borealis", "cassini"]) cluster.join(name);
  browser = await launch();
  const { page } = await open(browser, cluster.url);
  const reaches = (step) => page.waitForFunction((least) => Number(document.getElementById("step").textContent.replace(/\D/g, "")) >= least, step, { timeout: HOURS });
  await reaches(LOSE);
  await cluster.workers.get("borealis").end("SIGKILL");
  cluster.join("dione");
  await reaches(TAKE);
  await page.context().close();

  for (const colorScheme of ["light", "dark"]) await take(`dashboard-${colorScheme}`, { viewport: DESKTOP, colorScheme }, "#lanes");
  await take("dashboard-phone", { viewport: PHONE, colorScheme: "light", deviceScaleFactor: 2 });
  await take("dashboard-draw", { viewport: DESKTOP, colorScheme: "light" }, null, ".pair");
} finally {
  await browser?.close();
  await cluster.close();
}

/** One picture: of the page from its top to the end of `last` or of the screen, or of the part `only`. */
async function take(name, options, last = null, only = null) {
  const { page, faults } = await open(browser, cluster.url, { reducedMotion: "reduce", ...options });
  await page.locator("#workers-table tbody tr").first().waitFor();
  // What is not on the screen is not drawn; a screen as high as the picture is.
  const tall = last ?? only;
  if (tall) {
    await page.setViewportSize({ width: options.viewport.width, height: await page.evaluate(() => document.documentElement.scrollHeight) });
  }
  if (only) {
    await page.getByRole("button", { name: "Write a 3" }).click();
    await page.locator("#answer .read").waitFor();
    await page.waitForFunction(() => document.getElementById("samples-image").naturalWidth > 0);
  }
  // Two updates, so that the lanes and the table show the same steps.
  await page.waitForTimeout(1500);
  const path = join(DOCS, `${name}.png`);
  if (only) await page.locator(only).screenshot({ path });
  else {
    const height = last ? await page.locator(last).evaluate((node) => node.getBoundingClientRect().bottom + 16) : options.viewport.height;
    await page.screenshot({ path, clip: { x: 0, y: 0, width: options.viewport.width, height } });
  }
  const size = statSync(path).size;
  if (size > LIMIT) throw new Error(`${path} has ${size} bytes, more than ${LIMIT}`);
  if (faults.length) throw new Error(faults.join("\n"));
  console.log(`${path}: ${Math.round(size / 1024)} KiB`);
  await page.context().close();
}
