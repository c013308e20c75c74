#!/usr/bin/env bash
# Writes the Grafana board to a file: deploy/grafana/dashboards/tally.json, unless told otherwise.
# What npm installs stays under target/.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=$(realpath --canonicalize-missing "${1:-$here/../dashboards/tally.json}")
there=$here/../../../target/deploy/board
mkdir -p "$there"
cp "$here"/package.json "$here"/package-lock.json "$here"/tsconfig.json "$here"/board.ts "$there/"
cd "$there"
if ! cmp --silent package-lock.json .installed; then
    npm ci --silent --no-audit --no-fund
    cp package-lock.json .installed
fi
npx tsc
node board.js "$to"
