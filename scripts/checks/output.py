"""What output and signals may cost a run, with the real binaries: output is best effort, and a signal is always heeded.

Each check names what was seen on failure. `output.py BINARIES [NAME…]` runs those whose names contain a word.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BINARIES = Path(sys.argv[1]).resolve()
# Far over what anything takes on a loaded machine.
DEADLINE = 60
# Steps of 4 ms, 80 to an epoch.
MODEL = ["--model", "synthetic:parameters=1000,us-per-sample=500", "--train-limit", "640", "--test-limit", "5", "--batch-size", "8"]


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("TALLY_")}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait(what, found, seconds=DEADLINE):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"after {seconds} s still not: {what}")


def heeds_signals():
    """A background job may have inherited that signals are ignored, which a child would rightly keep."""
    for number in [signal.SIGHUP, signal.SIGINT]:
        signal.signal(number, signal.SIG_DFL)


class Run:
    """A coordinator's run in a directory of its own, and everything that was started for it."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "run"
        self.grpc, self.http = free_port(), free_port()
        self.children = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.kill()
            child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, command, **how):
        how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | how
        how = {"preexec_fn": heeds_signals} | how
        child = subprocess.Popen([str(it) for it in command], cwd=self.directory, env=environment(), **how)
        self.children.append(child)
        return child

    def command(self, *options, epochs=400, local=True):
        """The coordinator's command; 400 epochs are more than any check waits for."""
        address = ["--listen", f"127.0.0.1:{self.grpc}", "--http-listen", f"127.0.0.1:{self.http}", "--run-dir", self.path]
        workers = ["--local", "--backend", "cpu", "--threads", "1"] if local else []
        return [BINARIES / "coordinator", *MODEL, "--epochs", epochs, *address, *workers, *options]

    def coordinator(self, *options, epochs=400, local=True, **how):
        return self.start(self.command(*options, epochs=epochs, local=local), **how)

    def worker(self, *options, **how):
        connect = ["--connect", f"127.0.0.1:{self.grpc}", "--backend", "cpu", "--threads", "1"]
        return self.start([BINARIES / "worker", *connect, *options], **how)

    def steps(self):
        journal = self.path / "journal.jsonl"
        return journal.read_text().count('"event":"step"') if journal.exists() else 0

    def after(self, steps):
        wait(f"{steps} steps (there are {self.steps()})", lambda: self.steps() >= steps)

    def summary(self):
        return json.loads((self.path / "summary.json").read_text())

    def ask(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            return 0, str(error)


def ends(child, code, seconds=25):
    """Waits for a process to end with this code."""
    try:
        ended = child.wait(seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it does not end within {seconds} s") from None
    assert ended == code, f"exit code {ended}, not {code}"


@contextlib.contextmanager
def full_terminal():
    """A terminal that takes nothing more, and that nobody reads."""
    master, slave = pty.openpty()
    flags = fcntl.fcntl(slave, fcntl.F_GETFL)
    fcntl.fcntl(slave, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(slave, b"x" * 100)
    fcntl.fcntl(slave, fcntl.F_SETFL, flags)
    try:
        yield slave
    finally:
        os.close(slave)
        os.close(master)


# ---- Output is best effort ----


def a_terminal_that_takes_nothing_stops_neither_steps_nor_answers_nor_signals():
    with Run() as run, full_terminal() as terminal:
        coordinator = run.coordinator(stdout=terminal, stderr=terminal)
        run.after(50)
        for path in ["/healthz", "/readyz"]:
            status, words = run.ask(path)
            assert status == 200, f"{path}: {status} {words}"
        status = [BINARIES / "coordinator", "status", "--connect", f"127.0.0.1:{run.grpc}"]
        subprocess.run(status, check=True, timeout=20, stdout=subprocess.DEVNULL, env=environment())
        coordinator.send_signal(signal.SIGINT)
        ends(coordinator, 0)
        assert run.summary()["outcome"] == "stopped"
        assert (run.path / "checkpoints" / f"step-{run.summary()['steps']:08}").exists(), "no last checkpoint"


def a_worker_at_a_terminal_that_takes_nothing_works_and_leaves():
    with Run() as run, full_terminal() as terminal:
        run.coordinator(local=False)
        worker = run.worker("--log-level", "debug", stderr=terminal)
        run.after(50)
        worker.send_signal(signal.SIGTERM)
        ends(worker, 75)


def a_terminal_that_does_not_block_is_no_error():
    with Run() as run, full_terminal() as terminal:
        fcntl.fcntl(terminal, fcntl.F_SETFL, fcntl.fcntl(terminal, fcntl.F_GETFL) | os.O_NONBLOCK)
        ends(run.coordinator(epochs=2, stdout=terminal, stderr=terminal), 0)
        assert run.summary()["outcome"] == "done"


def a_reader_that_goes_away_ends_no_run():
    for lines, options in [(1, []), (3, []), (3, ["--log-level", "debug"]), (1, ["--log-format", "json"])]:
        with Run() as run:
            coordinator = run.coordinator(*options, epochs=2, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(lines):
                coordinator.stdout.readline()
            coordinator.stdout.close()
            ends(coordinator, 0)
            assert run.summary()["outcome"] == "done", options


def a_worker_whose_reader_goes_away_works_on():
    with Run() as run:
        coordinator = run.coordinator(local=False, epochs=2)
        worker = run.worker("--stay", "--log-level", "debug", stderr=subprocess.PIPE)
        worker.stderr.readline()
        worker.stderr.close()
        ends(coordinator, 0)
        assert worker.poll() is None, f"the worker ended with {worker.poll()}"
        worker.send_signal(signal.SIGTERM)
        ends(worker, 0)


def a_full_disk_below_the_log_ends_no_run():
    with Run() as run, open("/dev/full", "w") as full:
        ends(run.coordinator("--log-level", "debug", epochs=2, stdout=full, stderr=full), 0)
        assert run.summary()["outcome"] == "done"


def what_nothing_but_answers_says_that_it_could_not():
    with open("/dev/full", "w") as full:
        command = [BINARIES / "coordinator", "schedule", "--epoch", "1", "--train-limit", "64"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment())
        assert ended.returncode == 1 and b"panicked" not in ended.stderr, ended.stderr
    with Run() as run:
        ends(run.coordinator(epochs=1), 0)
        last = run.path / "checkpoints/last"
        for command in (
            [BINARIES / "coordinator", "report", run.path, "--out", run.directory / "report.html"],
            [BINARIES / "worker", "evaluate", "--checkpoint", last, "--backend", "cpu", "--test-limit", "5"],
        ):
            with open("/dev/full", "w") as full:
                ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=DEADLINE)
            assert ended.returncode == 1 and b"standard output" in ended.stderr, (ended.returncode, ended.stderr)
            answer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
            answer.stdout.close()
            heard = answer.stderr.read()
            assert answer.wait() == 0, heard


def as_json_every_line_is_an_object():
    with Run() as run:
        command = run.command("--log-format", "json", "--log-level", "info", epochs=2)
        variables = environment() | {"TALLY_EPOCSH": "2"}
        ended = subprocess.run([str(it) for it in command], cwd=run.directory, env=variables, capture_output=True, timeout=DEADLINE)
        assert ended.returncode == 0, ended.stderr
        said = [json.loads(line) for line in ended.stderr.splitlines() + ended.stdout.splitlines()]
        words = [line["fields"]["message"] for line in said]
        for wanted in ["TALLY_EPOCSH in the environment", "epoch 1/2", "parameters SHA-256"]:
            assert any(wanted in message for message in words), f"no {wanted!r} in {words}"
        assert all(line["level"] and line["timestamp"] for line in said)
        # It is there already: an error at the start.
        again = subprocess.run([str(it) for it in command], cwd=run.directory, env=environment(), capture_output=True, timeout=DEADLINE)
        assert again.returncode == 1 and json.loads(again.stderr.splitlines()[-1])["level"] == "ERROR", again.stderr


def a_worker_says_json_too():
    with Run() as run:
        run.coordinator(local=False, epochs=1)
        worker = run.worker("--log-format", "json", stderr=subprocess.PIPE)
        said = [json.loads(line) for line in worker.stderr.read().splitlines()]
        ends(worker, 0)
        assert any("joined" in line["fields"]["message"] for line in said), said


def a_trace_or_tensorboard_that_nobody_takes_holds_no_run_up():
    with Run() as run:
        pipe = run.directory / "trace"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            coordinator = run.coordinator("--trace", pipe, epochs=8)
            ends(coordinator, 0, 60)
            assert run.summary()["outcome"] == "done"
        finally:
            os.close(reader)


# ---- Health ----


def a_driver_that_stands_still_is_told_of():
    if shutil.which("strace") is None:
        print("output: skipped, for there is no strace: a driver that stands still")
        return
    with Run() as run:
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]
        command += ["-e", "inject=fdatasync,fsync:delay_enter=60000000:when=20+"]
        run.start([*command, *run.command("--checkpoint-every", "10")])
        wait("the coordinator to be ready", lambda: run.ask("/readyz")[0] == 200)
        wait("/readyz to say that the driver stands still", lambda: run.ask("/readyz")[0] == 503, 40)
        assert "made no progress" in run.ask("/readyz")[1], run.ask("/readyz")
        status = [BINARIES / "coordinator", "status", "--connect", f"127.0.0.1:{run.grpc}"]
        said = subprocess.run(status, stderr=subprocess.PIPE, env=environment(), timeout=20)
        assert b"driver has not answered" in said.stderr, said.stderr


# ---- Signals ----


def every_signal_that_asks_to_stop_is_heeded_by_both():
    for number in [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGTERM, signal.SIGINT]:
        with Run() as run:
            coordinator = run.coordinator("--supervised", local=False)
            worker, other = run.worker("--stay"), run.worker()
            run.after(10)
            worker.send_signal(number)
            ends(worker, 75)
            coordinator.send_signal(number)
            ends(coordinator, 75)
            assert run.summary()["outcome"] == "stopped", number
            assert (run.path / "checkpoints" / f"step-{run.summary()['steps']:08}").exists(), "no last checkpoint"
            ends(other, 0)


def what_a_terminal_sends_twice_asks_once():
    with Run() as run:
        coordinator = run.coordinator("--supervised")
        run.after(10)
        for number in [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM]:
            coordinator.send_signal(number)
        ends(coordinator, 75)
        assert run.summary()["outcome"] == "stopped"


def a_hangup_that_is_ignored_stays_ignored():
    with Run() as run:
        ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
        coordinator = run.coordinator(local=False, preexec_fn=ignore)
        worker = run.worker(preexec_fn=ignore)
        run.after(10)
        for child in (coordinator, worker):
            child.send_signal(signal.SIGHUP)
        run.after(run.steps() + 50)
        assert coordinator.poll() is None and worker.poll() is None


def a_worker_that_was_told_to_leave_says_whether_the_run_was_done():
    with Run() as run:
        # Before there is a run: whoever counts 0 as done would never replace it.
        early = run.worker("--stay", stderr=subprocess.PIPE)
        early.stderr.readline()
        early.send_signal(signal.SIGTERM)
        ends(early, 75)
        stays = run.worker("--stay", stderr=subprocess.PIPE)
        ends(run.coordinator(local=False, epochs=1), 0)
        wait("the end of the run", lambda: b"finished" in stays.stderr.readline())
        stays.send_signal(signal.SIGTERM)
        ends(stays, 0)


def a_token_that_is_a_pipe_nobody_writes_to_keeps_nobody_from_ending():
    with Run() as run:
        pipe = run.directory / "token"
        os.mkfifo(pipe)
        coordinator = run.coordinator("--supervised", "--token-file", pipe)
        plain = run.start([BINARIES / "coordinator", *MODEL, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--token-file", pipe])
        worker = run.worker("--stay", "--token-file", pipe)
        time.sleep(1)
        for child in (coordinator, plain, worker):
            assert child.poll() is None
            child.send_signal(signal.SIGTERM)
        ends(coordinator, 75)
        ends(plain, 128 + signal.SIGTERM)
        ends(worker, 75)


def a_second_interrupt_ends_what_cannot_end_politely():
    with Run() as run:
        pipe = run.directory / "token"
        os.mkfifo(pipe)
        for child in (run.coordinator("--token-file", pipe), run.worker("--stay", "--token-file", pipe)):
            time.sleep(1)
            child.send_signal(signal.SIGINT)
            time.sleep(0.2)
            child.send_signal(signal.SIGINT)
            ends(child, 128 + signal.SIGINT, 4)


def main():
    words = sys.argv[2:]
    checks = [it for name, it in globals().items() if callable(it) and re.match(r"(a|as|what|every)_", name)]
    checks = [it for it in checks if not words or any(word in it.__name__ for word in words)]
    failed = 0
    for check in checks:
        start = time.monotonic()
        try:
            check()
            print(f"output: ok: {check.__name__.replace('_', ' ')} ({time.monotonic() - start:.1f} s)", flush=True)
        except (AssertionError, subprocess.SubprocessError, json.JSONDecodeError, OSError) as error:
            failed += 1
            print(f"output: FAILED: {check.__name__.replace('_', ' ')}: {error}", flush=True)
    print(f"output: {len(checks) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
