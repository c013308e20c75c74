#!/usr/bin/env bash
# Terminals that take nothing, readers that go away, full disks below a log, signals, a token that is a pipe, a
# disk that does not answer: what they may cost a run, and what not. Under a minute once built.
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=${TALLY_BIN_DIR:-}
if [ -z "$binaries" ]; then
    cargo build --quiet --workspace --bin coordinator --bin worker
    binaries=${CARGO_TARGET_DIR:-target}/debug
fi
python3 scripts/checks/output.py "$binaries"
