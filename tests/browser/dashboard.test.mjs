// The dashboard in a browser, over a real run in which a worker is killed and the coordinator too. One run and one page,
// which is never loaded again; the tests go through what happens to them in its order.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { DESKTOP, PHONE, launch, open, violations } from "./browser.mjs";
import { Cluster, DEADLINE } from "./cluster.mjs";

/** A small network that learns within seconds, in a run far longer than the tests. */
const RUN = [
  ["--workers", "2"], ["--model", "mlp"], ["--epochs", "5000"], ["--lr-schedule", "constant"], ["--learning-rate", "0.01"],
  ["--batch-size", "64"], ["--train-limit", "12800"], ["--test-limit", "500"], ["--checkpoint-every", "1000"],
].flat();

/** A name that would be markup, were it not for the page's care to show text as text. */
const HOSTILE = "<b>x</b>";

let cluster;
let browser;
let page;
let faults;

before(async () => {
  cluster = new Cluster(RUN);
  await cluster.start();
  browser = await launch();
  // With less motion nothing glides: where a part of the page is when it is asked for, it stays.
  ({ page, faults } = await open(browser, cluster.url, { reducedMotion: "reduce" }));
  page.setDefaultTimeout(DEADLINE);
  await page.evaluate(() => { window.sameAsEver = true; });
});

after(async () => {
  await browser?.close();
  await cluster?.close();
});

/** Waits until `ask`, called in the page with `argument`, gives something; gives it. */
const until = async (ask, argument) => (await page.waitForFunction(ask, argument)).jsonValue();
const shown = (id) => page.locator(`#${id}`).innerText();
const stepShown = () => page.evaluate(() => Number(document.getElementById("step").textContent.replace(/\D/g, "")));
const untilAfter = (step) => until((least) => {
  const now = Number(document.getElementById("step").textContent.replace(/\D/g, ""));
  return now > least && now;
}, step);
const row = (name) => page.locator("#workers-table tbody tr").filter({ has: page.getByRole("rowheader", { name, exact: true }) });

test("before there is a worker, the page says what it waits for", async () => {
  await page.getByText("0 of 2 are here").waitFor();
  assert.equal(await shown("phase"), "Waiting for workers");
  assert.equal(await shown("connection"), "live");
});

test("the page fills: figures, curves, workers, events, the configuration", async () => {
  cluster.join("anna");
  cluster.join(HOSTILE);
  await untilAfter(20);
  assert.match(await shown("phase"), /^(Training|Testing)$/);
  for (const chart of ["loss", "rate", "norm", "lr", "tests"]) {
    await page.locator(`#${chart}-chart`).scrollIntoViewIfNeeded();
    await page.locator(`#${chart}-chart canvas`).waitFor();
    assert.match(await shown(`${chart}-legend`), /\d/);
  }
  await row("anna").getByText("working").waitFor();
  await row(HOSTILE).getByText("working").waitFor();
  await page.locator("#log").getByText("anna").first().waitFor();
  assert.match(await shown("tile-metric"), /^[\d.]+\s%/);
  await page.locator("#about summary").click();
  assert.match(await shown("config"), /train limit\s+12800/);
});

test("where the seconds went adds up to the wall time", async () => {
  await page.waitForFunction(() => document.querySelectorAll("#time-legend li").length > 0);
  const shares = await page.locator("#time-legend li span:last-child").allInnerTexts();
  const sum = shares.reduce((total, share) => total + Number.parseFloat(share), 0);
  assert.equal(shares.length, 9);
  assert.ok(Math.abs(sum - 100) < 0.5, `${shares} add up to ${sum} %`);
  const [bar, parts] = await page.evaluate(() => {
    const node = document.getElementById("time-bar");
    const widths = [...node.children].map((child) => child.getBoundingClientRect().width);
    return [node.getBoundingClientRect().width, widths.reduce((a, b) => a + b, 0) + 2 * (widths.length - 1)];
  });
  assert.ok(Math.abs(bar - parts) < 1, `the parts cover ${parts} of ${bar} pixels`);
});

test("it goes on by itself", async () => {
  const [step, points] = await page.evaluate(() => [Number(document.getElementById("step").textContent.replace(/\D/g, "")), document.getElementById("loss-chart").getAttribute("aria-valuemax")]);
  await page.locator("#loss-chart").scrollIntoViewIfNeeded();
  await untilAfter(step + 50);
  await until((old) => Number(document.getElementById("loss-chart").getAttribute("aria-valuemax")) > Number(old), points);
});

