#!/usr/bin/env bash
# docs/own-program.md is true: a crate outside the workspace, made of the page's text, trains with two worker processes,
# to the bits of one. Its build shares target/ with the workspace, and takes the workspace's profile.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT

python3 - "$root" "$work" <<'PY'
import pathlib, re, sys

root, work = map(pathlib.Path, sys.argv[1:])
page = (root / "docs/own-program.md").read_text()
blocks = re.findall(r"^```[\w,]+\n(?:#|//) (Cargo\.toml|src/main\.rs)\n(.*?)^```$", page, re.S | re.M)
assert [name for name, _ in blocks] == ["Cargo.toml", "src/main.rs"], "the page has the two files of a crate"
(work / "src").mkdir()
for name, text in blocks:
    (work / name).write_text(text.replace("/path/to/tally", str(root)))
# Features that other members of the workspace ask of what Burn depends on too: with fewer, Burn would be compiled anew.
features = "".join(f'{name} = "*"\n' for name in ("crc32fast", "regex-syntax", "simd-adler32"))
# What a release of Tally would bring: the profile of what is built beside it.
profiles = (root / "Cargo.toml").read_text()
profiles = profiles[profiles.index("[profile.dev]"):]
with open(work / "Cargo.toml", "a") as manifest:
    manifest.write(features + "\n[workspace]\n\n" + profiles)
PY
cp Cargo.lock "$work/"
CARGO_TARGET_DIR=$target cargo build --quiet --manifest-path "$work/Cargo.toml"
line=$target/debug/line

"$line" check
train() { # WORKERS: prints the parameters' SHA-256
    local run=$work/run-$1 port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    for _ in $(seq "$1"); do
        "$line" worker --connect "127.0.0.1:$port" --backend cpu --threads 1 >"$work/worker.log" 2>&1 &
    done
    "$line" coordinator --workers "$1" --listen "127.0.0.1:$port" --http-listen 127.0.0.1:0 --run-dir "$run" \
        >"$work/coordinator.log" 2>&1 || { cat "$work/coordinator.log" >&2; return 1; }
    wait
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["parameters_sha256"])' "$run/summary.json"
}
one=$(train 1)
two=$(train 2)
[ "$one" = "$two" ] || { echo "own-program: one worker gave $one, two gave $two" >&2; exit 1; }
echo "own-program: ok: the page's crate trains, and two workers give the bits of one ($one)"
