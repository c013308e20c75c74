#!/usr/bin/env bash
# Slurm, for real: a controller, its accounts and four nodes on this machine run deploy/slurm/tally.sbatch, preempt it, let it
# come near its time limit and reach it, cancel it, and lose a node. Two minutes.
#
# Needs root and Debian's slurm-wlm, slurmdbd, munge and mariadb-server-core, which it installs where they are missing. All of it lives in namespaces of
# its own (network, processes, mounts), so that neither a Slurm of this machine nor anybody's ports are touched, and
# nothing is left when it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/try.sh
. scripts/checks/journal.sh

if [ -z "${APART:-}" ]; then
    require slurmctld:slurm-wlm slurmd:slurm-wlm sbatch:slurm-wlm munged:munge slurmdbd:slurmdbd mariadbd:mariadb-server-core
    apart --net --uts
    exit
fi

script=$PWD/deploy/slurm/tally.sbatch
# Ordinary users of the cluster must reach it.
work=$APART
chmod 755 "$work"
fail() {
    tail -n 15 "$work"/home/*.out "$work"/*.log >&2 || true
    say "FAILED: $*" >&2
    exit 1
}

unusable() {
    tail -n 5 "$work"/*.log >&2 || true
    skip "$* on this machine"
}

# Four nodes of one core each, whose names lead to this machine: by an address that is not the loopback's, without which
# the C library takes a machine for one without IPv4.
ip link set lo up
ip link add cluster type bridge
ip addr add 10.65.0.1/24 dev cluster
ip link set cluster up
hostname tally-head
{ cat /etc/hosts && echo "10.65.0.1 tally-head node1 node2 node3 node4"; } >"$work/hosts"
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
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=tally-head
AccountingStoragePass=$work/munge/socket
NodeName=node[1-4] NodeHostname=tally-head NodeAddr=10.65.0.1 Port=[17001-17004] CPUs=1 RealMemory=1000
PartitionName=low Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=short Nodes=node[3-4] MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=9
END
cat >"$work/slurmdbd.conf" <<END
DbdHost=tally-head
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
LogFile=$work/slurmdbd.log
PidFile=$work/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
END
chmod 600 "$work/slurmdbd.conf"
export SLURM_CONF=$work/slurm.conf
mkdir -m 755 "$work/munge"
head -c 1024 /dev/urandom >"$work/munge.key" && chmod 400 "$work/munge.key"
munged --force --socket "$work/munge/socket" --key-file "$work/munge.key" --pid-file "$work/munge/pid" --log-file "$work/munge.log" --seed-file "$work/munge.seed" \
    || unusable "munged does not start"
mariadb-install-db --no-defaults --user=root --datadir="$work/accounts" --skip-test-db >"$work/mariadb.log" 2>&1 || unusable "mariadb-install-db makes no database"
mariadbd --no-defaults --user=root --datadir="$work/accounts" --socket="$work/accounts.socket" --bind-address=127.0.0.1 --skip-grant-tables >>"$work/mariadb.log" 2>&1 &
database() { : </dev/tcp/127.0.0.1/3306; }
wait_until "the accounts' database" database
timeout 20 slurmdbd >>"$work/daemons.log" 2>&1 </dev/null || unusable "slurmdbd does not start"
accounts() { sacctmgr --immediate --quiet add cluster tally || [ -n "$(sacctmgr --noheader list cluster tally)" ]; }
wait_until "the accounts" accounts
for daemon in slurmctld "slurmd -N node"{1,2,3,4}; do
    # shellcheck disable=SC2086 # Words.
    timeout 20 $daemon >>"$work/daemons.log" 2>&1 </dev/null || unusable "$daemon does not start"
done

nodes_are() { [ "$(sinfo --noheader --partition low --format %T | sort -u)" = "$1" ]; }
wait_until "idle nodes" nodes_are idle

submit() { # OPTIONS OF SBATCH -- ARGUMENTS: prints the job's number
    local options=()
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    (cd "$work/home" && env -i PATH="$work/bin:/usr/bin:/bin" HOME="$work/home" SLURM_CONF="$SLURM_CONF" TALLY_PORT="${TALLY_PORT:-50051}" ${TALLY_RUN_DIR:+TALLY_RUN_DIR="$TALLY_RUN_DIR"} setpriv --reuid nobody --regid nogroup --clear-groups \
        sbatch --parsable --nodes 2 --output "$work/home/%j.out" "${options[@]}" "$script" "$@")
}
state() { squeue --noheader --states all --format %T --jobs "$1"; }
is() { [ "$(state "$1")" = "$2" ]; }
events() { count_events "$work/home/runs/slurm-$1/journal.jsonl" "$2"; }
steps() { events "$1" step; }
has_steps() { [ "$(steps "$1")" -ge "$2" ]; }
joined() { [ "$(events "$1" join)" -ge "$2" ]; }
done_() { grep -qs '"outcome": *"done"' "$work/home/runs/slurm-$1/summary.json"; }
training=(--model "synthetic:parameters=1000,us-per-sample=200" --train-limit 8000 --test-limit 8 --batch-size 8)
long=("${training[@]}" --epochs 100000)
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p'; }
requeued() { [ "$(restarts "$1")" = 1 ] && [ "$(squeue --noheader --format "%T %r" --jobs "$1")" = "PENDING BeginTime" ]; }
checkpoints() { find "$work/home/runs/slurm-$1/checkpoints" -name model.safetensors 2>/dev/null | wc -l; }
# Slurm has a job that was put back wait for two minutes, for the sake of slow epilogs.
# A node refuses a job that comes back within the second in which its credential was revoked.
at_once() {
    sleep 3
    scontrol update JobId="$1" StartTime=now
}
# What sacct says of each start of a job, once the accounts have it.
starts() { sacct --duplicates --allocations --noheader --parsable2 --format State --jobs "$1" | sed 's/ by .*//' | paste --serial --delimiters ' '; }
has_starts() { [[ "$(starts "$1")" =~ ^$2$ ]]; }
recorded() { wait_until "'$2' of job $1 in sacct" has_starts "$1" "$2"; }

# On the two other nodes, meanwhile: a job that gets no notice (SIGCONT does nothing).
unwarned=$(TALLY_PORT=50061 submit --partition short --time 1 --signal B:CONT@10 -- "${long[@]}")

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
recorded "$job" "PREEMPTED COMPLETED"
pass "a job that is preempted writes a checkpoint, is PENDING again, and goes on at step $at to COMPLETED"

# Slurm looks every half minute whose notice is due within the next: this one comes 20 to 50 seconds after the start.
job=$(submit --time 1 --signal B:TERM@10 -- "${long[@]}")
wait_until "steps" has_steps "$job" 5
wait_until "its return to the queue before its time limit" requeued "$job"
[ "$(checkpoints "$job")" -ge 1 ] || fail "the job wrote no checkpoint before its time limit"
at=$(steps "$job")
at_once "$job"
wait_until "steps of its second start" has_steps "$job" $((at + 5))
scancel "$job"
wait_until "the cancelled job" is "$job" CANCELLED
recorded "$job" "REQUEUED CANCELLED"
pass "a job that nears its time limit writes a checkpoint, is PENDING again, and goes on"

job=$(submit -- "${long[@]}")
wait_until "steps" has_steps "$job" 20
scancel "$job"
wait_until "the cancelled job" is "$job" CANCELLED
wait_until "idle nodes" nodes_are idle
[ "$(checkpoints "$job")" -ge 1 ] || fail "the cancelled job wrote no checkpoint"
{ is "$job" CANCELLED && [ "$(restarts "$job")" = 0 ]; } || fail "the cancelled job is $(state "$job")"
recorded "$job" CANCELLED
pass "a job that is cancelled writes a checkpoint and is CANCELLED, not put back"

job=$(submit -- "${training[@]}" --epochs 6)
wait_until "a worker on both nodes" joined "$job" 2
wait_until "steps" has_steps "$job" 20
# The second node as a power cut leaves it: its daemon, its step and its worker are gone at once.
task=$(grep -lsz "^SLURM_JOB_ID=$job$" /proc/[0-9]*/environ | xargs grep -lsz '^SLURM_NODEID=1$' | head -n 1 | cut -d / -f 3)
kill -KILL "$(cat "$work/slurmd-node2.pid")" "$(ps -o ppid= -p "$task" | tr -d ' ')" "$task"
lost() { [ "$(events "$job" lost)" -ge 1 ]; }
wait_until "the loss of its worker" lost
at=$(steps "$job")
wait_until "the end of the run without it" done_ "$job"
wait_until "the end of the job" is "$job" COMPLETED
# RESIZING, where Slurm took notice of the failed node before the job's end.
recorded "$job" "(RESIZING )?COMPLETED"
pass "a node that fails costs the run nothing: lost at step $at, done on the other, COMPLETED"

wait_until "the time limit of a job without a notice" is "$unwarned" TIMEOUT
recorded "$unwarned" TIMEOUT
[ "$(checkpoints "$unwarned")" -ge 1 ] || fail "the job wrote no checkpoint at its time limit"
at=$(steps "$unwarned")
job=$(TALLY_RUN_DIR=$work/home/runs/slurm-$unwarned submit --partition short -- "${long[@]}")
wait_until "steps of the job that goes on with it" has_steps "$unwarned" $((at + 5))
scancel "$job"
wait_until "the cancelled job" is "$job" CANCELLED
pass "a job that reaches its time limit writes a checkpoint and is TIMEOUT; another with its TALLY_RUN_DIR goes on at step $at"
say "$passed passed, 0 failed"
