#!/usr/bin/env bash
# SUM-1 on processors that are not here: runs a whole gradient of the reference network under
# qemu's models of older ones. Each must choose the path that it has, by the true detection, and
# give the digest of this machine. Needs qemu-x86_64 (Debian's qemu-user), and is skipped without.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -m)" != x86_64 ]; then
    echo "older CPUs: skipped, for this is no x86-64 machine"
    exit 0
fi
if ! command -v qemu-x86_64 >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install --yes --quiet qemu-user >/dev/null 2>&1 || true
fi
if ! command -v qemu-x86_64 >/dev/null; then
    echo "older CPUs: skipped, for there is no qemu-x86_64 (Debian's package qemu-user)"
    exit 0
fi

cargo build --quiet --workspace --example gradient_bits
program=${CARGO_TARGET_DIR:-target}/debug/examples/gradient_bits
unset TALLY_SIMD
read -r path digest < <("$program")
echo "older CPUs: here it is $path, and the gradient $digest"

check() { # A model of qemu's, and the path that it has.
    local told
    # Standard error has a line for each feature that the model lists and qemu lacks.
    told=$(qemu-x86_64 -cpu "$1" "$program" 2>/dev/null) || told="no answer"
    if [ "$told" != "$2 $digest" ]; then
        echo "older CPUs: $1 should have said '$2 $digest', and said '$told'" >&2
        return 1
    fi
    echo "older CPUs: $1 is $told"
}

check Haswell avx2 & haswell=$!      # AVX2 and FMA, no AVX-512
check SandyBridge portable & bridge=$! # AVX, no AVX2, no FMA
failed=0
wait $haswell || failed=1
wait $bridge || failed=1
exit $failed