test("the lanes show what each worker does, and say it in words", async () => {
  await page.locator("#lanes").scrollIntoViewIfNeeded();
  await page.locator("#lanes-text").getByText(/steps? in .*2 workers/).waitFor();
  const colours = await page.evaluate(() => {
    const canvas = document.getElementById("lanes-canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  });
  assert.ok(colours > 5, `only ${colours} colours are in the lanes`);
  await page.getByRole("button", { name: "Hold" }).click();
  const box = await page.locator("#lanes-canvas").boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + 14);
  await page.locator("#lanes-tip").getByText(/step/i).waitFor();
  await page.getByRole("button", { name: "Hold" }).click();
});

test("a worker that is killed is told of in the log, the table and the figures, and the run goes on", async () => {
  const step = await stepShown();
  await cluster.workers.get("anna").end("SIGKILL");
  await row("anna").getByText(/^gone/).waitFor();
  await page.locator("#log li.bad").filter({ hasText: "anna" }).first().waitFor();
  await page.locator("#tile-workers").getByText("1 lost").waitFor();
  await until(() => /anna/.test(document.getElementById("log-live").textContent));
  await untilAfter(step + 50);
  assert.match(await shown("phase"), /^(Training|Testing)$/);
});

test("the log is searched and sifted, the table sorted, with the keyboard alone", async () => {
  await page.locator("#log-find").focus();
  await page.keyboard.type("anna");
  assert.ok((await page.locator("#log li").allInnerTexts()).every((entry) => entry.includes("anna")));
  await page.keyboard.press("Control+A");
  await page.keyboard.type("no such thing");
  await page.locator("#log-empty").getByText("No event matches.").waitFor();
  await page.keyboard.press("Control+A");
  await page.keyboard.press("Delete");

  const lost = page.locator("#log-kinds button").filter({ hasText: "Lost" });
  await lost.focus();
  await page.keyboard.press("Space");
  assert.equal(await lost.getAttribute("aria-pressed"), "false");
  assert.equal(await page.locator("#log .kind").filter({ hasText: "Lost" }).count(), 0);
  await page.keyboard.press("Space");

  const samples = page.getByRole("columnheader", { name: "Samples" });
  await samples.getByRole("button").focus();
  await page.keyboard.press("Enter");
  assert.equal(await samples.getAttribute("aria-sort"), "descending");
  await page.keyboard.press("Enter");
  assert.equal(await samples.getAttribute("aria-sort"), "ascending");
});

test("a chart is read with the arrow keys", async () => {
  const chart = page.locator("#loss-chart");
  await chart.scrollIntoViewIfNeeded();
  // A mouse that the page scrolls under would move the cursor as well.
  await page.mouse.move(1, 1);
  await chart.focus();
  await page.keyboard.press("Home");
  const first = await chart.getAttribute("aria-valuenow");
  assert.equal(first, await chart.getAttribute("aria-valuemin"));
  assert.match(await chart.getAttribute("aria-valuetext"), /^Step \d+: Total [\d.]+, Digit [\d.]+, Sum [\d.]+, Difference [\d.]+$/);
  await page.keyboard.press("ArrowRight");
  assert.notEqual(await chart.getAttribute("aria-valuenow"), first);
});

/** Waits until what is drawn is read as `digit`, at the latest by a later checkpoint, and checks that the answer agrees with itself. */
async function readAs(digit) {
  await page.locator("#answer[aria-busy=false] .read strong").getByText(String(digit), { exact: true }).waitFor();
  const shares = (await page.locator("#answer-bars li span:last-child").allInnerTexts()).map(Number.parseFloat);
  const sum = shares.reduce((a, b) => a + b, 0);
  assert.ok(Math.abs(sum - 100) < 1, `the probabilities add up to ${sum} %`);
  assert.equal(shares[digit], Math.max(...shares));
  const seen = await page.evaluate(() => {
    const { data } = document.getElementById("answer-saw").getContext("2d").getImageData(0, 0, 28, 28);
    return data.filter((value, i) => i % 4 === 0 && value > 128).length;
  });
  assert.ok(seen > 10 && seen < 400, `${seen} pixels are light in what the network saw`);
}

test("what is drawn is answered: by mouse, by keys, from a picture, or written by the page", async () => {
  await page.locator("#draw-from").getByText("answers from the checkpoint").waitFor();
  const square = page.locator("#draw-canvas");
  await square.scrollIntoViewIfNeeded();
  const { x, y, width } = await square.boundingBox();
  const stroke = async (from, to) => {
    await page.getByRole("button", { name: "Clear" }).click();
    await page.mouse.move(x + width / 2, y + width * from);
    await page.mouse.down();
    await page.mouse.move(x + width / 2, y + width * to, { steps: 12 });
    await page.mouse.up();
    await readAs(1);
  };
  // From edge to edge as well: a large hand fills the square.
  await stroke(0.005, 0.995);
  await stroke(0.25, 0.75);

  const picture = Buffer.from((await page.evaluate(() => document.getElementById("draw-canvas").toDataURL("image/png"))).split(",")[1], "base64");
  await page.getByRole("button", { name: "Clear" }).click();
  assert.equal(await page.locator("#answer .read").count(), 0);
  await page.locator("#draw-file").setInputFiles({ name: "one.png", mimeType: "image/png", buffer: picture });
  await readAs(1);

  await page.locator("#draw-file").setInputFiles({ name: "not.png", mimeType: "image/png", buffer: Buffer.from("no picture") });
  await page.locator("#answer").getByText("not.png cannot be read as a picture").waitFor();

  await square.focus();
  for (let i = 0; i < 10; i += 1) await page.keyboard.press("ArrowUp");
  await page.keyboard.press("Space");
  for (let i = 0; i < 20; i += 1) await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Space");
  await readAs(1);

  await page.getByRole("button", { name: "Write a 0" }).click();
  await readAs(0);
  await page.locator("#draw-number").getByRole("radio", { name: "7" }).check({ force: true });
  await page.locator("#answer .sums").getByText("0 + 7").waitFor();
});

test("the digits of the data are shown", async () => {
  await page.locator("#samples").scrollIntoViewIfNeeded();
  await until(() => {
    const image = document.getElementById("samples-image");
    return !image.hidden && image.naturalWidth > 100 && image.alt.length > 20;
  });
});

test("the page survives a coordinator that is killed and started again", async () => {
  const step = await stepShown();
  const tests = await page.evaluate(() => document.getElementById("tests-chart").getAttribute("aria-valuemin"));
  faults.down = true;
  await cluster.coordinator.end("SIGKILL");
  await page.locator("#banner").getByText("does not answer").waitFor();
  assert.equal(await shown("connection"), "no connection");
  assert.ok(await stepShown() >= step, "what was known stays on the page");

  await cluster.start(true);
  await page.locator("#banner").getByText("this is start 2 of the run").waitFor();
  faults.down = false;
  assert.equal(await shown("connection"), "live");
  // Its worker came back, and the run goes on from where it was.
  await untilAfter(step + 50);
  await row(HOSTILE).getByText("working").waitFor();
  assert.equal(await page.evaluate(() => document.getElementById("tests-chart").getAttribute("aria-valuemin")), tests, "the test passes of the first start are still there");
  assert.ok(await page.evaluate(() => window.sameAsEver), "the page was not loaded again");
});

for (const [device, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
  for (const colorScheme of ["light", "dark"]) {
    test(`on a ${device}, ${colorScheme}: nothing for axe to find, nothing wider than the screen`, async () => {
      const other = await open(browser, cluster.url, { viewport, colorScheme, hasTouch: device === "phone", reducedMotion: "reduce" });
      await other.page.locator("#workers-table tbody tr").first().waitFor({ timeout: DEADLINE });
      await other.page.locator("#draw-from").getByText("answers from the checkpoint").waitFor({ timeout: DEADLINE });
      await other.page.getByRole("button", { name: "Write a 3" }).click();
      await other.page.locator("#answer .read").waitFor({ timeout: DEADLINE });
      await other.page.locator("#about summary").click();
      assert.deepEqual(await violations(other.page), []);
      assert.ok(await other.page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page scrolls sideways");
      assert.deepEqual([...other.faults], []);
      await other.page.context().close();
    });
  }
}

test("the scheme is chosen by hand as well, and remembered", async () => {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const button = page.getByRole("button", { name: /^Theme/ });
  const light = await ground();
  await button.click();
  assert.equal(await button.innerText(), "Theme: dark");
  const dark = await ground();
  assert.notEqual(dark, light);
  const again = await page.context().newPage();
  await again.goto(cluster.url);
  assert.equal(await again.evaluate(() => getComputedStyle(document.body).backgroundColor), dark);
  await again.close();
});

test("nothing went wrong in the page all the while, and nothing was asked of anyone else", () => {
  assert.deepEqual([...faults], []);
});
