#!/usr/bin/env bash
# Everything that is checked before a change lands, with what it needs. About 45 minutes on two cores from nothing: 7 for
# the lints, 15 to build, 8 for the GPU's kernels on a CPU, 10 for the other tests, the rest for the scripts.
set -euo pipefail
cd "$(dirname "$0")/.."

# A machine that builds once gains nothing from incremental compilation, which costs it gigabytes.
if [ -n "${CI:-}" ]; then
    export CARGO_INCREMENTAL=0
fi

# The lints and the documentation take the GPU backend in, which builds without a CUDA toolkit; whether it computes, a
# machine with a GPU tells. All other commands are for the whole workspace without it. Two sets of features are two
# builds of Burn, one of them without code; a third would cost minutes.
cuda=(--features "tally-mnist/cuda,fashion/cuda")
cargo fmt --all --check
cargo clippy --workspace --all-targets "${cuda[@]}" -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet "${cuda[@]}"
cargo test --workspace
scripts/own-program.sh
scripts/older-cpus.sh
scripts/grpc-client-tests.sh
scripts/two-hosts.sh
scripts/output-tests.sh
scripts/file-systems.sh
scripts/browser-tests.sh
scripts/monitoring-tests.sh
scripts/deploy-tests.sh
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --offline check bans licenses sources
fi
