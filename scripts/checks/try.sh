# Sourced by deploy/try-*.sh: how they tell, wait, and get namespaces of their own. A script that waits has a `fail`.

. scripts/checks/need.sh
name=$(basename "$0" .sh)
name=${name#try-}
# shellcheck disable=SC2034 # Used by the scripts.
binaries=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")/debug
arguments=("$@")
passed=0
say() { echo "$name: $*"; }
pass() { passed=$((passed + 1)) && say "ok: $*"; }
skip() { say "skipped, for $*" && exit 0; }

# Until a condition holds; far longer than it takes, so that only a hang reaches the end.
wait_until() { # WHAT COMMAND…
    local what=$1
    shift
    local end=$((SECONDS + 120))
    while [ $SECONDS -lt $end ]; do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "after two minutes still not: $what"
}

# Skips the script without root or one of the programs, which are installed where they are missing.
require() { # PROGRAM:PACKAGE…
    [ "$(id -u)" = 0 ] || skip "it needs root"
    local pair
    for pair; do
        need "${pair%:*}" "${pair#*:}" || skip "Debian's ${pair#*:} cannot be installed; see $tools/apt.log"
    done
}

# Runs the script again in namespaces of its own, with what OPTIONS adds to those of processes and mounts. APART is then a
# directory for it alone, whose name is also that of its control groups. Whatever ends the script, no process, mount or
# network outlives it; the directory and the control groups, which are empty then, outlive SIGKILL alone.
apart() { # OPTIONS…
    cargo build --quiet --workspace --bin coordinator --bin worker
    local spaces=(unshare --mount --pid --fork --kill-child --mount-proc "$@")
    "${spaces[@]}" true 2>/dev/null || skip "this machine allows no namespaces"
    APART=$(mktemp -d -t "tally-$name-XXXXXX")
    export APART
    trap leave_apart EXIT
    trap 'exit 143' HUP INT TERM
    setpriv --pdeathsig KILL "${spaces[@]}" bash "deploy/${0##*/}" "${arguments[@]}" &
    inside=$!
    wait "$inside"
    trap - EXIT
    leave_apart
}
leave_apart() {
    kill -KILL "$inside" 2>/dev/null || true
    wait "$inside" 2>/dev/null || true
    # The last processes in there take a moment to be gone.
    for _ in $(seq 50); do
        find /sys/fs/cgroup -depth -type d -path "*/${APART##*/}*" -exec rmdir {} + 2>/dev/null || true
        rm -rf "$APART" 2>/dev/null || true
        [ -n "$(find "$APART" /sys/fs/cgroup -name "${APART##*/}" 2>/dev/null)" ] || break
        sleep 0.1
    done
}
