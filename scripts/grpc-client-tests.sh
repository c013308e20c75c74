#!/usr/bin/env bash
# Reflection, health, tokens and TLS as a generic gRPC client from PyPI meets them: one that has never seen
# Tally's .proto file. A few seconds once things are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/setup.sh

cargo build --quiet --workspace --bin coordinator --bin worker
python3 tests/generic-client/client.py "${CARGO_TARGET_DIR:-target}/debug"
