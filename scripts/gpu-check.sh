#!/usr/bin/env bash
# Packs what checks a GPU elsewhere: one stripped binary and PyTorch's script, in target/gpu-check.tar.gz.
# On the GPU's machine, which needs neither Rust nor the internet: unpack it and run ./run.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
# Generic code that compiles to the same instructions is kept once.
cargo rustc --release -p tally-tools --features cuda --bin gpu-check -- -C link-arg=-Wl,--icf=all
pack=target/gpu-check
rm -rf "$pack" && mkdir -p "$pack"
strip -o "$pack/gpu-check" target/release/gpu-check
cp tests/pytorch/torch_peer.py "$pack/"
cat > "$pack/run.sh" <<'RUN'
#!/usr/bin/env bash
# Checks the GPU and measures it; what is found stays in report.txt, its last line is JSON.
here=$(cd "$(dirname "$0")" && pwd)
export TALLY_CACHE_DIR="${TALLY_CACHE_DIR:-$here/cache}"
peer=()
if python3 -c 'import torch' 2>/dev/null; then peer=(--peer "$here/torch_peer.py"); fi
# The run-time compiler may be there as part of PyTorch alone.
for nvrtc in $(python3 -c 'import glob, site, sys
for place in site.getsitepackages() + [site.getusersitepackages()]:
    print("\n".join(glob.glob(place + "/nvidia/*/lib")))' 2>/dev/null); do
    if compgen -G "$nvrtc/libnvrtc.so*" >/dev/null; then
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$nvrtc"
    fi
done
"$here/gpu-check" "${peer[@]}" "$@" | tee "$here/report.txt"
exit "${PIPESTATUS[0]}"
RUN
chmod +x "$pack/run.sh"
tar -C target -czf target/gpu-check.tar.gz gpu-check
size=$(stat -c %s "$pack/gpu-check")
echo "target/gpu-check.tar.gz; the binary has $((size / 1024 / 1024)) MiB"
test "$size" -lt $((60 * 1024 * 1024)) || { echo "that is over 60 MiB" >&2; exit 1; }
