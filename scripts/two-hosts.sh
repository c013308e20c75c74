#!/usr/bin/env bash
# Three hosts, as network namespaces joined by a bridge: a coordinator, and two with a worker each. In
# mid-run one worker is killed, and the other host's link goes down for a while. The run must end
# in the bits of the same run on one machine. Needs root, iproute2 and network namespaces, and is
# skipped without. Under a minute once built.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    echo "two hosts: skipped, for $*"
    exit 0
}
[ "$(id -u)" = 0 ] || skip "this needs root"
command -v ip >/dev/null || skip "there is no ip (Debian's package iproute2)"

source scripts/hosts.sh
source scripts/checks/journal.sh
work=$(mktemp -d)
running=()
clean_up() {
    for process in "${running[@]}"; do
        kill -9 "$process" 2>/dev/null || true
    done
    remove_hosts
    rm -rf "$work"
}
trap clean_up EXIT

make_hosts none coordinator left right 2>"$work/refused" \
    || skip "this machine allows no network namespaces: $(head -1 "$work/refused")"

binaries=${TALLY_BIN_DIR:-}
if [ -z "$binaries" ]; then
    cargo build --quiet --workspace --bin coordinator --bin worker
    binaries=${CARGO_TARGET_DIR:-target}/debug
fi
fail() {
    echo "two hosts: $*" >&2
    tail -n 20 "$work"/*.log >&2
    exit 1
}
journal=$work/run/journal.jsonl
steps() { count_events "$journal" step; }
# Until a condition holds; far longer than it takes, so that only a hang reaches the end.
wait_until() {
    local what=$1 tries=0
    shift
    until "$@"; do
        tries=$((tries + 1))
        [ "$tries" -lt 2400 ] || fail "after two minutes still not: $what"
        kill -0 "$coordinator" 2>/dev/null || fail "the run was over before: $what"
        sleep 0.05
    done
}
has_steps() { [ "$(steps)" -ge "$1" ]; }
# Whether a line like this came after so many lines.
said() { tail -n "+$(($1 + 1))" "$journal" | grep -Eq "$2"; }

options=(--model mlp --epochs 3 --test-limit 200 --workers 2)
"$binaries/coordinator" "${options[@]}" --local --backend cpu --threads 1 --listen 127.0.0.1:0 \
    --http-listen 127.0.0.1:0 --run-dir "$work/local" >"$work/local.log" 2>&1 || fail "the run on one machine failed"

ip netns exec "$hosts-coordinator" "$binaries/coordinator" "${options[@]}" --listen 0.0.0.0:50051 --http-listen 127.0.0.1:0 \
    --run-dir "$work/run" >"$work/coordinator.log" 2>&1 &
coordinator=$!
running+=("$coordinator")
worker() { # On a host, with a name.
    ip netns exec "$hosts-$1" "$binaries/worker" --connect 10.62.0.1:50051 --backend cpu --threads 1 \
        --name "$2" >"$work/$2.log" 2>&1 &
    running+=("$!")
}
worker left first
first=$!
worker right second

wait_until "sixty steps" has_steps 60
lines=$(wc -l <"$journal")
kill -9 "$first"
{ wait "$first" || true; } 2>/dev/null
wait_until "the loss of a killed worker" said "$lines" '"event":"lost".*"worker":"first"'
at=$(steps)
wait_until "steps without it" has_steps $((at + 30))
lines=$(wc -l <"$journal")
worker left third
wait_until "its successor" said "$lines" '"event":"join".*"worker":"third"'
lines=$(wc -l <"$journal")
wait_until "a step of both" said "$lines" '"event":"step".*"workers":2'
echo "two hosts: a worker was killed at step $at, and another took its place"

at=$(steps)
lines=$(wc -l <"$journal")
in_bridge link set right down
wait_until "somebody else to compute what the unplugged host was to" said "$lines" '"event":"(straggler|lost)".*"worker":"second"'
wait_until "steps without the unplugged host" has_steps $((at + 50))
in_bridge link set right up
lines=$(wc -l <"$journal")
wait_until "a step of both hosts" said "$lines" '"event":"step".*"workers":2'
echo "two hosts: the other's link was down from step $at, for $(($(steps) - at)) steps"

wait "$coordinator" || fail "the run failed"
bits() { sed -n 's/.*"parameters_sha256": *"\([0-9a-f]*\)".*/\1/p' "$work/$1/summary.json"; }
if [ -z "$(bits run)" ] || [ "$(bits run)" != "$(bits local)" ]; then
    fail "parameters $(bits run), and on one machine $(bits local)"
fi
grep -q '"samples_lost": 0' "$work/run/summary.json" || fail "samples were lost"
echo "two hosts: $(steps) steps, and the bits of the run on one machine: $(bits run)"
