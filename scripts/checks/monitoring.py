"""A real Prometheus against a real run: every expression of the board and of the rules gives a number.

Starts a coordinator and three workers, kills one, has another leave, and has deploy/'s own Prometheus
configuration scrape them (with only the targets and the intervals changed). Then each expression is
asked for until its answer holds a finite number. Alerts that are rightly silent have their comparisons
turned into `bool`, which makes them 0 or 1 instead of nothing: so every series and every matching of
labels in them is still shown to exist. That they fire is what promtool's unit tests show; the one for a
lost worker must fire here.
"""

import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Long over what it takes on a loaded machine.
DEADLINE = 180.0
# Steps of some 30 ms, an epoch of 20 with a test pass and a checkpoint; far more epochs than will be run.
RUN = [
    "--model", "synthetic:parameters=200000,us-per-sample=1500", "--train-limit", "640", "--batch-size", "32",
    "--test-limit", "64", "--epochs", "100000", "--checkpoint-every", "10", "--audit-rate", "0.3", "--workers", "3",
]  # fmt: skip
COMPARISON = re.compile(r"(==|!=|>=|<=|>|<)(?=\s)")


def wait(what, found):
    """Waits until `found` gives something, and returns it."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        answer = found()
        if answer:
            return answer
        time.sleep(0.2)
    sys.exit(f"monitoring: FAILED: waited {DEADLINE:.0f} s for {what}")


def expressions():
    """(where it stands, expression, whether it must give something as it is) of the board and the rules."""
    board = json.loads((DEPLOY / "grafana/dashboards/tally.json").read_text())
    panels = [p for row in board["panels"] for p in [row, *row.get("panels", [])]]
    for panel in panels:
        for target in panel.get("targets", []):
            yield f"board, {panel['title']}", target["expr"], True
    rules = yaml.safe_load((DEPLOY / "prometheus/rules/tally.yml").read_text())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if "record" in rule:
            yield f"rule {rule['record']}", rule["expr"], True
            continue
        if re.search(r"\b(or|unless|absent)\b", rule["expr"]):
            sys.exit(f"monitoring: FAILED: {rule['alert']} uses or, unless or absent; see the head of the rules")
        fires = rule["alert"] == "TallyWorkerLost"
        yield f"alert {rule['alert']}", rule["expr"], fires


def substituted(expression, instance):
    """What Grafana would ask: its variables replaced."""
    for variable, value in {
        "$__rate_interval": "20s", "$__interval": "5s", "$__range": "5m", "$instance": re.escape(instance).replace("\\", r"\\"),
    }.items():  # fmt: skip
        expression = expression.replace(variable, value)
    if "$" in expression:
        sys.exit(f"monitoring: FAILED: a variable is left in {expression}")
    return expression


def configure(directory, instance, port):
    """deploy/'s own configuration, with the targets and intervals of this test."""
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / pattern) for pattern in config["rule_files"]]
    targets = {"tally": instance, "prometheus": f"127.0.0.1:{port}"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    path = Path(directory, "prometheus.yml")
    path.write_text(yaml.safe_dump(config))
    return path


class Cluster:
    """A coordinator, three workers and a Prometheus, which end with it."""

    def __init__(self, binaries, directory):
        self.binaries, self.directory, self.children = binaries, Path(directory), []
        self.coordinator_log = self.directory / "coordinator.log"

    def start(self, name, *command):
        log = open(self.directory / f"{name}.log", "w")
        child = subprocess.Popen([str(c) for c in command], stdout=log, stderr=log, cwd=self.directory)
        self.children.append(child)
        return child

    def coordinator(self):
        command = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--run-dir", self.directory / "run"]
        child = self.start("coordinator", self.binaries / "coordinator", *command, *RUN)

        def told(pattern):
            if child.poll() is not None:
                sys.exit(f"monitoring: FAILED: the coordinator has ended:\n{self.coordinator_log.read_text()}")
            return re.search(pattern, self.coordinator_log.read_text())

        grpc = wait("the coordinator's port", lambda: told(r"listening on [^;]*:(\d+);"))[1]
        http = wait("the metrics' address", lambda: told(r"http://([0-9.]+:\d+)"))[1]
        return grpc, http

    def worker(self, name, port):
        options = ["--connect", f"127.0.0.1:{port}", "--backend", "cpu", "--threads", "1", "--name", name]
        return self.start(name, self.binaries / "worker", *options)

    def steps(self):
        journal = self.directory / "run/journal.jsonl"
        return journal.read_text().count('"event":"step"') if journal.exists() else 0

    def end(self):
        for child in self.children:
            child.kill()
            child.wait()


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def query(port, expression):
    """The samples of an instant query."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        # Prometheus is not ready yet: it replays its log, or has just begun.
        if error.code == 503:
            return []
        sys.exit(f"monitoring: FAILED: {expression}: {error.read().decode()}")
    except (urllib.error.URLError, ConnectionError):
        return []


def main():
    wanted = list(expressions())
    with tempfile.TemporaryDirectory() as directory:
        cluster = Cluster(Path(sys.argv[1]).resolve(), directory)
        try:
            grpc, http = cluster.coordinator()
            port = free_port()
            config = configure(directory, http, port)
            cluster.start(
                "prometheus", "prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/tsdb",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
            )  # fmt: skip
            workers = [cluster.worker(f"worker-{n}", grpc) for n in (1, 2, 3)]
            wait("Prometheus to see all three workers", lambda: query(port, 'tally_workers{state="ready"} == 3'))
            first = cluster.steps()
            wait("twenty steps", lambda: cluster.steps() >= first + 20)
            workers[0].kill()
            workers[1].send_signal(signal.SIGTERM)
            wait("the alert for a lost worker", lambda: query(port, 'ALERTS{alertname="TallyWorkerLost",alertstate="firing"}'))

            missing = list(wanted)
            end = time.monotonic() + DEADLINE
            while missing and time.monotonic() < end:
                missing = [it for it in missing if not answered(port, http, it)]
                time.sleep(1 if missing else 0)
            for where, expression, _ in missing:
                print(f"monitoring: no number for {where}: {expression}")
            print(f"monitoring: {len(wanted) - len(missing)} of {len(wanted)} expressions have numbers")
            sys.exit(1 if missing else 0)
        finally:
            cluster.end()


def answered(port, instance, expression):
    where, text, as_it_is = expression
    text = substituted(text, instance)
    if not as_it_is:
        text = COMPARISON.sub(r"\1 bool", text)
    return any(math.isfinite(float(sample["value"][1])) for sample in query(port, text))


if __name__ == "__main__":
    main()
