// Real clusters for the browser's tests: the `coordinator` and `worker` binaries as child processes, on free ports, in a
// temporary directory. What was started here ends here, whatever becomes of the test.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

/** How long anything may take before it counts as hanging: far over what it takes on a loaded machine. */
export const DEADLINE = 180_000;

const BINARIES = resolve(process.env.TALLY_BIN_DIR ?? join(import.meta.dirname, "../../target/debug"));

// The caller's variables of Tally would be options.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TALLY_")));

const children = new Set();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});

/** A child process whose standard error is kept. */
export class Process {
  #said = "";
  #child;

  constructor(binary, args, cwd) {
    this.#child = spawn(join(BINARIES, binary), args, { cwd, env, stdio: ["ignore", "ignore", "pipe"] });
    children.add(this.#child);
    this.#child.stderr.setEncoding("utf8").on("data", (text) => {
      this.#said += text;
    });
    this.#child.on("error", (error) => {
      this.#said += `${error.message}; build the binaries or name their directory in TALLY_BIN_DIR\n`;
    });
    this.ended = once(this.#child, "close").finally(() => children.delete(this.#child));
  }

  /** Waits until what it said matches; gives the match. */
  async says(pattern) {
    const until = Date.now() + DEADLINE;
    for (;;) {
      const match = this.#said.match(pattern);
      if (match) return match;
      if (this.#child.exitCode !== null || this.#child.signalCode !== null || Date.now() > until) {
        throw new Error(`nothing like ${pattern} in:\n${this.#said}`);
      }
      await Promise.race([once(this.#child.stderr, "data"), this.ended, new Promise((done) => setTimeout(done, 1000))]);
    }
  }

  /** Sends a signal and waits for the end. */
  async end(signal = "SIGKILL") {
    this.#child.kill(signal);
    await this.ended;
  }
}

/** A run: its coordinator and workers, and the directory they leave behind until `close`. */
export class Cluster {
  #options;
  #directory = mkdtempSync(join(tmpdir(), "tally-browser-"));
  #listen = "127.0.0.1:0";
  #http = "127.0.0.1:0";
  workers = new Map();

  constructor(options) {
    this.#options = options;
  }

  get runDirectory() {
    return join(this.#directory, "run-0001");
  }

  /** Starts the coordinator for the first time, or again after its end, on the addresses that it had. */
  async start(again = false) {
    const which = again ? ["--resume", this.runDirectory] : [...this.#options, "--run-dir", this.runDirectory];
    this.coordinator = new Process("coordinator", [...which, "--listen", this.#listen, "--http-listen", this.#http], this.#directory);
    const [, http] = await this.coordinator.says(/http:\/\/([0-9.]+:\d+)/);
    const [, port] = await this.coordinator.says(/worker --connect HOST:(\d+)/);
    this.#listen = `127.0.0.1:${port}`;
    this.#http = http;
    this.url = `http://${http}/`;
  }

  /** Starts a worker of one thread. */
  join(name) {
    const args = ["--connect", this.#listen, "--backend", "cpu", "--threads", "1", "--name", name];
    this.workers.set(name, new Process("worker", args, this.#directory));
  }

  async close() {
    await Promise.all([this.coordinator, ...this.workers.values()].filter(Boolean).map((child) => child.end()));
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
