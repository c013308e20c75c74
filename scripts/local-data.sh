#!/usr/bin/env bash
# What a data set of 10 GB costs the coordinator: shipped by it, and read by each of two workers from a copy of its own.
# Beside it, a data set of 0.1 GB. The files are sparse. Each process is on a host of its own (a network namespace), so
# that the coordinator's link can be counted.
#
#   scripts/local-data.sh [STEPS]      200 if not given
#
# Needs root and iproute2.
set -euo pipefail
cd "$(dirname "$0")/.."
steps=${1:-200}

source scripts/hosts.sh
source scripts/checks/journal.sh
work=$(mktemp -d)
trap 'remove_hosts; rm -rf "$work"' EXIT
make_hosts none coordinator first second

cargo build --quiet --workspace --bin large-items
program=${CARGO_TARGET_DIR:-target}/debug/large-items

sent() { ip netns exec "$hosts-coordinator" cat /sys/class/net/wire/statistics/tx_bytes; }
done_steps() { count_events "$work/run/journal.jsonl" step; }

train() { # How the data comes, its size, and epochs enough for the steps.
    local data=$1 size=$2 epochs=$3
    rm -rf "$work/run"
    rm -f "$work/items"
    truncate -s "$size" "$work/items"
    ip netns exec "$hosts-coordinator" "$program" coordinator --workers 2 --data "$data" --file "$work/items" \
        --epochs "$epochs" --listen 10.62.0.1:50051 --http-listen 127.0.0.1:0 --run-dir "$work/run" \
        >"$work/coordinator.log" 2>&1 &
    local coordinator=$! host pids=()
    for host in first second; do
        ip netns exec "$hosts-$host" "$program" worker --connect 10.62.0.1:50051 --backend cpu --threads 1 \
            >"$work/$host.log" 2>&1 &
        pids+=($!)
    done
    until [ "$(done_steps)" -ge 10 ]; do
        kill -0 "$coordinator" || { tail -n 20 "$work"/*.log >&2; return 1; }
        sleep 0.02
    done
    local from at to end memory
    at=$(done_steps)
    from=$(sent)
    until [ "$(done_steps)" -ge "$steps" ]; do sleep 0.02; done
    end=$(done_steps)
    to=$(sent)
    memory=$(awk '/VmHWM/ { print int($2 / 1024) }' "/proc/$coordinator/status" "/proc/${pids[0]}/status" | paste -sd' ')
    kill "$coordinator" # It ends with a checkpoint, and its workers with it.
    wait "$coordinator" "${pids[@]}" || true
    python3 - "$work/run/journal.jsonl" "$data, $size" "$memory" $(((to - from) / (end - at))) <<'P'
import json, statistics, sys
journal, title, memory, sent = sys.argv[1:]
steps = [line["seconds"] for line in map(json.loads, open(journal)) if line["event"] == "step"][5:]
print(f"{title:14} step {1e3 * statistics.median(steps):6.1f} ms, {int(sent) / 1e3:8.1f} kB a step out of the coordinator, "
      f"coordinator and a worker at their peak {memory.replace(' ', ' and ')} MiB", flush=True)
P
}
train shipped 10G 1
train local 10G 1
train local 100M $((steps / 10 + 1))
