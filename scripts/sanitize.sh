#!/usr/bin/env bash
# AddressSanitizer over the kernels: their tests, which take every path of this processor
# (`TALLY_SIMD` decides what a path is where a test takes only one). Not a part of test.sh: it
# compiles everything a second time, with a compiler switch that is not stable, for code
# that changes seldom. Run it after a change in worker/kernels or in numerics/src/simd.rs.
set -euo pipefail
cd "$(dirname "$0")/.."

# The stable compiler has the sanitizer's run time, and this lets it take the switch.
export RUSTC_BOOTSTRAP=1
# Naming the target keeps build scripts and macros without it.
target=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Zsanitizer=address"
for path in avx512 avx2 portable; do
    echo "AddressSanitizer, TALLY_SIMD=$path"
    TALLY_SIMD=$path cargo test --quiet --package tally-kernels --package tally-numerics \
        --lib --tests --target "$target" --target-dir target/sanitizer "$@"
done
