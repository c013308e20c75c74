#!/usr/bin/env bash
# Tests the dashboard in Chromium, over real runs: see tests/browser. Needs Debian or a relative (it installs Chromium
# and Node where they are missing) and what cargo needs; TALLY_CHROMIUM names another Chromium, TALLY_BIN_DIR binaries
# that are built already.
set -euo pipefail
cd "$(dirname "$0")/.."

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

needed=()
[ -n "${TALLY_CHROMIUM:-}" ] || command -v chromium >/dev/null || needed+=(chromium)
command -v node >/dev/null || needed+=(nodejs)
command -v npm >/dev/null || needed+=(npm)
if [ ${#needed[@]} -gt 0 ]; then
  as_root apt-get update -q
  as_root apt-get install -y -q --no-install-recommends "${needed[@]}"
fi
# The page's modules are tested as they are, and older versions of Node don't tell a module by its text.
node -e 'const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19) || (major === 22 && minor < 12)) {
  console.error(`error: Node ${process.versions.node} is too old for these tests; install 20.19, 22.12 or newer`);
  process.exit(1);
}'

if [ -z "${TALLY_BIN_DIR:-}" ]; then
  cargo build --quiet --workspace --bin coordinator --bin worker
fi
cd tests/browser
npm ci --no-audit --no-fund --loglevel=error
npm test
