#!/usr/bin/env bash
# deploy/slurm/tally.sbatch with stand-ins for srun, scontrol and squeue: a job that is preempted in the middle of its
# run puts itself back into the queue, and its second start ends the run. slurm.sh BINARIES
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$1/coordinator" "$1/worker" "$work/bin/"
cat >"$work/bin/scontrol" <<'END'
#!/bin/bash
case $1 in
show) echo 127.0.0.1 ;;
requeue) echo "$2" >>"$SLURM_SUBMIT_DIR/requeued" ;;
esac
END
printf '#!/bin/bash\necho RUNNING\n' >"$work/bin/squeue"
cat >"$work/bin/srun" <<'END'
#!/bin/bash
# Two nodes, each with a task of its own; srun hands signals on.
while [[ $1 == --* ]]; do shift; done
"$@" --name node-1 --backend cpu --threads 1 & one=$!
"$@" --name node-2 --backend cpu --threads 1 & two=$!
trap 'kill -TERM $one $two' TERM
wait $one; wait $two
wait $one $two 2>/dev/null || true
END
chmod +x "$work/bin/scontrol" "$work/bin/squeue" "$work/bin/srun"

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# To be called in a subshell, which becomes the job.
job() {
    exec env PATH="$work/bin:$PATH" SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2 SLURM_JOB_NODELIST=node SLURM_SUBMIT_DIR="$work" TALLY_PORT="$port" \
        bash deploy/slurm/tally.sbatch --model synthetic:parameters=50000,us-per-sample=800 --batch-size 64 --train-limit 500 --test-limit 12 --epochs 6
}
journal=$work/runs/slurm-7/journal.jsonl
job >"$work/first.log" 2>&1 & first=$!
for _ in $(seq 1200); do
    [ "$(grep -c '"event":"step"' "$journal" 2>/dev/null || true)" -ge 5 ] 2>/dev/null && break
    sleep 0.1
done
# As preemption does, to every process of the script; between the two the step in flight goes on.
kill -TERM "$(pgrep --parent $first --full coordinator)"
sleep 0.01
kill -TERM $first
wait $first || { cat "$work/first.log" >&2 && exit 1; }
compgen -G "$work/runs/slurm-7/checkpoints/step-*/model.safetensors" >/dev/null || { echo "slurm: FAILED: no checkpoint" >&2 && exit 1; }
grep -q '^7$' "$work/requeued" || { echo "slurm: FAILED: the job did not put itself back" >&2 && cat "$work/first.log" >&2 && exit 1; }
(job) >"$work/second.log" 2>&1 || { cat "$work/second.log" >&2 && exit 1; }
grep -q '"outcome": *"done"' "$work/runs/slurm-7/summary.json" || { echo "slurm: FAILED: the run is not done" >&2 && exit 1; }
[ "$(wc -l <"$work/requeued")" = 1 ] || { echo "slurm: FAILED: a job that was done put itself back" >&2 && exit 1; }
echo "slurm: preempted, put back, done"
