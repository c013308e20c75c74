#!/usr/bin/env bash
# How long gradients take to be added up: the star, sharded, and PyTorch's all-reduce over gloo, in turns. Each process is
# on a host of its own (a network namespace), whose link to a bridge carries so many bits a second each way (tbf on both
# ends). A synthetic model of the reference network's size; medians of the steps.
#
#   scripts/reduce-times.sh RATE ROUNDS WORKERS…      scripts/reduce-times.sh 1gbit 2 4 8
#
# RATE can be `none`: links as fast as the machine. Needs root and iproute2; with PYTHON=…, a Python that has torch, for gloo.
# With PER_HOST=…, so many workers share a host's link; sharded steps are then measured without and with combining.
set -euo pipefail
cd "$(dirname "$0")/.."
rate=$1 rounds=$2
shift 2
parameters=${PARAMETERS:-6400000} steps=${STEPS:-24} batch=${BATCH:-64} micros=${MICROS:-10} per_host=${PER_HOST:-1}

source scripts/hosts.sh
source scripts/checks/journal.sh
work=$(mktemp -d)
trap 'remove_hosts; rm -rf "$work"' EXIT
most=0
for count in "$@"; do [ "$count" -le "$most" ] || most=$count; done
# Host `worker-n` has the address 10.62.0.(n + 1).
make_hosts "$rate" coordinator $(seq -f 'worker-%g' $(((most + per_host - 1) / per_host)))

binaries=${TALLY_BIN_DIR:-${CARGO_TARGET_DIR:-target}/debug}
sent() { ip netns exec "$hosts-coordinator" cat /sys/class/net/wire/statistics/tx_bytes /sys/class/net/wire/statistics/rx_bytes | tr '\n' ' '; }

tally() { # How, how many workers, and whether those of a host combine.
    local mode=$1 count=$2 combine=${3:-no} run=$work/run
    rm -rf "$run"
    ip netns exec "$hosts-coordinator" "$binaries/coordinator" --workers "$count" --reduce "$mode" --listen 10.62.0.1:50051 --http-listen 127.0.0.1:0 --run-dir "$run" \
        --model "synthetic:parameters=$parameters,us-per-sample=$micros" --batch-size "$batch" --train-limit $((batch * steps)) \
        --test-limit 1 --epochs 1 >"$work/coordinator.log" 2>&1 &
    local coordinator=$! worker host machine pids=()
    until grep -q 'listening on' "$work/coordinator.log" 2>/dev/null; do sleep 0.1; done
    for worker in $(seq "$count"); do
        host=$(((worker + per_host - 1) / per_host))
        machine=$([ "$combine" = yes ] && echo "$host" || echo "alone-$worker")
        ip netns exec "$hosts-worker-$host" "$binaries/worker" --connect 10.62.0.1:50051 --backend cpu --threads 1 --machine "$machine" \
            >"$work/worker-$worker.log" 2>&1 &
        pids+=($!)
    done
    # The link is read in mid-run, so that joining is not in it.
    local from to at
    local journal=$run/journal.jsonl
    until [ "$(count_events "$journal" step)" -ge 8 ]; do sleep 0.05; done
    at=$(count_events "$journal" step)
    from=$(sent)
    until [ "$(count_events "$journal" step)" -ge $((steps - 2)) ]; do sleep 0.05; done
    to=$(sent)
    to="$to $(($(count_events "$journal" step) - at))"
    local memory
    memory=$(awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$coordinator/status" "/proc/${pids[0]}/status" | paste -sd' ')
    wait "$coordinator"
    wait "${pids[@]}"
    python3 - "$journal" "$mode" "$count" "$from $to" "$memory" "$combine" <<'P'
import json, statistics, sys
journal, mode, count, link, memory, combine = sys.argv[1:]
steps = [line for line in map(json.loads, open(journal)) if line["event"] == "step"][6:]
steps = [s for s in steps if bool(s.get("owners")) == (mode == "sharded")]
link = [int(number) for number in link.split()]
mega = [(link[i + 2] - link[i]) / max(1, link[4]) / 1e6 for i in (0, 1)]
ms = lambda key: round(1e3 * statistics.median(s[key] for s in steps), 1)
title = "combined" if combine == "yes" else mode
print(f"{count:>3} workers  {title:8} step {ms('seconds'):8} ms  transfer {ms('transfer_seconds'):8} ms  "
      f"coordinator's link out {mega[0]:6.1f} in {mega[1]:6.1f} MB a step, "
      f"coordinator and a worker at their peak {memory.replace(' ', ' and ')} MiB  ({len(steps)} steps)", flush=True)
P
}
gloo() {
    local count=$1 rank pids=()
    for rank in $(seq 0 $((count - 1))); do
        GLOO_SOCKET_IFNAME=wire ip netns exec "$hosts-worker-$((rank / per_host + 1))" "$PYTHON" tests/pytorch/allreduce.py "$rank" "$count" 10.62.0.2 "$parameters" 16 2>>"$work/gloo.log" &
        pids+=($!)
    done
    wait "${pids[@]}"
}
for count in "$@"; do
    for _ in $(seq "$rounds"); do
        tally star "$count"
        tally sharded "$count"
        [ "$per_host" = 1 ] || tally sharded "$count" yes
        [ -z "${PYTHON:-}" ] || gloo "$count"
    done
done
