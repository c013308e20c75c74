// Chromium as the system has it, and a page that is watched: what went wrong in it is part of what a test asks.

import { existsSync } from "node:fs";
import axe from "axe-core";
import { chromium } from "playwright-core";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

export const PHONE = { width: 360, height: 740 };
export const DESKTOP = { width: 1440, height: 900 };

/** Starts the browser that TALLY_CHROMIUM names, or the system's. */
export function launch() {
  const executablePath = process.env.TALLY_CHROMIUM ?? PLACES.find(existsSync);
  if (!executablePath) throw new Error("there is no Chromium: install Debian's package chromium, or name one in TALLY_CHROMIUM");
  return chromium.launch({ executablePath });
}

/**
 * Opens a page. Its `faults` are what it complained of: errors on the console, scripts that threw, requests that failed
 * or went to another origin. While `faults.down` is set, the coordinator's silence is no fault.
 */
export async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: DESKTOP, ...options });
  const page = await context.newPage();
  const faults = [];
  faults.down = false;
  const { origin } = new URL(url);
  page.on("pageerror", (error) => faults.push(`threw ${error.stack}`));
  page.on("console", (message) => {
    if (message.type() !== "error" && message.type() !== "warning") return;
    // The tests look at what is drawn, and Chromium has advice on that; the page itself only reads what it sends.
    if (/willReadFrequently/.test(message.text())) return;
    if (faults.down && /net::ERR_/.test(message.text())) return;
    faults.push(`console: ${message.text()} (${message.location().url})`);
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== origin) faults.push(`asked ${request.url()}`);
  });
  page.on("requestfailed", (request) => {
    if (!faults.down) faults.push(`no answer to ${request.url()}: ${request.failure()?.errorText}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 400) faults.push(`${response.status()} for ${response.url()}`);
  });
  await page.goto(url);
  return { page, faults };
}

/** What axe finds on a page, a line each. */
export async function violations(page) {
  // Evaluated, not put in as a script: the page's own policy lets none in.
  await page.evaluate(axe.source);
  const { violations: found } = await page.evaluate(() => window.axe.run());
  return found.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target.join(" ")}: ${node.failureSummary}`));
}
