#!/usr/bin/env bash
# Prometheus and Grafana: the configuration, the alert rules and their unit tests by promtool; the board
# is what its program writes; and a real Prometheus scrapes a real run with a killed worker until every
# expression of the board and of the rules has given a number. About a minute once things are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/setup.sh
if ! need prometheus prometheus; then
    echo "monitoring: skipped, for there is no prometheus (Debian's package prometheus)"
    exit 0
fi
passed=0
pass() { passed=$((passed + 1)) && echo "monitoring: ok: $*"; }

promtool check config deploy/prometheus/prometheus.yml >/dev/null
promtool check rules deploy/prometheus/rules/tally.yml >/dev/null
pass "promtool takes the configuration and the rules"
promtool test rules deploy/prometheus/tests/tally.yml >/dev/null
pass "promtool's unit tests of the rules: every alert fires when it should, and is silent when it should be"
if command -v npm >/dev/null; then
    deploy/grafana/board/build.sh target/deploy/board/tally.json
    cmp target/deploy/board/tally.json deploy/grafana/dashboards/tally.json
    pass "the board compiles against Grafana's types, and is the one that is committed"
else
    echo "monitoring: the board is not made again, for there is no npm"
fi

cargo build --quiet --workspace --bin coordinator --bin worker
python3 scripts/checks/first_scrape.py "${CARGO_TARGET_DIR:-target}/debug"
pass "what is scraped before anything has happened is enough for the alerts of a run that does not move"
python3 scripts/checks/monitoring.py "${CARGO_TARGET_DIR:-target}/debug"
pass "a real Prometheus has a number for every expression"
echo "monitoring: $passed passed, 0 failed"
