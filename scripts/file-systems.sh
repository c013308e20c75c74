#!/usr/bin/env bash
# Runs on file systems that lack something: symbolic links, locks, fsync, room. What a file system refuses is
# injected with strace, or comes of a small tmpfs in a mount namespace. Under a minute, once built.
set -euo pipefail
cd "$(dirname "$0")/.."

binaries=${TALLY_BIN_DIR:-}
if [ -z "$binaries" ]; then
    cargo build --quiet --workspace --bin coordinator --bin worker
    binaries=${CARGO_TARGET_DIR:-target}/debug
fi
coordinator=$(realpath "$binaries/coordinator")
worker=$(realpath "$binaries/worker")
command -v strace >/dev/null || { echo "file-systems: strace is missing: apt-get install strace" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

small=(--local --workers 1 --listen 127.0.0.1:0 --http-listen 127.0.0.1:0
  --model "synthetic:parameters=1000,us-per-sample=0" --train-limit 640 --test-limit 5 --batch-size 64)
failed=0

wrong() { echo "file-systems: $1" >&2; failed=1; }
# A run under strace with an injection must exit 0, and say NOTE once.
without() {
  local name=$1 inject=$2 note=$3 status=0
  strace -f -qq -o /dev/null -e "inject=$inject" \
    "$coordinator" "${small[@]}" --epochs 6 --keep-checkpoints 2 --run-dir "$name" >"$name.out" 2>"$name.err" || status=$?
  [ "$status" = 0 ] || { wrong "without $name: exit $status: $(tail -n 1 "$name.err")"; return; }
  [ -z "$note" ] || [ "$(grep -c "$note" "$name.err")" = 1 ] || wrong "without $name: not one \"$note\": $(cat "$name.err")"
  grep -q '"outcome": "done"' "$name/summary.json" || wrong "without $name: not done"
}

without links symlink,symlinkat:error=EPERM "makes no symbolic links"
[ "$(ls -d links/checkpoints/step-* | wc -l)" -le 3 ] || wrong "without links: nothing was pruned"
for marked in best last; do
  [ -f "links/checkpoints/$marked" ] || wrong "without links: no $marked"
  "$worker" evaluate --checkpoint "links/checkpoints/$marked" >/dev/null || wrong "without links: $marked is not followed"
done
last=$(sed -n 's/^the model is in \(.*\), the best one in .*/\1/p' links.out)
[ -f "$last/model.safetensors" ] || wrong "without links: the model is not in \"$last\""
for error in ENOSYS ENOLCK EOPNOTSUPP; do
  without "locks-$error" "flock:error=$error" "has no locks"
done
without fsync fsync,fdatasync:error=EINVAL ""

# Where there is room, then not, then again: as nobody, a user's own mount namespace is enough.
cat >full.sh <<'INNER'
set -eu
mount -t tmpfs -o size=512k none "$1"
cd "$1"
shift
# Its messages go where there is room.
coordinator=$1 good=$2 error=$RUN.error
shift 2
cp "$good" report.html
mkdir kept && cp report.html kept/before.html
dd if=/dev/zero of=filler bs=1k 2>/dev/null || true
if "$coordinator" "$@" --epochs 1 --run-dir run 2>"$error"; then echo "a start on a full disk succeeded"; fi
if "$coordinator" report "$RUN" --pictures 0 --out report.html 2>"$error"; then echo "a report on a full disk succeeded"; fi
cmp -s report.html kept/before.html || echo "a good report was destroyed"
grep -q report.html "$error" || echo "the report's error does not name the file: $(cat "$error")"
rm filler kept/before.html report.html
"$coordinator" "$@" --epochs 1 --run-dir run >/dev/null 2>"$error" || echo "the same command fails once there is room: $(tail -n 1 "$error")"
INNER
mkdir full
"$coordinator" report links --pictures 0 --out good.html >/dev/null
told=$(RUN=$work/links unshare --map-root-user --mount bash full.sh full "$coordinator" "$work/good.html" "${small[@]}" 2>&1) ||
  wrong "a full disk: $told"
[ -z "$told" ] || wrong "a full disk: $told"

[ "$failed" = 0 ] && echo "file systems: all that was lacking was done without"
exit "$failed"
