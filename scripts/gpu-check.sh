#!/usr/bin/env bash
# Packs the check of a GPU in target/gpu-check.tar.gz: one stripped binary, run.sh, PyTorch's script and the kernels. The GPU's
# machine needs neither Rust nor the internet: unpack it there and run `gpu-check/run.sh first`, then `gpu-check/run.sh speed`.
set -euo pipefail
cd "$(dirname "$0")/.."
# The binary has Tally's kernels, as the tests have them, and not Burn's. Generic code that compiles to the same instructions is
# kept once.
cargo rustc --release -p tally-tools --bin gpu-check -- -C link-arg=-Wl,--icf=all
pack=target/gpu-check
rm -rf "$pack" && mkdir -p "$pack"
strip -o "$pack/gpu-check" target/release/gpu-check
cp tests/pytorch/torch_peer.py "$pack/"
cp scripts/gpu-check-run.sh "$pack/run.sh"
cp -r mnist/src/network/gpu/kernels "$pack/"
tar -C target -czf target/gpu-check.tar.gz gpu-check
size=$(stat -c %s target/gpu-check.tar.gz)
echo "target/gpu-check.tar.gz has $((size / 1024)) KiB"
test "$size" -lt $((48 * 1024 * 1024)) || { echo "that is over 48 MiB" >&2; exit 1; }
