#!/usr/bin/env bash
# Packs what checks a GPU elsewhere: one stripped binary, PyTorch's script and run.sh, in target/gpu-check.tar.gz.
# On the GPU's machine, which needs neither Rust nor the internet: unpack it and run gpu-check/run.sh first, then
# gpu-check/run.sh speed.
set -euo pipefail
cd "$(dirname "$0")/.."
# With Tally's kernels alone, which the tests have anyway. Generic code that compiles to the same instructions is kept once.
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
