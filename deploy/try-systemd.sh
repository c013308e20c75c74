#!/usr/bin/env bash
# The systemd units, for real: a Debian that is booted by systemd-nspawn starts them, kills them, stops them and looks a name
# up through them. About a minute, once Debian's packages are here.
#
# Needs root and Debian's systemd-container and debootstrap, which it installs where they are missing, and a cgroup tree in which
# a second systemd may run. The booted system has namespaces of its own, and nothing is left when it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/try.sh
. scripts/checks/journal.sh

root=$PWD/target/deploy/systemd/root
log=$PWD/target/deploy/systemd/boot.log
if [ -z "${APART:-}" ]; then
    require systemd-nspawn:systemd-container debootstrap:debootstrap
    if [ ! -e "$root.whole" ]; then
        say "making a Debian to boot"
        rm -rf "$root" && mkdir -p "$root"
        debootstrap --variant=minbase --include=systemd-sysv,dbus,systemd-resolved,libnss-resolve,libnss-systemd bookworm "$root" \
            >"$root.log" 2>&1 || skip "there is no Debian to be had; see $root.log"
        touch "$root.whole"
    fi
    apart --net --uts
    exit
fi

# Nspawn asks no systemd of this machine for a place; it stays in the control group that it is started in. A machine has one
# tree of them, or one for each controller, or both.
found=
for tree in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    [ -e $tree/cgroup.procs ] || continue
    { mkdir "$tree/${APART##*/}" && echo $$ >"$tree/${APART##*/}/cgroup.procs"; } 2>/dev/null || skip "there is no control group to boot in"
    found=1
done
[ -n "$found" ] || skip "there are no control groups"
ip link set lo up
inside() { nsenter --target "$machine" --mount --uts --ipc --net --pid "$@"; }
fail() {
    say "FAILED: $*" >&2
    inside journalctl --no-pager --lines 25 --unit 'tally-*' >&2 || tail "$log" >&2
    exit 1
}

# As an administrator installs it.
rm -rf "$root/var/lib/private/tally" "$root/var/lib/tally" "$root/var/log/journal" "$root"/etc/systemd/system/tally-*
install -D --target-directory "$root/usr/local/bin" "$binaries/coordinator" "$binaries/worker"
install -D --mode 644 --target-directory "$root/etc/systemd/system" deploy/systemd/*.service
mkdir -p "$root/etc/tally"
options=(TALLY_WORKERS=2 TALLY_MODEL=mlp TALLY_EPOCHS=3 TALLY_TEST_LIMIT=200 "TALLY_LISTEN=[::]:50051")
printf '%s\n' "${options[@]}" TALLY_TOKEN=0123456789abcdef0123 >"$root/etc/tally/coordinator.env"
printf '%s\n' TALLY_CONNECT=head.cluster.test:50051 TALLY_THREADS=1 TALLY_TOKEN=0123456789abcdef0123 >"$root/etc/tally/worker.env"
chmod 600 "$root"/etc/tally/*.env
# A name that only systemd-resolved knows, which the C library reaches over a socket of the machine's.
echo '127.0.0.1 head.cluster.test' >"$root/etc/hosts"
echo 'hosts: resolve' >"$root/etc/nsswitch.conf"
# A second worker, as an instance of the same unit would be.
sed 's/^ExecStart=.*/& --name second/' deploy/systemd/tally-worker.service >"$root/etc/systemd/system/tally-worker-second.service"

systemd-nspawn --quiet --register=no --keep-unit --boot --directory "$root" --console=pipe >"$log" 2>&1 </dev/null &
nspawn=$!
is_up() { machine=$(pgrep --parent "$nspawn") && inside systemctl is-system-running --wait | grep -qE 'running|degraded'; }
for _ in $(seq 300); do
    ! is_up 2>/dev/null || break
    kill -0 "$nspawn" 2>/dev/null || skip "systemd does not boot here; see $log"
    sleep 0.1
