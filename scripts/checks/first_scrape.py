"""The alerts, by what is scraped of a coordinator before anything has happened.

Starts a run (and the same again, by --supervised) that no worker ever joins, scrapes it once, and gives promtool just
those series, standing still for two hours: the alerts of a run that does not move must fire, and no other.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

RULES = Path(__file__).resolve().parents[2] / "deploy/prometheus/rules/tally.yml"
MODEL = ["--model", "synthetic:parameters=1000,us-per-sample=500", "--batch-size", "64", "--train-limit", "640", "--test-limit", "5"]
# Each alert, and a minute by which it has waited long enough. None has at the first minute.
FIRE = {"TallyNoWorkers": 3, "TallyNoProgress": 11, "TallyTooFewWorkers": 16, "TallyCheckpointTooOld": 66}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def scrape(binaries, directory):
    """What the first scrape gives that is answered."""
    port = free_port()
    command = [binaries / "coordinator", *MODEL, "--workers", "3", "--supervised", "--run-dir", directory / "run"]
    command += ["--listen", "127.0.0.1:0", "--http-listen", f"127.0.0.1:{port}"]
    child = subprocess.Popen([str(it) for it in command], cwd=directory, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                    return answer.read().decode()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.01)
        sys.exit("monitoring: FAILED: the coordinator does not answer")
    finally:
        child.terminate()
        child.wait()


def series(text):
    """promtool's input: each series with its value, standing still from the epoch's beginning on."""
    for line in text.splitlines():
        if line.startswith("#") or not line.startswith("tally_"):
            continue
        name, labels, value = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line).groups()
        if name == "tally_checkpoint_time_seconds":
            assert float(value) > 1e9, line
            value = "0"
        if name == "tally_run_dir_free_bytes":
            value = "5e11"
        if value == "NaN":
            continue
        labels = ",".join(filter(None, [labels, 'instance="a"']))
        yield {"series": f"{name}{{{labels}}}", "values": f"{value}+0x120"}


def test(text):
    asked = []
    for minutes in (1, *FIRE.values(), 120):
        expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name, after in FIRE.items() if after <= minutes]
        expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
        asked.append({"expr": expression, "eval_time": f"{minutes}m", "exp_samples": expected})
    up = {"series": 'up{job="tally",instance="a"}', "values": "1+0x120"}
    return {"interval": "1m", "input_series": [up, *series(text)], "promql_expr_test": asked}


def main():
    with tempfile.TemporaryDirectory() as directory:
        directory, binaries = Path(directory), Path(sys.argv[1]).resolve()
        scrapes = [scrape(binaries, directory), scrape(binaries, directory)]
        file = directory / "first-scrape.yml"
        tests = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test(text) for text in scrapes]}
        file.write_text(json.dumps(tests))
        ended = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"monitoring: FAILED: alerts by the first scrape:\n{ended.stdout}{ended.stderr}")


if __name__ == "__main__":
    main()
