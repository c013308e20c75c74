# Sourced by deploy/try-*.sh: how they tell, wait, and get namespaces of their own. A script that waits has a `fail`.

. scripts/checks/need.sh
name=$(basename "$0" .sh)
name=${name#try-}
# shellcheck disable=SC2034 # Used by the scripts.
binaries=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")/debug
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

# Builds the binaries for a script that runs itself again by COMMAND, and skips the script where COMMAND cannot run any.
build_apart() { # COMMAND…
    cargo build --quiet --workspace --bin coordinator --bin worker
    "$@" true 2>/dev/null || skip "this machine allows no namespaces"
}