done
is_up 2>/dev/null || skip "systemd does not boot here; see $log"

is() { [ "$(inside systemctl show --property "$2" --value "$1")" = "$3" ]; }
journal=$root/var/lib/private/tally/run/journal.jsonl
summary=$root/var/lib/private/tally/run/summary.json
count() { count_events "$journal" "$1"; }
has() { [ "$(count "$1")" -ge "$2" ]; }
more_steps() { wait_until "$1 more steps" has step $(($(count step) + $1)); }

inside systemctl start tally-coordinator tally-worker tally-worker-second
wait_until "twenty steps" has step 20
for unit in tally-coordinator tally-worker; do is $unit ActiveState active || fail "$unit is not active"; done
inside /usr/local/bin/coordinator health >/dev/null || fail "the coordinator is not well"
pass "systemd $(inside systemctl --version | sed -n '1s/systemd \([^ ]*\).*/\1/p') starts the units as they are; the worker finds its coordinator by a name that only systemd-resolved knows"

joins=$(count join)
inside systemctl kill --signal KILL tally-worker
wait_until "the killed worker's return" has join $((joins + 1))
at=$(count step)
inside systemctl kill --signal KILL tally-coordinator
wait_until "steps of the killed coordinator's next start" has step $((at + 20))
{ is tally-worker NRestarts 1 && is tally-coordinator NRestarts 1; } || fail "not each was started again once"
pass "after SIGKILL both are started again, and the run goes on"

inside systemctl stop tally-worker-second
{ is tally-worker-second ActiveState inactive && is tally-worker-second Result success; } || fail "a worker that was stopped counts as failed"
inside systemctl start tally-worker-second
inside systemctl stop tally-coordinator
{ is tally-coordinator ActiveState inactive && is tally-coordinator Result success; } || fail "a coordinator that was stopped counts as failed"
compgen -G "$root/var/lib/private/tally/run/checkpoints/step-*/model.safetensors" >/dev/null || fail "it wrote no checkpoint"
at=$(count step)
# From here on without IPv6, as where the kernel has none: `[::]` is then every address of IPv4.
mkdir -p "$root/etc/systemd/system/tally-coordinator.service.d"
printf '[Service]\nRestrictAddressFamilies=\nRestrictAddressFamilies=AF_INET\n' >"$root/etc/systemd/system/tally-coordinator.service.d/ipv4.conf"
inside systemctl daemon-reload
inside systemctl start tally-coordinator
wait_until "steps after the stop" has step $((at + 10))
pass "stop in mid-run is a success and writes a checkpoint; the next start, now without IPv6, goes on at step $at"

done_() { grep -q '"outcome": *"done"' "$summary"; }
wait_until "the end of the run" done_
is tally-coordinator ActiveState active || fail "the coordinator does not linger"
bits() { sed -n 's/.*"parameters_sha256": *"\([0-9a-f]*\)".*/\1/p' "$1"; }
alone=$APART
"$binaries/coordinator" --local --workers 2 --threads 1 --model mlp --epochs 3 --test-limit 200 --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --run-dir "$alone/run" \
    >"$log" 2>&1 || fail "the run on one machine"
alone_bits=$(bits "$alone/run/summary.json")
[ "$(bits "$summary")" = "$alone_bits" ] || fail "the run has other bits than the same run on one machine"
[ "$(inside journalctl --no-pager --quiet --unit tally-coordinator | grep -c 'test: loss' || true)" -ge 1 ] || fail "the run's test is not in systemd's journal"
# Messages that the hardening should not have caused.
told=$(inside journalctl --no-pager --quiet --priority warning --unit 'tally-*' || true)
! grep -iE 'operation not permitted|address family|seccomp|panick' <<<"$told" || fail "the hardening is in the way"
pass "the run is done in the bits of the same run on one machine, its lines are in systemd's journal, and the hardening was in nobody's way"
say "$passed passed, 0 failed"
