#!/usr/bin/env bash
# Slurm, for real: a controller and two nodes on this machine run deploy/slurm/tally.sbatch, preempt it, let it reach its
# time limit, cancel it, and lose a node. About two minutes.
#
# Needs root and Debian's slurm-wlm and munge, which it installs where they are missing. All of it lives in namespaces of
# its own (network, processes, mounts), so that neither a Slurm of this machine nor anybody's ports are touched, and
# nothing is left when it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/try.sh

if [ -z "${APART:-}" ]; then
    require slurmctld:slurm-wlm slurmd:slurm-wlm sbatch:slurm-wlm munged:munge
    apart=(unshare --net --uts --mount --pid --fork --kill-child --mount-proc)
    build_apart "${apart[@]}"
    APART=1 exec "${apart[@]}" bash "deploy/${0##*/}" "$@"
fi

script=$PWD/deploy/slurm/tally.sbatch
# Ordinary users of the cluster must reach it.
work=$(mktemp -d)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
fail() {
    say "FAILED: $*" >&2
    tail -n 15 "$work"/home/*.out "$work"/*.log >&2 || true
    exit 1
}

# Two nodes of one core each, whose names lead to this machine: by an address that is not the loopback's, without which
# the C library takes a machine for one without IPv4.
ip link set lo up
ip link add cluster type bridge
ip addr add 10.65.0.1/24 dev cluster
ip link set cluster up
hostname tally-head
{ cat /etc/hosts && echo "10.65.0.1 tally-head node1 node2"; } >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts
mkdir -p "$work/bin" "$work/state" "$work/spool" "$work/home"
cp "$binaries/coordinator" "$binaries/worker" "$work/bin/"
chown nobody "$work/home"
cat >"$work/slurm.conf" <<END
ClusterName=tally
SlurmctldHost=tally-head(10.65.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
JobCompType=jobcomp/filetxt
JobCompLoc=$work/completed
NodeName=node[1-2] NodeHostname=tally-head NodeAddr=10.65.0.1 Port=[17001-17002] CPUs=1 RealMemory=1000
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
END
export SLURM_CONF=$work/slurm.conf
mkdir -m 755 "$work/munge"
head -c 1024 /dev/urandom >"$work/munge.key" && chmod 400 "$work/munge.key"
munged --force --socket "$work/munge/socket" --key-file "$work/munge.key" --pid-file "$work/munge/pid" --log-file "$work/munge.log" --seed-file "$work/munge.seed" \
    || fail "munged does not start"
for daemon in slurmctld "slurmd -N node1" "slurmd -N node2"; do
    timeout 20 $daemon >>"$work/daemons.log" 2>&1 </dev/null || fail "$daemon does not start"
done

nodes_are() { [ "$(sinfo --noheader --partition low --format %T | sort -u)" = "$1" ]; }
wait_until "two idle nodes" nodes_are idle

submit() { # OPTIONS OF SBATCH -- ARGUMENTS: prints the job's number
    local options=()
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    (cd "$work/home" && env -i PATH="$work/bin:/usr/bin:/bin" HOME="$work/home" SLURM_CONF="$SLURM_CONF" setpriv --reuid nobody --regid nogroup --clear-groups \
        sbatch --parsable --nodes 2 --output "$work/home/%j.out" "${options[@]}" "$script" "$@")
}
state() { squeue --noheader --states all --format %T --jobs "$1"; }
is() { [ "$(state "$1")" = "$2" ]; }
events() { grep -cs "\"event\":\"$2\"" "$work/home/runs/slurm-$1/journal.jsonl" || true; }
steps() { events "$1" step; }
has_steps() { [ "$(steps "$1")" -ge "$2" ]; }
joined() { [ "$(events "$1" join)" -ge "$2" ]; }
done_() { grep -qs '"outcome": *"done"' "$work/home/runs/slurm-$1/summary.json"; }
training=(--model "synthetic:parameters=1000,us-per-sample=200" --train-limit 8000 --test-limit 8 --batch-size 8)
long=("${training[@]}" --epochs 100000)
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p'; }
requeued() { [ "$(restarts "$1")" = 1 ] && is "$1" PENDING; }
checkpoints() { find "$work/home/runs/slurm-$1/checkpoints" -name model.safetensors 2>/dev/null | wc -l; }
# Slurm has a job that was put back wait for two minutes, for the sake of slow epilogs.
at_once() { scontrol update JobId="$1" StartTime=now; }

job=$(submit -- "${training[@]}" --epochs 4)
wait_until "a running job" is "$job" RUNNING
wait_until "a worker on both nodes" joined "$job" 2
wait_until "steps" has_steps "$job" 20
high=$(sbatch --parsable --partition high --nodes 2 --exclusive --output /dev/null --wrap 'sleep 1')
wait_until "the preempted job's return to the queue" requeued "$job"
[ "$(checkpoints "$job")" -ge 1 ] || fail "the preempted job wrote no checkpoint"
wait_until "the end of the job that took its place" is "$high" COMPLETED
at=$(steps "$job")
at_once "$job"
wait_until "the end of the preempted job" is "$job" COMPLETED
done_ "$job" || fail "the job is completed and its run is not done"
[ "$(restarts "$job")" = 1 ] || fail "the job was put back $(restarts "$job") times"
pass "a job that is preempted writes a checkpoint, is PENDING again, and goes on at step $at to COMPLETED"

job=$(submit --time 1 --signal B:TERM@50 -- "${long[@]}")
wait_until "steps" has_steps "$job" 5
wait_until "its return to the queue before its time limit" requeued "$job"
[ "$(checkpoints "$job")" -ge 1 ] || fail "the job wrote no checkpoint before its time limit"
at=$(steps "$job")
at_once "$job"
wait_until "steps of its second start" has_steps "$job" $((at + 5))
scancel "$job"
wait_until "the cancelled job" is "$job" CANCELLED
pass "a job that nears its time limit writes a checkpoint, is PENDING again, and goes on"

job=$(submit -- "${long[@]}")
wait_until "steps" has_steps "$job" 20
scancel "$job"
wait_until "the cancelled job" is "$job" CANCELLED
wait_until "idle nodes" nodes_are idle
[ "$(checkpoints "$job")" -ge 1 ] || fail "the cancelled job wrote no checkpoint"
{ is "$job" CANCELLED && [ "$(restarts "$job")" = 0 ]; } || fail "the cancelled job is $(state "$job")"
pass "a job that is cancelled writes a checkpoint and is CANCELLED, not put back"

job=$(submit -- "${training[@]}" --epochs 6)
wait_until "a worker on both nodes" joined "$job" 2
wait_until "steps" has_steps "$job" 20
# The second node as a power cut leaves it: its daemon, its step and its worker are gone at once.
task=$(grep -lsz '^SLURM_NODEID=1$' /proc/[0-9]*/environ | head -n 1 | cut -d / -f 3)
kill -KILL "$(cat "$work/slurmd-node2.pid")" "$(ps -o ppid= -p "$task" | tr -d ' ')" "$task"
lost() { [ "$(events "$job" lost)" -ge 1 ]; }
wait_until "the loss of its worker" lost
at=$(steps "$job")
wait_until "the end of the run without it" done_ "$job"
wait_until "the end of the job" is "$job" COMPLETED
pass "a node that fails costs the run nothing: lost at step $at, done on the other, COMPLETED"
say "$passed passed, 0 failed"
